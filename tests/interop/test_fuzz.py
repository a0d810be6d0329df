"""Thousands of mutated files: each ends in a second, in a value or in a ValueError, and harms nothing.

The guard's limits are in `fuzzing`: a second of processor time and 256 MiB of memory a file.
"""

import pickle
import time

import jax
import numpy as np
import pytest
import safetensors.numpy  # noqa: F401
from helpers.fuzz_kinds import KINDS
from helpers.fuzzing import guarded, outcome, run
from jax.experimental.compilation_cache import compilation_cache

tokenizers = pytest.importorskip("tokenizers")

# How many files of a kind, in the quick part and in the slow one.
COUNTS = {
    "safetensors": (60, 400), "index": (40, 160), "models": (120, 900), "originals": (60, 200),
    "schedulers": (60, 540), "tokenizers": (40, 200), "pipelines": (20, 80), "lora": (0, 120), "legacy": (60, 300),
    "bombs": (30, 60), "npz": (40, 200), "shards": (40, 200), "images": (40, 200), "exports": (0, 200),
}  # fmt: skip
NEVER = {"bombs", "exports"}  # in which no mutation leaves a file that is read


@pytest.fixture(autouse=True)
def begun():
    """What starts threads and takes memory once a process; and compiled programs are not kept, which writes files."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks once
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)
    compilation_cache.reset_cache()


def fuzzed(kind, count, seed, folder):
    counts, faults = run(KINDS[kind](folder, np.random.default_rng([seed, count]), count), folder)
    assert not faults, "\n".join(faults[:10])
    print(kind, dict(counts))
    assert counts["ValueError"] + counts["Damaged"] > 0
    assert (counts["ok"] > 0) != (kind in NEVER)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind, (count, _) in COUNTS.items() if count])
def test_some_mutated_files(kind, tmp_path):
    fuzzed(kind, COUNTS[kind][0], 0, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COUNTS)
def test_many_mutated_files(kind, tmp_path):
    fuzzed(kind, COUNTS[kind][1], 1, tmp_path)


def test_there_are_enough_of_them():
    assert COUNTS.keys() == KINDS.keys() and sum(many for _, many in COUNTS.values()) >= 2000


class _Import:
    def __reduce__(self):
        return print, ("unpickled",)


def _spin():
    start = time.process_time()
    while time.process_time() - start < 3:
        pass


def _leave(path):
    (path.parent / "left").write_text("x")


READERS = {
    "ok": lambda path: path.read_text(),
    "ValueError": lambda path: int(path.read_text()),
    "KeyError": lambda path: {}[path.read_text()],
    "RecursionError": lambda path: READERS["RecursionError"](path),
    "MemoryError": lambda path: np.ones(2**27),
    "TooSlow": lambda path: _spin(),
    "Fault": _leave,
}


@pytest.mark.parametrize("ends", READERS)
def test_the_guard_sees_what_a_reader_does(ends, tmp_path):
    path = tmp_path / "x"
    path.write_text("word")
    assert outcome(lambda: READERS[ends](path), tmp_path, seconds=0.1)[0] == ends


def test_the_guard_sees_what_is_read_outside_and_what_is_unpickled(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "secret"
    inside.mkdir()
    outside.write_text("x")
    ended, told = outcome(outside.read_text, inside)
    assert ended == "Fault" and "secret" in told
    whole = pickle.dumps(_Import())
    ended, told = outcome(lambda: pickle.loads(whole), inside)
    assert ended == "Fault" and "pickle.find_class" in told
    with guarded(inside):  # and it is over afterwards
        pass
    assert outside.read_text() == "x"
