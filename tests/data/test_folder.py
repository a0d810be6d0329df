"""Folders of images: sorted class subfolders, or none; bad files and folders are named in the error."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import folder


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
    source = data.open_dataset(f"folder:{classes}")
    assert source.class_names == ("cat", "dog") and source.num_classes == 2 and source.shape == (6, 6, 1)
    assert [(int(e["x"][0, 0, 0]), e["label"]) for e in (source[i] for i in range(len(source)))] == [
        (10, 0),
        (20, 0),
        (30, 1),
        (40, 1),
    ]


def test_what_is_hidden_holds_no_examples_at_any_depth(classes):
    for place in (".git", "cat/.ipynb_checkpoints", "dog/deep/.thumbnails/large", "dog/.hidden.d"):
        save(classes / place / "x.png", 99)
    save(classes / "dog" / "deep" / ".hidden.png", 99)
    source = data.open_dataset(f"folder:{classes}")
    assert [int(source[i]["x"][0, 0, 0]) for i in range(len(source))] == [10, 20, 30, 40]


def test_links_are_followed_and_lead_nowhere_twice(classes, tmp_path_factory):
    """A class and a folder in one that lie elsewhere; links back to a class, and to all of them, end there."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "a.png", 50)
    save(elsewhere / "more" / "b.png", 60)
    (classes / "eel").symlink_to(elsewhere)
    (classes / "cat" / "more").symlink_to(elsewhere / "more")
    (classes / "cat" / "itself").symlink_to(classes / "cat")
    (elsewhere / "more" / "back").symlink_to(elsewhere)
    source = data.open_dataset(f"folder:{classes}")
    found = [(int(source[i]["x"][0, 0, 0]), source[i]["label"]) for i in range(len(source))]
    # cat/more/b.png, then cat/more/back/a.png, where "more" is on the way already.
    assert found == [(10, 0), (60, 0), (50, 0), (20, 0), (30, 1), (40, 1), (50, 2), (60, 2)]
    (classes / "dog" / "lost.png").symlink_to(elsewhere / "nowhere.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*lost\.png.*No such file"):
        data.load_arrays(data.open_dataset(f"folder:{classes}"))


