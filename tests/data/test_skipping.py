"""Broken records are replaced by the same others whoever reads them, named, and counted."""

import pickle

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data.tfds import TfdsSource


@pytest.fixture
def folder(tmp_path):
    """Ten grey images of their own number; 3, 4 and 9 are no images."""
    for i in range(10):
        Image.fromarray(np.full((6, 6), i, np.uint8)).save(tmp_path / f"{i}.png")
    for i in (3, 4, 9):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def opened(folder, most=3):
    return data.Skipping(data.open_dataset(f"folder:{folder}", channels=1), most)


def test_the_next_whole_record_stands_for_a_broken_one(folder, capsys):
    source = opened(folder)
    assert [int(source[i]["x"][0, 0, 0]) for i in range(10)] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert [int(source[i]["x"][0, 0, 0]) for i in (9, 4, 3)] == [0, 5, 5]
    told = capsys.readouterr().err
    assert told.count("is skipped") == 3 and all(f"{i}.png" in told for i in (3, 4, 9))
    assert len(source) == 10 and source.shape == (6, 6, 1) and source.num_classes == 0 and source.class_names == ()


def test_the_first_record_may_be_broken(folder):
    (folder / "0.png").write_bytes(b"")
    for channels in (None, 1):
        source = data.Skipping(data.open_dataset(f"folder:{folder}", channels=channels), 4)
        assert source.shape == (6, 6, 1) and int(source[0]["x"][0, 0, 0]) == 1


def test_a_resumed_run_and_another_host_see_the_same(folder):
    whole = data.batches(opened(folder), 4, seed=1)
    want = [next(whole)["x"] for _ in range(6)]
    resumed = data.batches(pickle.loads(pickle.dumps(opened(folder))), 4, seed=1, start=3)
    other = data.batches(opened(folder), 4, seed=1, rows=[3, 1])
    for k in range(6):
        if k >= 3:
            np.testing.assert_array_equal(next(resumed)["x"], want[k])
        np.testing.assert_array_equal(next(other)["x"], want[k][[3, 1]])


def test_no_more_than_the_cap(folder):
    source = opened(folder, 2)
    source[3]
    with pytest.raises(ValueError, match=r"3 records can't be read, and 2 may be skipped: .*3\.png.*4\.png.*9\.png"):
        source[9]
    with pytest.raises(ValueError, match=r"3\.png"):
        opened(folder, 0)[3]
    with pytest.raises(ValueError, match="most must be an integer of at least 0"):
        opened(folder, -1)


def test_nothing_that_can_be_read(tmp_path):
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise ValueError(f"number {index}")

    with pytest.raises(ValueError, match="none of 3 records can be read: number 1; number 2; number 0"):
        data.Skipping(Broken(), 3)[1]


def test_an_empty_source_says_so():
    empty = data.ArraySource(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="which has 0 examples"):
        data.batches(empty, 1, seed=0)
    with pytest.raises(ValueError, match="has no examples"):
        data.load_arrays(empty)


def test_a_damaged_record_is_named():
    class Records(list):
        def __getitem__(self, index):
            raise RuntimeError("crc mismatch")

    source = TfdsSource.__new__(TfdsSource)
    source._name, source._records = "cifar10, split train", Records([1])
    with pytest.raises(ValueError, match="cannot read example 7 of cifar10, split train: crc mismatch"):
        source[7]
