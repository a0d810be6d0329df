"""The cost of a checkpoint's hashes: saves and restores with and without them, in pairs that alternate in order."""

import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jaxdiff import train, trees
from jaxdiff.train.checkpoint import manifest
from jaxdiff.train.checkpoint.arrays import Arrays
from jaxdiff.train.checkpoint.saving import STATE

TURNS = 20
Act = Callable[[], None]
Taken = tuple[float, float]  # seconds, and CPU seconds


def state(megabytes: float) -> train.TrainState:
    """Parameters, their average and two moments, all of them noise: a U-Net's mix of large and small arrays."""
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 256, 512), (512, 2048), (512,), (512,)]
    count = round(megabytes * 1e6 / 4 / sum(4 * np.prod(shape) for shape in shapes))
    tree = lambda: {  # noqa: E731
        f"{i}/{j}": rng.standard_normal(s, np.float32) for i in range(count) for j, s in enumerate(shapes)
    }
    arrays = train.TrainState(np.int32(1), tree(), tree(), {"mu": tree(), "nu": tree()}, np.int32(0))
    return jax.tree.map(jax.device_put, arrays)


def timed(act: Act) -> Taken:
    """Seconds, and CPU seconds, of a call."""
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    act()
    return time.perf_counter() - wall, sum(os.times()[:2]) - cpu


def digest(name: str, path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).digest()


def main(megabytes: float) -> None:
    now = state(megabytes)
    wanted = trees.flatten(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)

        def bare_save() -> None:
            place = run / "bare"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for part in arrays.start(place, trees.flatten(now)):
                part.result()
            arrays.finish(place)

        def save() -> None:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            with train.Checkpointer(run) as checkpointer:
                checkpointer.save(now)

        def bare_restore() -> None:
            jax.block_until_ready(arrays.read(run / "checkpoints" / "1" / STATE, wanted))

        def restore() -> None:
            with train.Checkpointer(run, read_only=True) as checkpointer:
                jax.block_until_ready(checkpointer.restore(now))

        def cold(act: Act) -> None:
            for path in (run / "checkpoints").rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            act()

        def hashes() -> None:
            place = run / "checkpoints" / "1"
            said = manifest.read(place).files
            assert manifest.problems(place, said, said) == []

        def whole_files(name: str) -> None:
            files = [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda path: digest(name, path), files))

        arrays = Arrays()
        pairs: dict[str, tuple[Act, Act]] = {
            "save": (bare_save, save),
            "restore": (bare_restore, restore),
            "restore from disk": (lambda: cold(bare_restore), lambda: cold(restore)),
        }
        sides = {name: in_pairs(*acts) for name, acts in pairs.items()}
        alone: dict[str, Act] = {"hashes alone": hashes}
        for name in ("sha256", "blake2b"):
            alone[f"hashes alone, by {name}"] = lambda name=name: whole_files(name)  # type: ignore[misc]
        singles = {name: [timed(act) for _ in range(TURNS)] for name, act in alone.items()}
        size = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    print(f"{size / 1e9:.2f} GB on disk, {os.cpu_count()} cores, {TURNS} turns")
    for name, (bare, hashed) in sides.items():
        for what, taken in (("without hashes", bare), ("with hashes", hashed)):
            show(f"{name} {what}", taken)
        for unit, i in (("seconds", 0), ("CPU seconds", 1)):
            ratios = [b[i] / a[i] for a, b in zip(bare, hashed, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            least = min(b[i] for b in hashed) / min(a[i] for a in bare)
            print(f"  ratio of {unit}: {middle:.3f} ({low:.2f} to {high:.2f}); of the least ones {least:.3f}")
    for name, taken in singles.items():
        show(name, taken)


def in_pairs(first: Act, second: Act) -> tuple[list[Taken], list[Taken]]:
    """Times of two calls, which take turns in being the first of a pair."""
    taken: tuple[list[Taken], list[Taken]] = ([], [])
    for turn in range(TURNS + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            now = timed((first, second)[i])
            if turn:  # the first pair warms the caches
                taken[i].append(now)
    return taken


def show(name: str, taken: list[Taken]) -> None:
    wall, cpu = (statistics.median(values) for values in zip(*taken, strict=True))
    print(f"{name:34} {wall:6.3f} s {cpu:6.3f} CPU s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 400.0)