def test_without_subfolders_there_are_no_labels(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    source = data.open_dataset(f"folder:{tmp_path}")
    assert len(source) == 3 and source.num_classes == 0 and source.class_names == ()
    assert set(source[0]) == {"x"}
    stream = data.batches(source, 3, seed=0)
    assert set(next(stream)) == {"x"}
    stream.close()


def test_batches_of_a_folder(classes):
    source = data.open_dataset(f"folder:{classes}")
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
    assert data.open_dataset(folder)[0]["x"][0, 0, 0] == 1
    assert data.open_dataset(folder, "test")[0]["x"][0, 0, 0] == 2
    with pytest.raises(ValueError, match="has the splits test, train, got 'val'"):
        data.open_dataset(folder, "val")
    with pytest.raises(ValueError, match=r"got 'test': choose .*make the folders .*/cat/train and .*/cat/test"):
        data.open_dataset(f"folder:{classes / 'cat'}", "test")


def test_resize_and_channels(classes, monkeypatch):
    save(classes / "cat" / "wide.png", 50, (5, 9))
    with pytest.raises(ValueError, match=r"images of 6 x 6 and of 9 x 5 pixels lie in .*: pass size= \(--size\)"):
        data.open_dataset(f"folder:{classes}")
    with monkeypatch.context() as patch:  # in a folder of many pictures others are seen at the beginning
        patch.setattr(folder, "PROBES", 1)
        source = data.open_dataset(f"folder:{classes}")
    with pytest.raises(ValueError, match=r"wide\.png has shape \(5, 9, 1\), the first image .*pass size="):
        data.load_arrays(source)
    x = data.load_arrays(data.open_dataset(f"folder:{classes}", size=4, channels=3))["x"]
    assert x.shape == (5, 4, 4, 3)
    np.testing.assert_array_equal(x[:, 2, 2, 1], [10, 50, 20, 30, 40])


def test_colour_decides_for_rgb_unless_told(classes):
    save(classes / "dog" / "colour.png", 60, (6, 6, 3))
    assert data.open_dataset(f"folder:{classes}").shape == (6, 6, 3)
    assert data.open_dataset(f"folder:{classes}", channels=1).shape == (6, 6, 1)


def test_late_colour_in_a_grey_folder_is_not_lost_silently(tmp_path):
    for i in range(70):
        save(tmp_path / f"{i:02}.png", i)
    save(tmp_path / "01.png", 0, (6, 6, 3))
    source = data.open_dataset(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"01\.png: is in colour.*channels=3"):
        source[1]


def test_unreadable_files_are_named(classes):
    half = classes / "dog" / "b.png"
    save(half, np.random.default_rng(0).integers(256, size=(60, 60)), (60, 60))
    half.write_bytes(half.read_bytes()[:2000])
    source = data.open_dataset(f"folder:{classes}")
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png"):
        source[2]
    (classes / "cat" / "a.bmp").write_text("nothing")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.bmp"):
        data.open_dataset(f"folder:{classes}")[0]


def test_a_broken_file_is_passed_over_unless_all_are(classes):
    save(classes / "dog" / "b.png", 60, (6, 6, 3))
    (classes / "cat" / "a.bmp").write_text("nothing")
    for options in ({}, {"size": 6}, {"channels": 3}, {"size": 6, "channels": 3}):
        source = data.open_dataset(f"folder:{classes}", **options)
        assert source.shape == source[1]["x"].shape == (6, 6, 3)
    for file in source.files:
        Path(file).write_text("nothing")
    for options in ({}, {"size": 6}, {"channels": 3}):
        with pytest.raises(ValueError, match=r"cannot read the image .*a\.bmp"):
            data.open_dataset(f"folder:{classes}", **options)
    assert data.open_dataset(f"folder:{classes}", size=5, channels=1).shape == (5, 5, 1)  # which nothing is read for


def test_images_too_large_to_be_meant_are_named(classes, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.bmp: Image size \(36 pixels\) exceeds"):
        data.open_dataset(f"folder:{classes}")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.bmp: Image size"):
        data.open_dataset(f"folder:{classes}", channels=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # and of fewer it only warns
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match=r"a\.bmp: .*exceeds 30 pixels"):
        data.open_dataset(f"folder:{classes}")


ODD = {
    "palette.png": lambda image, path: image.quantize(8).save(path, transparency=3),
    "palette-alpha.png": lambda image, path: image.convert("RGBA").quantize(8).save(path),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "animated.gif": lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(180)]),
    "animated.webp": lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(180)]),
    "pages.tif": lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(180)]),
    "row.png": lambda image, path: image.crop((0, 0, 7, 1)).save(path),
    "column.png": lambda image, path: image.crop((0, 0, 1, 9)).save(path),
    "line.png": lambda image, path: image.resize((2000, 1)).save(path),
}
BAD = {
    "sixteen.png": lambda image, path: Image.fromarray(np.zeros((6, 6), np.uint16)).save(path),
    "floats.tif": lambda image, path: Image.fromarray(np.zeros((6, 6), np.float32)).save(path),
    "lab.tif": lambda image, path: image.convert("LAB").save(path),
    "page.png": lambda image, path: path.write_text("<html>"),
    "empty.jpg": lambda image, path: path.touch(),
    "half.webp": lambda image, path: (image.save(path), path.write_bytes(path.read_bytes()[:40])),
    "half.gif": lambda image, path: (image.save(path), path.write_bytes(path.read_bytes()[:40])),
    "half.tif": lambda image, path: (image.save(path), path.write_bytes(path.read_bytes()[:90])),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", [*ODD, *BAD])
def test_odd_images_are_read_or_named(name, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    (ODD | BAD)[name](image, tmp_path / name)
    for options in ({"size": 4, "channels": 3}, {"channels": 1}, {}):
        if name in ODD:
            x = data.open_dataset(f"folder:{tmp_path}", **options)[0]["x"]
            assert x.dtype == np.uint8 and x.shape[-1] == options.get("channels", 3)
            assert "size" not in options or x.shape == (4, 4, 3)
        else:
            with pytest.raises(ValueError, match=rf"cannot read the image .*{name}: "):
                data.open_dataset(f"folder:{tmp_path}", **options)[0]


def test_an_animation_is_its_first_picture(tmp_path):
    first, second = (Image.new("RGB", (5, 5), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "b.png", "c.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    source = data.open_dataset(f"folder:{tmp_path}", channels=3)
    for i in range(3):
        np.testing.assert_array_equal(source[i]["x"], np.broadcast_to([255, 0, 0], (5, 5, 3)))


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        data.open_dataset(f"folder:{tmp_path / 'missing'}")
    with pytest.raises(ValueError, match=r"no images in .*looked for .*\.png"):
        data.open_dataset(f"folder:{tmp_path}")
    save(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=r"classes without images in .*: dog"):
        data.open_dataset(f"folder:{tmp_path}")
    save(tmp_path / "loose.png", 1)
    with pytest.raises(ValueError, match="both directly and in subfolders"):
        data.open_dataset(f"folder:{tmp_path}")


def test_a_picture_alone(tmp_path):
    save(tmp_path / "grey.png", 70, (4, 6))
    assert data.read_image(tmp_path / "grey.png").tolist() == [[[70]] * 6] * 4
    assert data.read_image(tmp_path / "grey.png", size=2, channels=3).tolist() == [[[70] * 3] * 2] * 2
    save(tmp_path / "colour.png", 9, (2, 2, 3))
    assert data.read_image(tmp_path / "colour.png").shape == (2, 2, 3)
    (tmp_path / "a.txt").write_text("no picture")
    for name in ("a.txt", "none.png"):
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}"):
            data.read_image(tmp_path / name)
