"""What a checkpoint's hashes cost: saving and restoring with and without them, in turns, on a state of about 1 GB."""

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

TURNS = 3


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


def timed(act) -> tuple[float, float]:
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
        sides: dict[str, list[tuple[float, float]]] = {}

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

        def cold(act) -> None:
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
        acts: dict[str, Callable[[], None]] = {
            "save, no hashes": bare_save,
            "save": save,
            "restore, no hashes": bare_restore,
            "restore": restore,
            "restore from disk, no hashes": lambda: cold(bare_restore),
            "restore from disk": lambda: cold(restore),
            "hashes alone": hashes,
        }
        for name in ("sha256", "blake2b"):
            acts[f"hashes alone, by {name}"] = lambda name=name: whole_files(name)  # type: ignore[misc]
        for turn in range(TURNS + 1):
            for name, act in acts.items():
                taken = timed(act)
                if turn:  # the first one warms the caches
                    sides.setdefault(name, []).append(taken)
        size = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    middle = {name: [statistics.median(values) for values in zip(*taken, strict=True)] for name, taken in sides.items()}
    print(f"{size / 1e9:.2f} GB on disk, {os.cpu_count()} cores, medians of {TURNS}")
    for name, (wall, cpu) in middle.items():
        print(f"{name:34} {wall:6.2f} s {cpu:6.2f} CPU s")
    for what in ("save", "restore", "restore from disk"):
        (wall, cpu), (bare, bare_cpu) = middle[what], middle[f"{what}, no hashes"]
        print(f"{what} with hashes / without: {wall / bare:.2f} (CPU {cpu / bare_cpu:.2f})")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1000.0)
