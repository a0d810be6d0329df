"""Processes that save checkpoints and die: kills.py FOLDER prints what came of it as JSON.

What is slow is imported once; each life is a fork of this process, which never touches a device itself.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": "4"}

import jax
import numpy as np

from jaxdiff import faults, train

# What changes the disk, and where the number of the folder is that a name is relative to.
EVENTS = {"open": None, "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1}


def state(step):
    """Made by as many updates, each a function of the one before it."""
    w = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    for number in range(step):
        w = np.roll(w, 1, axis=0) * np.float32(0.99) + np.float32(number)
    arrays = {"w": w, "b": w[0] - w[1]}
    return train.TrainState(np.int32(step), arrays, {"w": w / 2, "b": w[3]}, {"count": np.int32(step)}, np.int32(0))


def on_device(tree):
    return jax.tree.map(jax.device_put, tree)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


class Life:
    """A process forked to do something; what it prints into its pipe is kept."""

    def __init__(self, act, *arguments):
        reading, self.writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.alarm(60)  # whatever happens
                act(lambda said: os.write(self.writing, (json.dumps(said) + "\n").encode()), *arguments)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(self.writing)
        self.pipe = os.fdopen(reading)

    def end(self):
        """(its status, what it said)."""
        with self.pipe:
            said = [json.loads(line) for line in self.pipe]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), said


def dying(say, run, at):
    """Die at something done to a run's files: the first of a name, or that of a number; None: tell the names of all."""
    count = 0

    def event(name, path):
        nonlocal count
        path = os.path.relpath(path, run)
        if path.startswith(".."):
            return
        count += 1
        parts = Path(path).parts
        what = parts[1].split("-")[0] if len(parts) > 1 else "folder"
        label = f"{name} {what}" + "".join(f"/{part.split('-')[0]}" for part in parts[2:4])
        if at in (count, label):
            say(label)
            os.kill(os.getpid(), signal.SIGKILL)
        if at is None:
            say(label)

    def hook(name, arguments):
        if name not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        number = -1 if EVENTS[name] is None else arguments[EVENTS[name]]
        folder = os.getcwd() if number == -1 else os.readlink(f"/proc/self/fd/{number}")
        event(name, os.path.join(folder, os.fsdecode(arguments[0])))

    def fsync(handle):
        event("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        return synced(handle)

    sys.addaudithook(hook)
    synced, os.fsync = os.fsync, fsync


def save(say, run, step, at, keep=2):
    """Save one step, and die on the way."""
    with train.Checkpointer(run, keep=keep) as checkpointer:
        now = on_device(state(step))
        dying(say, run, at)
        checkpointer.save(now)


def save_until(say, run, step, seconds):
    """Save one step, and die at a time."""
    with train.Checkpointer(run) as checkpointer:
        now = on_device(state(step))
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        checkpointer.save(now)
        checkpointer.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(time.perf_counter() - start)


def look(say, run, step):
    """What a start after that finds, and whether it goes on."""
    folder = Path(run) / "checkpoints"
    before = sorted(os.listdir(folder))
    with train.Checkpointer(run) as checkpointer:
        names = sorted(os.listdir(folder))
        seen, latest = checkpointer.steps(), checkpointer.latest()
        good = [same(checkpointer.restore(on_device(state(0)), step=number), state(number)) for number in seen]
        chosen = checkpointer.restore(on_device(state(0)))
        if latest < step:
            checkpointer.save(on_device(state(step)))
            checkpointer.wait()
        end = same(checkpointer.restore(on_device(state(0))), state(step))
    say({"before": before, "names": names, "steps": seen, "latest": latest, "good": good, "end": end,
         "chosen": same(chosen, state(latest)), "after": sorted(os.listdir(folder))})  # fmt: skip


def train_on(say, run, steps, at):
    """A run that saves each second step, and goes on where it stopped."""
    with train.Checkpointer(run) as checkpointer:
        now = on_device(state(0))
        if checkpointer.latest() is not None:
            now = checkpointer.restore(now)
        say(int(now.step))
        dying(lambda label: None, run, at)
        while int(now.step) < steps:
            step, w = int(now.step) + 1, np.asarray(now.params["w"])
            w = np.roll(w, 1, axis=0) * np.float32(0.99) + np.float32(step - 1)
            now = on_device(train.TrainState(np.int32(step), {"w": w, "b": w[0] - w[1]}, {"w": w / 2, "b": w[3]},
                                             {"count": np.int32(step)}, np.int32(0)))  # fmt: skip
            if step % 2 == 0:
                checkpointer.save(now)
        checkpointer.wait()
        say(same(checkpointer.restore(now), state(steps)))


def full_disk(say, run):
    """No file may grow beyond 4 KB for a while, as on a full disk: saves fail, and nothing else."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with train.Checkpointer(run) as checkpointer:
        for step in (3, 4):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            checkpointer.save(on_device(state(step)))
            deadline = time.monotonic() + 30
            while (failure := checkpointer.failure()) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            say([type(failure).__name__, str(failure), faults.status(failure)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            say([checkpointer.steps(), same(checkpointer.restore(on_device(state(0))), state(2))])
        checkpointer.save(on_device(state(4)))
        checkpointer.wait()
        say(same(checkpointer.restore(on_device(state(0))), state(4)))


def killed(base, folder, act, *arguments):
    """A life in a copy of a run that ends early or not, and what the next one finds."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base, run)
    status, said = Life(act, run, 3, *arguments).end()
    seen, (found,) = Life(look, run, 3).end()
    return {"status": status, "said": said, "next": seen, **found}


def main(folder):
    folder, rng = Path(folder), np.random.default_rng(0)
    base = folder / "base"
    for step in (1, 2):
        assert Life(save, base, step, None).end()[0] == 0
    whole = killed(base, folder, save, None)  # saves step 3 and deletes step 1
    whole["files"] = sum(path.is_file() for path in (folder / "run" / "checkpoints" / "3" / "state").rglob("*"))
    events = [killed(base, folder, save, label) for label in dict.fromkeys(whole["said"])]
    (lasts,) = killed(base, folder, save_until, 60.0)["said"]
    timed = []
    while len(timed) < 40 and sum(life["status"] != 0 for life in timed) < 6:
        timed.append(killed(base, folder, save_until, float(rng.uniform(0, lasts))))
        lasts = min([lasts, *timed[-1]["said"]])  # the first save is slower, on a busy machine by far
    several = []
    while len(several) < 30 and not (several and several[-1][0] == 0):
        several.append(Life(train_on, folder / "several", 16, int(rng.integers(20, 100))).end())
    shutil.copytree(base, folder / "full")
    full = Life(full_disk, folder / "full").end()
    print(json.dumps({"whole": whole, "events": events, "timed": timed, "several": several, "full": full}))


if __name__ == "__main__":
    main(sys.argv[1])
