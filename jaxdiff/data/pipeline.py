"""Host batches of a random-access source, a pure function of (seed, batch number, rows)."""

import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.data.captions import draw_captions
from jaxdiff.data.sources import Dataset, Examples
from jaxdiff.data.transforms import flip_some, to_float
from jaxdiff.schema import integer

Batch = dict[str, np.ndarray]
Encode = Callable[[list[str]], Mapping[str, np.ndarray]]

# Decoding a file releases the interpreter's lock, so that a few threads read in parallel; more would compete with the
# step.
THREADS = 4


def batches(
    source: Examples,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    flip: bool = False,
    encode: Encode | None = None,
    workers: int = 0,
    prefetch: int = 8,
) -> Iterator[Batch]:
    """Return an endless iterator of batches, reshuffled every epoch and prefetched while the device works.

    The stream concatenates the permutations of all epochs and splits them into batches of `batch_size`. No example is
    dropped, so a batch may contain the end of one epoch and the beginning of the next. Batch k is a pure function of
    (source, seed, batch_size, k): `start=k` continues a run exactly, at no cost. A host reads only its rows of a batch.

    Args:
        source: a random-access sequence of {"x": uint8[H, W, C], "label": int}; "label" is optional, and so is "hint",
            uint8[H', W', C'], see `Hinted`, and "captions", see `open_dataset`. Other arrays, see `NpzShards`, are not
            changed.
        batch_size: number of examples in the global batch, over all hosts.
        seed: any non-negative integer; determines the order and the flips.
        start: number of the first batch.
        rows: indices within the batch that this host reads, in any order, see `train.process_indices`; None: all, for a
            single process.
        flip: mirror each image left to right with probability 1/2, independently in every epoch.
        encode: captions of the R rows -> arrays [R, ...] by name, which are added to the batch, e.g. token ids. Of an
            image's captions one is drawn at random, independently in every epoch. None: captions are left out.
        workers: number of processes that read and transform; 0: threads of this process. A script with workers needs
            the usual `if __name__ == "__main__":`, and an `encode` that can be pickled.
        prefetch: number of batches prepared in advance (per worker); 0 reads on demand.

    Returns:
        an iterator with a `close()` method of {"x": float32[R, H, W, C] in [-1, 1], "label": int32[R]}, and "hint":
        float32[R, H', W', C'] in [0, 1], mirrored with its image; R is the number of rows.

    Raises:
        ValueError: a number is out of range, the batch is larger than the source, one of several processes has no
            `rows`, or there is nothing to `encode`.
    """
    import grain

    size = integer("batch_size", batch_size, 1)
    if size > len(source):
        raise ValueError(
            f"a batch of {size} is larger than the data set, which has {len(source)} examples: choose a smaller one"
        )
    mine = _rows(rows, size)
    begin = integer("start", start, 0)
    ahead, workers = integer("prefetch", prefetch, 0), integer("workers", workers, 0)
    # One seed for the order and an independent key for flips and captions; neighbouring seeds give unrelated streams.
    order, *key = np.random.SeedSequence(integer("seed", seed, 0)).generate_state(3, np.uint32).tolist()

    examples = grain.MapDataset.source(source).shuffle(seed=order).repeat()
    read = functools.partial(
        _read, examples=examples, size=size, rows=mine, key=key[0] << 32 | key[1], flip=flip, encode=encode
    )
    ds = grain.MapDataset.range(begin, sys.maxsize // size).map(read)
    stream = ds.to_iter_dataset(grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead))
    if workers:
        from absl import flags

        # Grain passes its absl flags to the workers, and fails unless they are parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, ahead))
        stream = stream.mp_prefetch(options, _end_with_parent).map(_copy)
    return iter(stream)


def read_ahead(source: Examples, size: int, indices: Sequence[int] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Return an iterator over the examples of a source in their order, which threads read in advance.

    Args:
        source: a random-access source.
        size: number of examples in each list; the last one has the remaining examples.
        indices: of the examples; None: all.

    Returns:
        lists of examples.
    """
    import grain

    chosen = range(len(source)) if indices is None else indices
    read = lambda start: [source[i] for i in chosen[start : start + size]]  # noqa: E731
    starts = grain.MapDataset.range(0, len(chosen), size).map(read)
    return iter(starts.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)))


def load_arrays(source: Dataset, count: int | None = None) -> Batch:
    """Return examples of a source as arrays, for evaluation.

    Args:
        source: a random-access source.
        count: number of examples, spread evenly over the source, since folders are sorted by class; None: all.

    Returns:
        {"x": uint8[count, H, W, C], "label": int32[count], "hint": uint8[count, H', W', C']}, of which the source may
        lack the last two.

    Raises:
        ValueError: count is not between 1 and the size of the source, or the source is empty.
    """
    total = len(source)
    if not total:
        raise ValueError("the data set has no examples")
    count = total if count is None else integer("count", count, 1)
    if count > total:
        raise ValueError(f"count {count} is larger than the data set, which has {total} examples")
    spread = [i * total // count for i in range(count)]
    examples = [example for part in read_ahead(source, 64, spread) for example in part]
    out = {"x": np.stack([e["x"] for e in examples])}
    if "hint" in examples[0]:
        out["hint"] = np.stack([e["hint"] for e in examples])
    if "label" in examples[0]:
        out["label"] = np.array([e["label"] for e in examples], np.int32)
    return out


def _read(
    batch: int, *, examples: Any, size: int, rows: np.ndarray, key: int, flip: bool, encode: Encode | None
) -> Batch:
    """Read and normalize rows of a batch of `size`; the key determines the flips and the captions."""
    read = [examples[batch * size + index] for index in rows.tolist()]
    out = {name: np.stack([example[name] for example in read]) for name in read[0] if name != "captions"}
    if flip or encode is not None:
        # Philox is counter-based: four words for each position in the stream, independent of the batch size.
        words = np.random.Philox(key=key, counter=batch * size).random_raw((size, 4))[rows]
    if flip:
        flipped = (words[:, 0] >> np.uint64(63)).astype(bool)
        out |= {name: flip_some(out[name], flipped) for name in ("x", "hint") if name in out}
    if "x" in out:
        out["x"] = to_float(out["x"])
    if "hint" in out:
        out["hint"] = out["hint"].astype(np.float32) / 255
    if "label" in out:
        out["label"] = out["label"].astype(np.int32)
    if encode is not None:
        out |= encode(draw_captions([example.get("captions", ()) for example in read], words[:, 1]))
    return out


def _end_with_parent(worker: int, count: int) -> None:
    """Exit this worker when its parent process exits, since a killed process leaves its workers running."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _copy(batch: Batch) -> Batch:
    """Copy a worker's batch out of shared memory, which is scarce, and which JAX on a CPU would alias."""
    return {name: np.array(value) for name, value in batch.items()}


def _rows(rows: Sequence[int] | np.ndarray | None, size: int) -> np.ndarray:
    if rows is None:
        import jax

        if jax.process_count() > 1:
            raise ValueError(f"with several processes, pass rows=train.process_indices(mesh, {size})")
        return np.arange(size)
    chosen = np.asarray(rows)
    valid = chosen.ndim == 1 and chosen.size and np.issubdtype(chosen.dtype, np.integer)
    if not valid or chosen.min() < 0 or chosen.max() >= size:
        raise ValueError(f"rows must be integers from 0 to {size - 1}, at least one, got {rows!r:.80}")
    return chosen
