"""The stream of batches is a pure function of (seed, batch number, rows), and every epoch is a permutation."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from jaxdiff import data


def numbered(count=10, width=4):
    """Images that tell their own number (first pixel) and whether they are mirrored (last pixel is 255)."""
    x = np.zeros((count, 2, width, 1), np.uint8)
    x[:, :, 0, 0] = np.arange(count)[:, None]
    x[:, :, -1, 0] = 255
    return data.ArraySource(x, np.arange(count) % 3, 3)


def take(count, source, size, **kwargs):
    stream = data.batches(source, size, **kwargs)
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def numbers(batches):
    pixels = data.to_uint8(np.concatenate([b["x"] for b in batches]))
    return np.minimum(pixels[:, 0, 0, 0], pixels[:, 0, -1, 0]).astype(int)


def flipped(batches):
    return np.concatenate([b["x"] for b in batches])[:, 0, 0, 0] == 1


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name], right[name])


def test_batch_types_and_ranges():
    source = data.open_dataset("fashion_mnist")
    (batch,) = take(1, source, 64, seed=0)
    assert set(batch) == {"x", "label"}
    assert batch["x"].shape == (64, 28, 28, 1) and batch["x"].dtype == np.float32
    assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
    assert batch["x"].min() == -1 and 0.9 < batch["x"].max() <= 1


def test_pixels_stay_with_their_labels():
    batches = take(7, numbered(), 3, seed=5, flip=True)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), numbers(batches) % 3)


def test_source_without_labels():
    source = data.ArraySource(numbered().x)
    (batch,) = take(1, source, 4, seed=0)
    assert set(batch) == {"x"}


def test_every_example_once_an_epoch_in_another_order():
    # 10 examples in batches of 4: epochs end inside batches, and nothing may be dropped.
    epochs = numbers(take(10, numbered(), 4, seed=1)).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not any((epoch == np.arange(10)).all() for epoch in epochs)


def test_same_seed_same_stream_other_seed_another():
    source = numbered(100)
    assert_same(take(9, source, 16, seed=3, flip=True), take(9, source, 16, seed=3, flip=True))
    orders = [tuple(numbers(take(6, source, 16, seed=s))) for s in (3, 4, 2**40 + 3)]
    assert len(set(orders)) == 3


def test_neighbouring_seeds_share_no_epoch():
    # If epoch e of seed s were shuffled by s + e, seed 1 would replay seed 0 one epoch later.
    source = numbered(20)
    first, second = (numbers(take(4, source, 20, seed=s)).reshape(4, 20) for s in (0, 1))
    assert not {tuple(e) for e in first} & {tuple(e) for e in second}


@pytest.mark.parametrize("start", [1, 2, 3, 7, 25])
def test_resume_is_bit_exact_inside_an_epoch_and_across_its_border(start):
    whole = take(30, numbered(), 4, seed=9, flip=True)
    assert_same(take(30 - start, numbered(), 4, seed=9, flip=True, start=start), whole[start:])


def test_resume_far_away_costs_nothing():
    far = 10**9
    assert_same(
        take(1, numbered(), 4, seed=0, start=far + 1, flip=True),
        take(2, numbered(), 4, seed=0, start=far, flip=True)[1:],
    )


@pytest.mark.parametrize("parts", [[range(0, 4), range(4, 8)], [[0, 1, 4, 5], [2, 3, 6, 7]], [[5], [7, 2, 0]]])
def test_rows_are_those_of_the_global_batch(parts):
    source = numbered(24)
    whole = take(9, source, 8, seed=2, flip=True, start=1)
    for rows in parts:
        some = take(9, source, 8, seed=2, flip=True, start=1, rows=rows)
        assert_same(some, [{name: value[np.asarray(rows)] for name, value in batch.items()} for batch in whole])


def test_a_host_reads_its_own_rows_only():
    reads = []

    class Counted(data.ArraySource):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    seen = numbers(take(3, Counted(numbered(24).x), 8, seed=6, prefetch=0, rows=[1, 6]))
    assert reads == seen.tolist() and len(reads) == 6


def test_one_of_many_processes_has_to_say_which_rows(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"rows=train.process_indices\(mesh, 4\)"):
        data.batches(numbered(), 4, seed=0)


def test_flips_are_half_reproducible_and_new_every_epoch():
    source = numbered(200)
    batches = take(30, source, 100, seed=4, flip=True)
    mask = flipped(batches)
    # 3,000 fair coins: five standard deviations.
    assert abs(mask.mean() - 0.5) < 5 * 0.5 / np.sqrt(3000)
    by_epoch = np.empty((15, 200), bool)
    for epoch, (n, m) in enumerate(zip(numbers(batches).reshape(15, -1), mask.reshape(15, -1), strict=True)):
        by_epoch[epoch, n] = m
    assert 0.3 < (by_epoch[0] == by_epoch[1]).mean() < 0.7
    assert not flipped(take(3, source, 100, seed=4)).any()


def test_flips_belong_to_the_example_not_to_the_batch_size():
    np.testing.assert_array_equal(
        flipped(take(12, numbered(24), 4, seed=8, flip=True)),
        flipped(take(6, numbered(24), 8, seed=8, flip=True)),
    )


def test_prefetch_does_not_change_the_stream():
    assert_same(take(6, numbered(), 4, seed=1, prefetch=0), take(6, numbered(), 4, seed=1, prefetch=3))


def test_batches_are_read_ahead_of_the_consumer():
    reads = []

    class Counted(data.ArraySource):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    stream = data.batches(Counted(numbered().x), 5, seed=0, prefetch=3)
    next(stream)
    deadline = time.monotonic() + 20
    while len(reads) < 4 * 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    stream.close()
    # The batch that was taken, and three that nobody has asked for yet.
    assert len(reads) == 4 * 5


def test_close_ends_the_reading_threads():
    stream = data.batches(numbered(), 4, seed=0)
    next(stream)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_error_in_a_source_reaches_the_consumer():
    class Broken(data.ArraySource):
        def __getitem__(self, index):
            raise ValueError("cannot read the image 7.png")

    with pytest.raises(ValueError, match=r"7\.png"):
        take(1, Broken(numbered().x), 4, seed=0)


@pytest.mark.slow
def test_workers_give_the_same_stream():
    source = data.open_dataset("fashion_mnist")
    alone = take(8, source, 512, seed=7, flip=True, start=15)
    shared = take(8, source, 512, seed=7, flip=True, start=15, workers=2)
    assert_same(shared, alone)
    assert all(type(value) is np.ndarray for batch in shared for value in batch.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"batch_size": 11}, "a batch of 11 is larger than the data set, which has 10 examples"),
        ({"rows": [0, 4]}, "rows must be integers from 0 to 3"),
        ({"rows": [-1]}, "rows must be"),
        ({"rows": []}, "rows must be integers from 0 to 3, at least one"),
        ({"rows": [0.5]}, "rows must be"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"start": -1}, "start must be"),
        ({"workers": -1}, "workers must be"),
        ({"prefetch": -1}, "prefetch must be"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    arguments = {"batch_size": 4, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        data.batches(numbered(), arguments.pop("batch_size"), **arguments)


def test_a_key_is_not_a_seed():
    with pytest.raises(ValueError, match="seed must be an integer"):
        data.batches(numbered(), 4, seed=jax.random.key(0))


def test_examples_in_order_are_read_by_several_threads():
    both = threading.Barrier(2, timeout=60)

    class Slow:
        def __len__(self):
            return 7

        def __getitem__(self, index):
            if index < 4:
                both.wait()  # for the other list's example
            return {"x": index}

    parts = [[example["x"] for example in part] for part in data.read_ahead(Slow(), 2)]
    assert parts == [[0, 1], [2, 3], [4, 5], [6]]
    assert list(data.read_ahead(Slow(), 2, [6, 4, 5])) == [[{"x": 6}, {"x": 4}], [{"x": 5}]]


def test_load_arrays():
    source = numbered(10)
    everything = data.load_arrays(source)
    np.testing.assert_array_equal(everything["x"], source.x)
    np.testing.assert_array_equal(everything["label"], source.label)
    assert everything["x"].dtype == np.uint8 and everything["label"].dtype == np.int32
    np.testing.assert_array_equal(data.load_arrays(source, 5)["x"], source.x[::2])
    assert set(data.load_arrays(data.ArraySource(source.x))) == {"x"}
    for wrong in (0, 11):
        with pytest.raises(ValueError, match="count"):
            data.load_arrays(source, wrong)
