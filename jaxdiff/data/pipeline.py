"""From a random-access source to host batches that are a pure function of (seed, batch number, host)."""

import functools
import operator
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdiff.data.sources import Source
from jaxdiff.data.transforms import flip_some, to_float

Batch = dict[str, np.ndarray]

# Decoding a file frees the interpreter's lock, so a few threads read at once; more only compete with the step.
THREADS = 4


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    flip: bool = False,
    workers: int = 0,
    prefetch: int = 8,
    shard_index: int | None = None,
    shard_count: int | None = None,
) -> Iterator[Batch]:
    """Endless batches of a source, reshuffled every epoch, read ahead while the device works.

    The stream of examples is one epoch's permutation after the other, cut into batches of `batch_size`:
    nothing is dropped, so a batch may hold the end of one epoch and the beginning of the next. Batch k is a
    pure function of (source, seed, batch_size, k, host): `start=k` continues a run bit for bit, at no cost.
    Host h of H gets rows [h B/H, (h+1) B/H) of the global batch, which is the same for any number of hosts.

    Args:
      source: a random-access sequence of {"x": uint8[H, W, C], "label": int} ("label" may be absent); it may have a
        "hint", uint8[H', W', C'], too, see `Hinted`.
      batch_size: examples in the global batch, over all hosts.
      seed: any non-negative integer; decides the order and the flips.
      start: number of the first batch.
      flip: mirror each image left to right with probability 1/2; drawn anew every epoch.
      workers: processes that read and transform; 0 does it in threads of this process. A script that asks
        for workers needs the usual `if __name__ == "__main__":`.
      prefetch: batches kept ready ahead of the consumer (per worker); 0 reads on demand.
      shard_index: this host's number; default `jax.process_index()`.
      shard_count: number of hosts; default `jax.process_count()`.

    Returns:
      An iterator with a `close()` method, of {"x": float32[B/H, H, W, C] in [-1, 1], "label": int32[B/H]},
      and "hint": float32[B/H, H', W', C'] in [0, 1], mirrored with its image.

    Raises:
      ValueError: if a number is out of range, or the batch larger than the source or indivisible by hosts.
    """
    import grain

    host, hosts = _shard(shard_index, shard_count)
    size = _integer("batch_size", batch_size, 1)
    if size > len(source):
        raise ValueError(f"batch_size {size} is larger than the data set, which has {len(source)} examples")
    if size % hosts:
        raise ValueError(f"batch_size {size} is not divisible by the number of hosts, {hosts}")
    begin = _integer("start", start, 0)
    ahead, workers = _integer("prefetch", prefetch, 0), _integer("workers", workers, 0)
    # One seed for the order and an independent key for the flips; neighbouring seeds give unrelated streams.
    order, *key = np.random.SeedSequence(_integer("seed", seed, 0)).generate_state(3, np.uint32).tolist()

    local = size // hosts
    finish = functools.partial(_finish, key=key[0] << 32 | key[1], flip=flip)
    ds = grain.MapDataset.source(source).shuffle(seed=order).repeat().batch(local).map_with_index(finish)
    # Slicing after the index is known keeps the flips a function of the place in the global stream.
    ds = ds.slice(slice(begin * hosts + host, sys.maxsize, hosts))
    stream = ds.to_iter_dataset(grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead))
    if workers:
        from absl import flags

        # Grain hands its absl flags to the workers, and refuses to while nobody has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, ahead))
        stream = stream.mp_prefetch(options).map(_own)
    return iter(stream)


def load_arrays(source: Source, count: int | None = None) -> Batch:
    """Examples of a source as arrays, for evaluation.

    Args:
      source: a random-access source.
      count: how many; None is all. They are spread evenly over the source, since a folder is sorted by class.

    Returns:
      {"x": uint8[count, H, W, C], "label": int32[count]}; no "label" where the source has none.

    Raises:
      ValueError: if count is not between 1 and the size of the source.
    """
    total = len(source)
    count = total if count is None else _integer("count", count, 1)
    if count > total:
        raise ValueError(f"count {count} is larger than the data set, which has {total} examples")
    examples = [source[i * total // count] for i in range(count)]
    out = {"x": np.stack([e["x"] for e in examples])}
    if "label" in examples[0]:
        out["label"] = np.array([e["label"] for e in examples], np.int32)
    return out


def _finish(index: int, batch: Batch, *, key: int, flip: bool) -> Batch:
    """Augment and normalize a whole batch at once; `index` counts the batches of all hosts."""
    images = {name: batch[name] for name in ("x", "hint") if name in batch}
    if flip:
        # Philox is counter-based: four words for each place in the stream, whatever the batch size.
        size = len(images["x"])
        words = np.random.Philox(key=key, counter=index * size).random_raw((size, 4))
        flipped = (words[:, 0] >> np.uint64(63)).astype(bool)
        images = {name: flip_some(value, flipped) for name, value in images.items()}
    out = {"x": to_float(images["x"])}
    if "hint" in batch:
        out["hint"] = images["hint"].astype(np.float32) / 255
    if "label" in batch:
        out["label"] = batch["label"].astype(np.int32)
    return out


def _own(batch: Batch) -> Batch:
    """Copy a worker's batch out of the scarce shared memory, which JAX on a CPU would alias and so keep."""
    return {name: np.array(value) for name, value in batch.items()}


def _shard(index: int | None, count: int | None) -> tuple[int, int]:
    if (index is None) != (count is None):
        raise ValueError(f"give both shard_index and shard_count or neither, got {index} and {count}")
    if index is None:
        import jax

        return jax.process_index(), jax.process_count()
    hosts = _integer("shard_count", count, 1)
    host = _integer("shard_index", index, 0)
    if host >= hosts:
        raise ValueError(f"shard_index must be below shard_count {hosts}, got {host}")
    return host, hosts


def _integer(name: str, value: Any, low: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    return number
