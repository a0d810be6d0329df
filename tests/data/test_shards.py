"""Arrays in a folder of .npz files are read row by row, and what does not fit is said."""

import pickle

import jax
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import npz

EXAMPLE = {"mean": jax.ShapeDtypeStruct((2, 2, 3), np.float32), "label": jax.ShapeDtypeStruct((), np.int32)}
SIZES = (5, 1, 4)


@pytest.fixture(scope="module")
def whole():
    rng = np.random.default_rng(0)
    return {"mean": rng.normal(size=(10, 2, 2, 3)).astype(np.float16), "label": np.arange(10)}


@pytest.fixture(scope="module")
def folder(whole, tmp_path_factory):
    path, begin = tmp_path_factory.mktemp("shards"), 0
    for number, size in enumerate(SIZES):
        part = {name: array[begin : begin + size] for name, array in whole.items()}
        # In another order in each file, and beside what nobody asks for.
        names = sorted(part, reverse=bool(number))
        np.savez(path / f"{number}.npz", note=np.zeros(size), **{name: part[name] for name in names})
        begin += size
    return path


def test_rows_of_all_files(whole, folder):
    source = data.NpzShards(folder, EXAMPLE)
    assert len(source) == 10
    for i in (0, 4, 5, 6, 9):
        example = source[i]
        assert example.keys() == EXAMPLE.keys()
        assert {name: array.dtype for name, array in example.items()} == {"mean": np.float32, "label": np.int32}
        np.testing.assert_array_equal(example["mean"], whole["mean"][i])
        assert example["label"] == source[i - 10]["label"] == i
    for i in (10, -11):
        with pytest.raises(IndexError):
            source[i]


def test_batches_of_them_stay_as_they_are(whole, folder):
    batch = next(data.batches(data.NpzShards(folder, EXAMPLE), 10, seed=0))
    assert sorted(batch["label"]) == list(range(10))
    np.testing.assert_array_equal(batch["mean"], whole["mean"][batch["label"]])
    assert batch["mean"].dtype == np.float32 and batch["label"].dtype == np.int32


def test_another_process_maps_the_files_itself(folder):
    source = data.NpzShards(folder, EXAMPLE)
    source[0]
    assert len(pickle.dumps(source)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[7]["mean"], source[7]["mean"])


def test_nothing_is_opened_until_it_is_read(tmp_path):
    source = data.NpzShards(tmp_path / "nowhere", EXAMPLE)
    with pytest.raises(ValueError, match=r"no .npz files in .*nowhere.*jaxdiff encode"):
        len(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "must hold mean, label; it lacks mean"),
        ({"mean": np.zeros((2, 2, 2, 4))}, r"'mean' in .* must be float32\['N', 2, 2, 3\].*got float64\[2, 2, 2, 4\]"),
        ({"label": np.zeros(2)}, "'label' in .* must be int32"),
        ({"label": np.zeros(3, int)}, "equally many rows"),
    ],
)
def test_what_does_not_fit(tmp_path, change, message):
    arrays = {"mean": np.zeros((2, 2, 2, 3)), "label": np.zeros(2, int)} | change
    np.savez(tmp_path / "0.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        data.NpzShards(tmp_path, EXAMPLE)[0]


def test_compressed_files_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "0.npz", mean=np.zeros((2, 2, 2, 3)), label=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"compressed.*numpy\.savez"):
        len(data.NpzShards(tmp_path, EXAMPLE))


@pytest.mark.parametrize("name", ["missing.npz", "text.npz", "empty.npz", "cut.npz", "flipped.npz", "one.npy"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    """A table, a file of hints, and a shard, of which the bytes of the arrays are looked at later."""
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "good.npz", mean=np.zeros((2, 2, 2, 3)), label=np.zeros(2, int))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:90] + b"?" + whole[91:])
    np.save(tmp_path / "one.npy", np.zeros(3))
    path = tmp_path / name
    words = f"there is no file .*{name}" if name == "missing.npz" else f"cannot read .*{name} as an .npz file"
    for read in (data.load_embeddings, npz.map_npz) if name != "flipped.npz" else (data.load_embeddings,):
        with pytest.raises(ValueError, match=words):
            read(path)


def test_arrays_of_objects_and_single_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}, {}]))
    np.savez(tmp_path / "scalars.npz", a=np.float32(1))
    with pytest.raises(ValueError, match=r"cannot read .*objects\.npz as an .npz file"):
        data.load_embeddings(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="equally many rows"):
        data.load_embeddings(tmp_path / "scalars.npz")


def test_tables_have_equally_many_rows(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", a=np.arange(3), b=np.ones((3, 2)))
    assert {name: table.shape for name, table in data.load_embeddings(tmp_path / "good.npz").items()} == {
        "a": (3,),
        "b": (3, 2),
    }
    np.savez(tmp_path / "bad.npz", a=np.arange(3), b=np.ones((2, 3)))
    with pytest.raises(ValueError, match="equally many rows"):
        data.load_embeddings(tmp_path / "bad.npz")
