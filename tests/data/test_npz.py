"""Arrays of .npz files: every flip is found, and what a file says of its size is looked at before it is believed."""

import io
import zipfile

import jax
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import npz
from jaxdiff.data.npz import check_npz, map_npz, read_npz
from jaxdiff.faults import Damaged

ARRAYS = {
    "mean": np.random.default_rng(0).standard_normal((64, 32, 32)).astype(np.float32),
    "label": np.arange(64),
    "empty": np.zeros((0, 3)),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}
EXAMPLE = {"mean": jax.ShapeDtypeStruct((32, 32), np.float32)}


def test_what_is_written_is_read(tmp_path):
    for number, save in enumerate((np.savez, np.savez_compressed)):
        path = tmp_path / f"{number}.npz"
        save(path, **ARRAYS)
        got = read_npz(path)
        assert got.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(got[name], array)
            assert got[name].dtype == array.dtype
    maps, entries = map_npz(tmp_path / "0.npz")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(maps[name], array)
    check_npz(tmp_path / "0.npz", entries.values())


def test_every_flip_in_a_shard_is_found(tmp_path):
    """200 of 200, wherever in a file of 256 KiB they are; most are in the numbers, whose name is said."""
    rng, path = np.random.default_rng(0), tmp_path / "0.npz"
    np.savez(path, mean=ARRAYS["mean"])
    whole, named = path.read_bytes(), 0
    for _ in range(200):
        at = int(rng.integers(len(whole)))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"0\.npz") as error:
            data.NpzShards(tmp_path, EXAMPLE)[3]
        named += error.type is Damaged and "'mean'" in str(error.value)
    assert named >= 195


def test_a_file_is_compared_once_and_others_when_they_are_needed(tmp_path, monkeypatch):
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", mean=ARRAYS["mean"], unasked=ARRAYS["mean"])
    seen = []
    monkeypatch.setattr(
        "jaxdiff.data.shards.check_npz", lambda path, arrays: seen.append((path.name, [a.name for a in arrays]))
    )
    source = data.NpzShards(tmp_path, EXAMPLE)
    assert len(source) == 128 and not seen
    for index in (70, 71, 5, 6, 127):
        source[index]
    assert seen == [("1.npz", ["mean"]), ("0.npz", ["mean"])]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flip_in_a_table_is_damage(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, mean=ARRAYS["mean"])
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Damaged, match=r"a\.npz .*bytes of 'mean' are not those that were written"):
        data.load_embeddings(path)


def archive(path, shape, numbers, descr="|u1", name="hint.npy", head=None):
    """A compressed archive of one array, of which any size can be said."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open(name, "w", force_zip64=True) as stream:
        if head is None:
            np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
        else:
            stream.write(head)
        for part in numbers:
            stream.write(part)
    return path


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.npz", (2**22,), [bytes(2**22)])
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(npz, "FREE", 2**21)
    words = r"a\.npz as an \.npz file: its arrays have 4,194,\d+ bytes and it has \d,\d+: more than 100 times"
    with pytest.raises(ValueError, match=words):
        read_npz(path)
    monkeypatch.setattr(npz, "FREE", 2**23)  # so little is read, however well it is packed
    assert read_npz(path)["hint"].shape == (2**22,)


def long_header():
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (4,)})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"shape": (5,), "numbers": [b"1234"]}, "'hint' of uint8.5. would have 5 bytes"),
        ({"shape": (10**12,), "numbers": [b"1234"]}, "1,000,000,000,000 bytes"),
        ({"shape": (-4,), "numbers": [b"1234"]}, "'hint' of uint8.-4. would have"),
        ({"shape": (), "numbers": [b"1234"], "descr": "|V1000000000"}, "1,000,000,000 bytes"),
        ({"shape": (1,), "numbers": [b"12345678"], "descr": "|O"}, "object"),
        ({"shape": None, "numbers": [b"1234"], "head": long_header()}, "version .2, 0. of numpy's format"),
        ({"shape": (4,), "numbers": [b"1234"], "name": "hint.txt"}, "must hold arrays, each once"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(made, words, tmp_path):
    path = archive(tmp_path / "a.npz", **made)
    for read in (read_npz, map_npz):
        with pytest.raises(ValueError, match=rf"cannot read .*a\.npz as an \.npz file: .*{words}"):
            read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path):
    stored = io.BytesIO()
    np.save(stored, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for _ in range(2):
            file.writestr("a.npy", stored.getvalue())
    with pytest.raises(ValueError, match=r"arrays, each once, got 'a\.npy'"):
        read_npz(tmp_path / "a.npz")
