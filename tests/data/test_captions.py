"""Captions of images: every source has them for every image or says which lacks one, and the draw is the stream's."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data


def folder_of(path, names):
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(path / name)
    return path


def captions_of(source):
    return [source[i]["captions"] for i in range(len(source))]


def lengths(texts):
    """An encoder whose arrays identify the caption."""
    return {"tokens": np.array([[len(text)] for text in texts], np.int32)}


def test_text_files_next_to_pictures(tmp_path):
    folder_of(tmp_path, ["cat/a.png", "cat/b.jpg", "dog/c.png"])
    (tmp_path / "cat" / "a.txt").write_text("a cat\n\n  a grey cat \n")
    (tmp_path / "cat" / "b.txt").write_text("\ufeffcafé", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dog/c\.png has no caption"):
        data.open_dataset(f"folder:{tmp_path}", captions=True)
    (tmp_path / "dog" / "c.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"dog/c\.png has no caption"):
        data.open_dataset(f"folder:{tmp_path}", captions=True)
    (tmp_path / "dog" / "c.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"cannot read the captions in .*c\.txt"):
        data.open_dataset(f"folder:{tmp_path}", captions=True)
    (tmp_path / "dog" / "c.txt").write_text("dog")
    source = data.open_dataset(f"folder:{tmp_path}", captions=True)
    assert captions_of(source) == [("a cat", "a grey cat"), ("café",), ("dog",)]
    assert source[2]["label"] == 1
    assert "captions" not in data.open_dataset(f"folder:{tmp_path}")[0]


def test_metadata_of_a_folder(tmp_path):
    folder_of(tmp_path, ["cat/a.png", "dog/b.png"])
    lines = [
        {"file_name": "dog/b.png", "text": "dog", "other": 1},
        {"file_name": "./cat/a.png", "text": ["cat", " "], "caption": "chat"},
        {"file_name": "cat/a.png", "text": "grey cat"},
        {"file_name": "gone.png", "text": "gone"},
    ]
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\n\n".join(map(json.dumps, lines)))
    (tmp_path / "cat" / "a.txt").write_text("not this")
    name = f"folder:{tmp_path}"
    assert captions_of(data.open_dataset(name, captions=True)) == [("cat", "grey cat"), ("dog",)]
    with pytest.raises(ValueError, match=r"dog/b\.png in .*metadata\.jsonl has no caption"):
        data.open_dataset(name, captions="caption")
    for line, message in [
        ("{", "line 1 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("[1]", 'line 1 must be an object with "file_name"'),
        ('{"file_name": "a", "text": 3}', "line 1: 'text' must be a string or a list of strings, got 3"),
    ]:
        metadata.write_text(line)
        with pytest.raises(ValueError, match=message):
            data.open_dataset(name, captions=True)


def test_no_captions_anywhere(tmp_path):
    folder_of(tmp_path, ["a.png"])
    (tmp_path / "notes.txt").write_text("no caption of a picture")
    with pytest.raises(
        ValueError, match=r"no captions in .*looked for metadata\.jsonl, and for a\.txt next to .*a\.png"
    ):
        data.open_dataset(f"folder:{tmp_path}", captions=True)
    with pytest.raises(ValueError, match="fashion_mnist has classes, and no captions"):
        data.open_dataset("fashion_mnist", captions=True)
    x = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="image 1 has no caption"):
        data.ArraySource(x, captions=[("a",), ("",)])
    with pytest.raises(ValueError, match="2 images need as many tuples of captions, got 1"):
        data.ArraySource(x, captions=[("a",)])
    stream = data.batches(data.ArraySource(x), 2, seed=0, encode=lengths, prefetch=0)
    with pytest.raises(ValueError, match="captions=True"):
        next(stream)


def test_shards_with_captions(tmp_path):
    spec = {"mean": np.zeros(2, np.float32)}
    np.savez(tmp_path / "a.npz", mean=np.arange(4.0).reshape(2, 2), text=np.array([["cat", "grey cat"], ["dog", ""]]))
    np.savez(tmp_path / "b.npz", mean=np.ones((1, 2)), text=np.array(["bird"]))
    source = data.NpzShards(tmp_path, spec, captions="text")
    assert captions_of(source) == [("cat", "grey cat"), ("dog",), ("bird",)]
    assert set(data.NpzShards(tmp_path, spec)[0]) == {"mean"}
    for made in (source, pickle.loads(pickle.dumps(source)), data.Skipping(source, 1)):
        assert data.preview_captions(made, 2) == (["cat", "bird"], [])
        with pytest.raises(ValueError, match="not known beforehand"):
            data.captions_of(made)
    stream = data.batches(source, 3, seed=0, encode=lengths)
    batch = next(stream)
    stream.close()
    assert set(batch) == {"mean", "tokens"}
    # In other files: threads of the stream may still read those, which are mapped into memory.
    for name, text, match in [
        ("none", "", r"example 0 of .* has no caption"),
        ("number", 3, r"'text' in .*b\.npz must be strings \[N\] or \[N, K\], got int64\[1\]"),
    ]:
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "b.npz", mean=np.ones((1, 2)), text=np.array([text]))
        with pytest.raises(ValueError, match=match):
            data.NpzShards(tmp_path / name, spec, captions="text")[0]


@pytest.mark.slow
def test_one_of_the_captions_is_drawn_anew_in_each_epoch():
    """Caption j of image i has length 4 i + j + 1: batches of any host, size and start agree, and all are drawn."""
    captions = [tuple("x" * (4 * i + j + 1) for j in range(1 + i % 4)) for i in range(8)]
    source = data.ArraySource(np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8),
                              captions=captions)  # fmt: skip

    def draw(size, count, **options):
        stream = data.batches(source, size, seed=3, encode=lengths, **options)
        read = [next(stream) for _ in range(count)]
        stream.close()
        image = data.to_uint8(np.concatenate([batch["x"] for batch in read]))[:, 0, 0, 0]
        return image, np.concatenate([batch["tokens"] for batch in read])[:, 0]

    image, token = draw(8, 60)
    index = token - 1 - 4 * image
    assert (index >= 0).all() and (index <= image % 4).all()
    drawn = np.array([[np.sum(index[image == i] == j) for j in range(4)] for i in range(8)])
    assert (drawn.sum(1) == 60).all()
    expected = 60 / (1 + np.arange(8) % 4)[:, None]
    assert (np.abs(drawn - expected)[drawn > 0] < 5 * np.sqrt(expected.max())).all()
    assert ((drawn > 0).sum(1) == 1 + np.arange(8) % 4).all()
    # The 8-wide stream, its second half in batches of 4, and a host with half of the positions.
    np.testing.assert_array_equal(draw(4, 4, start=2), (image[8:24], token[8:24]))
    np.testing.assert_array_equal(draw(8, 2, rows=[1, 6]), (image[[1, 6, 9, 14]], token[[1, 6, 9, 14]]))
    # Flips do not depend on captions.
    np.testing.assert_array_equal(draw(8, 3, flip=True), (image[:24], token[:24]))


def test_captions_of_a_folder_are_foreseen(tmp_path):
    """Texts of no picture, and what is hidden, are none."""
    folder_of(tmp_path, ["cat/a.png", "dog/deep/b.png", "dog/.hidden/c.png"])
    for name in ("README.txt", "cat/notes.txt", "dog/.hidden/c.txt", "dog/deep/.b.txt"):
        (tmp_path / name).write_text("no caption")
    assert not data.has_captions(f"folder:{tmp_path}")
    (tmp_path / "dog" / "deep" / "b.txt").write_text("a dog")
    assert data.has_captions(f"folder:{tmp_path}")
    (tmp_path / "dog" / "deep" / "b.txt").unlink()
    (tmp_path / "metadata.jsonl").touch()
    assert data.has_captions(f"folder:{tmp_path}")


def test_lines_end_at_line_feeds_alone(tmp_path):
    folder_of(tmp_path, ["a.png"])
    text = "a\u2028b\x85c\fd\ve"
    (tmp_path / "a.txt").write_bytes(f"{text}\r\nsecond\rthird\n".encode())
    name = f"folder:{tmp_path}"
    assert data.open_dataset(name, captions=True).captions == [(text, "second", "third")]
    line = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert data.open_dataset(name, captions=True).captions == [(text,)]


def test_a_source_over_another_has_its_captions():
    class Previewed:
        previews = (SimpleNamespace(caption="seen", held_out=False), SimpleNamespace(caption="new", held_out=True))

    x = np.zeros((2, 4, 4, 1), np.uint8)
    captioned = data.ArraySource(x, captions=[("a",), ("b", "c")])
    for wrap in (lambda source: data.Skipping(source, 1), data.Hinted):
        assert data.captions_of(wrap(captioned)) == ["a", "b", "c"]
        assert data.preview_captions(wrap(captioned)) == (["a", "b", "c"], [])
        assert data.preview_captions(wrap(Previewed())) == (["seen"], ["new"])
        with pytest.raises(ValueError, match="not known beforehand"):
            data.captions_of(wrap(data.ArraySource(x)))
