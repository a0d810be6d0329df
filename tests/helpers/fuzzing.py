"""A fuzzer of files: mutations from a seed, and a guard within which a file is read.

Within the guard a reader may return or raise a ValueError (`faults.Damaged` is one). Anything else is a fault: another
exception, more than `SECONDS` of its thread's time, more than `BYTES` of memory asked for (also what is never touched),
a file opened for writing, a file opened outside of the folder that is read, a pickle's name looked up, a process or a
connection begun.
"""

import contextlib
import copy
import gc
import math
import os
import resource
import signal
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import jax

import jaxdiff

SECONDS = 1.0
BYTES = 2**28
# Values that stand in a field's place, of every type and of absurd sizes.
ODD = [
    None, True, False, 0, -1, 3, 2**31, 2**63, -(2**63), 10**12, 10**9, 10**400, 0.5, 1e-320, 1e308, -1e308, math.nan,
    math.inf, -math.inf, "", "x", "silu", "x" * 5000, "../../x", "\0", [], [[]], [None], [1], [1, 2, 3, 4], [2**63],
    [10**9] * 2, [True], ["x"] * 3, [1.5, math.nan], [[1, 2], [3]], {}, {"a": 1}, {"a": {"b": []}}, [0] * 5000,
]  # fmt: skip


def _deep(n):
    value = 0
    for _ in range(n):
        value = [value]
    return value


ODD.append(_deep(200))


def mutated_json(value, rng):
    """A JSON value of which one place, or two, holds something odd, is missing, or is doubled."""
    value = copy.deepcopy(value)
    for _ in range(1 + int(rng.random() < 0.2)):
        places = list(_places(value))
        holder, key = places[rng.integers(len(places))]
        kind = rng.integers(10)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind == 2 and isinstance(holder, dict):
            holder[f"{key}_"] = holder[key]
        elif kind == 3 and isinstance(holder[key], list):
            holder[key] = holder[key] * 50
        else:
            holder[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        if not value:
            break
    return value


def _places(value):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def mutated_bytes(whole, rng):
    """Bytes of which some are flipped, cut, doubled, moved, or replaced by an absurd number."""
    data = bytearray(whole)
    for _ in range(1 + int(rng.integers(3) == 0)):
        if not data:
            break
        i, kind = int(rng.integers(len(data))), rng.integers(8)
        span = int(rng.integers(1, 64))
        if kind <= 2:
            data[i] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del data[i:]
        elif kind == 4:
            del data[i : i + span]
        elif kind == 5:
            data[i:i] = rng.bytes(span)
        elif kind == 6:
            size = int(rng.choice([1, 2, 4, 8]))
            odd = [0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)][rng.integers(4)]
            data[i : i + size] = odd.to_bytes(size, "little")
        else:
            j = int(rng.integers(len(data)))
            data[i : i + span] = data[j : j + span]
    return bytes(data)


class TooSlow(BaseException):
    """The alarm; not an Exception, so that no reader takes it for a fault of its file."""


class Fault(AssertionError):
    """What a reader may not do."""


class _Guard:
    """The audit hook, which can't be taken away again: it looks on while `folder` is set."""

    folder = None
    seen: list

    def __call__(self, event, args):
        if self.folder is None or (event in ("open", "os.mkdir") and _compiled(args[0])):
            return
        if event == "open":
            path, mode, flags = args
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if isinstance(path, int):
                return
            real = os.path.abspath(os.fsdecode(path))
            if writes or not real.startswith((self.folder, *SYSTEM)):
                self.seen.append(f"{event} {real} {mode} {flags}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {args!r:.80}")


def _compiled(path):
    """Whether a path is within the cache of JAX's compiler."""
    cache = jax.config.jax_compilation_cache_dir
    return bool(cache) and isinstance(path, str) and os.path.abspath(path).startswith(os.path.abspath(cache))


FORBIDDEN = {
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.mkdir",
    "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree", "os.chmod",
}  # fmt: skip
# Modules that are imported when they are needed.
SYSTEM = (
    *{sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/proc/", "/dev/", "/usr/"},
    *{str(Path(path).resolve()) for path in (*sys.path, *jaxdiff.__path__) if path},
)
_guard = _Guard()


def hook():
    """Begin to look on; once a process."""
    if not hasattr(_Guard, "hooked"):
        _Guard.hooked = True
        sys.addaudithook(_guard)


@contextlib.contextmanager
def guarded(folder, seconds=SECONDS, size=BYTES):
    """Raise `Fault` or `TooSlow` for what the block may not do."""
    hook()

    def alarm(*_):
        if _guard.folder is None:
            return  # a late signal is no fault of what runs before or afterwards
        left = start + seconds - time.thread_time()
        if left <= 0:
            raise TooSlow
        signal.setitimer(signal.ITIMER_VIRTUAL, left)  # of all threads: others have used it up

    signal.signal(signal.SIGVTALRM, alarm)  # not SIGPROF, which libtpu sends by itself
    limits, used = resource.getrlimit(resource.RLIMIT_DATA), _data()
    names = sorted(os.listdir(folder))
    start, _guard.seen, _guard.folder = time.thread_time(), [], str(folder)
    try:
        if used is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (used + size, limits[1]))
        gc.disable()  # to look through what other tests have left may take longer than the reader may
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        _guard.folder = None  # first: from here on the alarm raises nothing, and all of this happens
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.enable()
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)  # by default a late one would end the process
    if _guard.seen:
        raise Fault("; ".join(_guard.seen[:3]))
    if time.thread_time() - start > seconds:
        raise TooSlow
    if sorted(os.listdir(folder)) != names:
        raise Fault("files appeared or vanished")


def _data():
    """Bytes of data that the process has; None where the kernel doesn't tell."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[5]) * resource.getpagesize() if told.exists() else None


def outcome(read, folder, seconds=SECONDS):
    """(What a reader ends in: "ok", "ValueError" or "Damaged", or a fault's name; the text of a fault)."""
    try:
        with guarded(folder, seconds):
            try:
                read()
            except ValueError as error:
                # An error's text is written to a terminal: it is not the file's.
                if len(str(error)) > 20_000:
                    raise Fault(f"a message of {len(str(error))} characters") from None
                if _guard.seen:
                    raise Fault("; ".join(_guard.seen[:3])) from None
                return type(error).__name__ if type(error).__name__ == "Damaged" else "ValueError", ""
        return "ok", ""
    except (Exception, TooSlow) as error:
        return type(error).__name__, f"{type(error).__name__}: {error!s:.300}"


def run(cases, folder):
    """Reads every case, an iterator of (what it is, its reader); returns the count of outcomes and the faults."""
    counts, faults = Counter(), []
    for name, read in cases:
        ended, told = outcome(read, folder)
        counts[ended] += 1
        if told:
            faults.append(f"{name}: {told}")
    return counts, faults


def files_of(whole, path, read, rng, count):
    """Cases of mutated bytes in a file."""
    for i in range(count):
        path.write_bytes(mutated_bytes(whole, rng))
        yield f"{path.name} #{i}", read
