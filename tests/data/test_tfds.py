"""tensorflow-datasets' prepared sets are read without TensorFlow; what is not prepared says how to."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data

tfds = pytest.importorskip("tensorflow_datasets")


class TinyBlobs(tfds.core.GeneratorBasedBuilder):
    """Ten images that tell their own number; the label is its parity."""

    VERSION = tfds.core.Version("1.0.0")
    # Found only for metadata beside the code, of which there is none, through a package that may be missing.
    code_path = None
    image = tfds.features.Image(shape=(6, 6, 3))

    def features(self):
        return {
            "image": self.image,
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "weight": np.float32,
        }

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features()))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": png(np.full((6, 6, 3), 10 * i, np.uint8)), "label": i % 2, "weight": 0.5}


class TinyPoints(TinyBlobs):
    """The same without labels, as plain tensors, and under another name."""

    def features(self):
        return {"picture": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"picture": np.full((6, 6, 1), i, np.uint8)}


class TinyPhotos(TinyBlobs):
    """Images whose size is not fixed."""

    image = tfds.features.Image(shape=(None, None, 3))


class TinyNumbers(TinyBlobs):
    """No images at all."""

    def features(self):
        return {"number": np.int64}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"number": i}


class TinyCaptions(TinyBlobs):
    """Sequences of captions, two of image i if i is odd, and two other texts."""

    def features(self):
        text = tfds.features.Text()
        return {
            "image": self.image,
            "captions": tfds.features.Sequence(text),
            "title": text,
            "more": tfds.features.Sequence({"raw": text, "number": np.int64}),
        }

    def _generate_examples(self, count):
        for i in range(count):
            more = {"raw": [f"raw {i}"], "number": [i]}
            texts = [f"caption {i}", " ", f"café {i}"][: 1 + 2 * (i % 2)]
            yield (
                i,
                {"image": png(np.zeros((6, 6, 3), np.uint8)), "captions": texts, "title": "x" * (i != 1), "more": more},
            )


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyBlobs, TinyPoints, TinyPhotos, TinyNumbers, TinyCaptions):
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_labelled_set(data_dir):
    source = data.open_dataset("tfds:tiny_blobs", data_dir=data_dir)
    assert len(source) == 10 and source.shape == (6, 6, 3)
    assert source.num_classes == 2 and source.class_names == ("even", "odd")
    arrays = data.load_arrays(source)
    assert arrays["x"].dtype == np.uint8
    value = arrays["x"][:, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(value), 10 * np.arange(10))
    np.testing.assert_array_equal(arrays["label"], value // 10 % 2)
    assert set(source[0]) == {"x", "label"} and type(source[0]["label"]) is int
    assert "tensorflow" not in sys.modules


def test_splits_slices_and_versions(data_dir):
    assert len(data.open_dataset("tfds:tiny_blobs", "test", data_dir=data_dir)) == 4
    assert len(data.open_dataset("tfds:tiny_blobs:1.0.0", "train[:30%]", data_dir=data_dir)) == 3
    with pytest.raises(ValueError, match=r"'validation'.*train"):
        data.open_dataset("tfds:tiny_blobs", "validation", data_dir=data_dir)


def test_size_and_channels(data_dir):
    source = data.open_dataset("tfds:tiny_blobs", data_dir=data_dir, size=3, channels=1)
    assert source.shape == source[0]["x"].shape == (3, 3, 1)


def test_tensors_without_labels(data_dir):
    source = data.open_dataset("tfds:tiny_points", data_dir=data_dir)
    assert source.shape == (6, 6, 1) and source.num_classes == 0 and source.class_names == ()
    stream = data.batches(source, 10, seed=0)
    batch = next(stream)
    stream.close()
    assert set(batch) == {"x"}
    np.testing.assert_array_equal(np.sort(data.to_uint8(batch["x"])[:, 0, 0, 0]), np.arange(10))


def test_sets_of_many_sizes_need_one(data_dir):
    with pytest.raises(ValueError, match="differ in size: pass size="):
        data.open_dataset("tfds:tiny_photos", data_dir=data_dir)
    source = data.open_dataset("tfds:tiny_photos", data_dir=data_dir, size=4)
    assert source.shape == source[0]["x"].shape == (4, 4, 3)


def test_sets_without_images(data_dir):
    with pytest.raises(ValueError, match="no single image feature; its features are number"):
        data.open_dataset("tfds:tiny_numbers", data_dir=data_dir)


@pytest.mark.parametrize(
    ("name", "size", "shape", "classes"),
    [
        ("cifar10", None, (32, 32, 3), 10),
        ("imagenet_resized/64x64", None, (64, 64, 3), 1000),
        ("imagenet2012", 256, (256, 256, 3), 1000),
        ("celeb_a", 64, (64, 64, 3), 0),
    ],
)
def test_known_sets_describe_themselves_before_they_are_prepared(tmp_path, name, size, shape, classes):
    source = data.open_dataset(f"tfds:{name}", size=size, data_dir=str(tmp_path))
    assert source.shape == shape and source.num_classes == len(source.class_names) == classes
    for use in (len, lambda source: source[0], lambda source: data.batches(source, 2, seed=0)):
        with pytest.raises(ValueError, match="not prepared"):
            use(source)
    assert not list(tmp_path.iterdir())


def test_not_prepared_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"not prepared") as error:
        len(data.open_dataset("tfds:cifar10", data_dir=str(tmp_path)))
    for part in ("cifar10", "array_record", "download_and_prepare()", str(tmp_path), "pip install tensorflow"):
        assert part in str(error.value)


def test_unknown_set_has_a_hint(tmp_path):
    with pytest.raises(ValueError, match=r"no set 'cifr10'.*did you mean 'cifar10'"):
        data.open_dataset("tfds:cifr10", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cifar10:9.9.9", r"cannot be loaded at version 9\.9\.9, only: 3\.0\.2\.$"),
        ("cifar10/none", "BuilderConfig none not found"),
        ("imagenet_resized/7x7", "closely match: 16x16"),
        ("cifar10/x=1", "unexpected keyword argument"),
        ("cifar 10", "Parsing builder name string cifar 10 failed"),
    ],
)
def test_unknown_versions_and_configs(tmp_path, name, why):
    with pytest.raises(ValueError, match=rf"tensorflow-datasets has no '{name}': [^\n]*{why}") as found:
        data.open_dataset(f"tfds:{name}", data_dir=str(tmp_path))
    assert "\n" not in str(found.value)


def test_captions_are_a_feature_of_texts(data_dir):
    def captions(**options):
        source = data.open_dataset("tfds:tiny_captions", "test", data_dir=data_dir, **options)
        return [source[i].get("captions") for i in range(len(source))]

    found = captions(captions=True)
    assert sorted(found) == [("caption 0",), ("caption 1", "café 1"), ("caption 2",), ("caption 3", "café 3")]
    assert captions(captions="captions") == found and captions() == [None] * 4
    assert sorted(captions(captions="more/raw")) == [(f"raw {i}",) for i in range(4)]
    with pytest.raises(ValueError, match=r"example \d of tiny_captions, split test has no caption"):
        captions(captions="title")
    with pytest.raises(ValueError, match=r"no feature 'image' of captions; .*: captions, title, more/raw"):
        captions(captions="image")
    assert data.has_captions("tfds:tiny_captions", data_dir=data_dir)
    for name in ("tiny_blobs", "cifar10"):  # the texts of cifar10 are names of its images
        assert not data.has_captions(f"tfds:{name}", data_dir=data_dir)
    source = data.open_dataset("tfds:tiny_captions", data_dir=data_dir, captions=True)
    shown, held_out = data.preview_captions(source, 5)
    assert shown == [source[i]["captions"][0] for i in range(0, 10, 2)] and held_out == []
    with pytest.raises(ValueError, match="tiny_blobs has no feature of captions"):
        data.open_dataset("tfds:tiny_blobs", data_dir=data_dir, captions=True)
