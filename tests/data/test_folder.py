"""Folders of images: sorted class subfolders, or none; bad files and folders are named in the error."""

import itertools

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data


def save(path, value, shape=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path):
    """Two classes made in the wrong order, one nested deeper, and files that are no images."""
    save(tmp_path / "dog" / "b.png", 30)
    save(tmp_path / "dog" / "deep" / "c.PNG", 40)
    save(tmp_path / "cat" / "z.png", 20)
    save(tmp_path / "cat" / "a.bmp", 10)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_sorted_names_are_labels(classes):
    source = data.open_source(f"folder:{classes}")
    assert source.class_names == ("cat", "dog") and source.num_classes == 2 and source.shape == (6, 6, 1)
    assert [(int(e["x"][0, 0, 0]), e["label"]) for e in (source[i] for i in range(len(source)))] == [
        (10, 0),
        (20, 0),
        (30, 1),
        (40, 1),
    ]


def test_without_subfolders_there_are_no_labels(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    source = data.open_source(f"folder:{tmp_path}")
    assert len(source) == 3 and source.num_classes == 0 and source.class_names == ()
    assert set(source[0]) == {"x"}
    stream = data.batches(source, 3, seed=0)
    assert set(next(stream)) == {"x"}
    stream.close()


def test_batches_of_a_folder(classes):
    source = data.open_source(f"folder:{classes}")
    stream = data.batches(source, 2, seed=0)
    batches = list(itertools.islice(stream, 2))
    stream.close()
    x = data.to_uint8(np.concatenate([b["x"] for b in batches]))[:, 0, 0, 0]
    label = np.concatenate([b["label"] for b in batches])
    np.testing.assert_array_equal(np.sort(x), [10, 20, 30, 40])
    np.testing.assert_array_equal(label, (x > 20).astype(int))


def test_splits_are_subfolders(classes):
    save(classes / "all" / "train" / "cat" / "a.png", 1)
    save(classes / "all" / "test" / "cat" / "b.png", 2)
    folder = f"folder:{classes / 'all'}"
    assert data.open_source(folder)[0]["x"][0, 0, 0] == 1
    assert data.open_source(folder, "test")[0]["x"][0, 0, 0] == 2
    with pytest.raises(ValueError, match="has the splits test, train, got 'val'"):
        data.open_source(folder, "val")
    with pytest.raises(ValueError, match="has the splits train, got 'test'"):
        data.open_source(f"folder:{classes / 'cat'}", "test")


def test_resize_and_channels(classes):
    save(classes / "cat" / "wide.png", 50, (5, 9))
    with pytest.raises(ValueError, match=r"wide\.png has shape \(5, 9, 1\), the first image .*pass size="):
        data.load_arrays(data.open_source(f"folder:{classes}"))
    x = data.load_arrays(data.open_source(f"folder:{classes}", size=4, channels=3))["x"]
    assert x.shape == (5, 4, 4, 3)
    np.testing.assert_array_equal(x[:, 2, 2, 1], [10, 50, 20, 30, 40])


def test_colour_decides_for_rgb_unless_told(classes):
    save(classes / "dog" / "colour.png", 60, (6, 6, 3))
    assert data.open_source(f"folder:{classes}").shape == (6, 6, 3)
    assert data.open_source(f"folder:{classes}", channels=1).shape == (6, 6, 1)


def test_late_colour_in_a_grey_folder_is_not_lost_silently(tmp_path):
    for i in range(70):
        save(tmp_path / f"{i:02}.png", i)
    save(tmp_path / "01.png", 0, (6, 6, 3))
    source = data.open_source(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"01\.png: is in colour.*channels=3"):
        source[1]


def test_unreadable_files_are_named(classes):
    half = classes / "dog" / "b.png"
    save(half, np.random.default_rng(0).integers(256, size=(60, 60)), (60, 60))
    half.write_bytes(half.read_bytes()[:2000])
    source = data.open_source(f"folder:{classes}")
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png"):
        source[2]
    (classes / "cat" / "a.bmp").write_text("nothing")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.bmp"):
        data.open_source(f"folder:{classes}")


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        data.open_source(f"folder:{tmp_path / 'missing'}")
    with pytest.raises(ValueError, match=r"no images in .*looked for .*\.png"):
        data.open_source(f"folder:{tmp_path}")
    save(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=r"classes without images in .*: dog"):
        data.open_source(f"folder:{tmp_path}")
    save(tmp_path / "loose.png", 1)
    with pytest.raises(ValueError, match="both directly and in subfolders"):
        data.open_source(f"folder:{tmp_path}")
