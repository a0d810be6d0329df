"""The embedded set is Fashion-MNIST, and a wrong name says what would have been right."""

import gzip
import re

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.cli import encode
from jaxdiff.data import embed
from jaxdiff.data.sources import FORMS
from jaxdiff.options import SOURCES


@pytest.fixture(scope="module")
def train():
    return data.load_arrays(data.open_dataset("fashion_mnist"))


@pytest.fixture(scope="module")
def test():
    return data.load_arrays(data.open_dataset("fashion_mnist", "test"))


def test_embedded_shapes_and_class_counts(train, test):
    assert train["x"].shape == (10_000, 28, 28, 1) and test["x"].shape == (2_000, 28, 28, 1)
    assert train["x"].dtype == test["x"].dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(train["label"]), [1000] * 10)
    np.testing.assert_array_equal(np.bincount(test["label"]), [200] * 10)


def test_embedded_pixels_have_the_published_statistics(train, test):
    # Of the full training set, as everywhere in the field: mean 0.2860, standard deviation 0.3530.
    for split in (train, test):
        assert abs(split["x"].mean() / 255 - 0.2860) < 0.005
        assert abs(split["x"].std() / 255 - 0.3530) < 0.005


def test_embedded_images_are_clothes_with_their_labels(train):
    x, label = train["x"][..., 0] / 255, train["label"]
    names = data.open_dataset("fashion_mnist").class_names
    mean = {name: x[label == c].mean(0) for c, name in enumerate(names)}
    # Upright: sneakers are empty above, ankle boots are not; trousers have a gap between the legs below.
    assert mean["Sneaker"][:6].mean() < 0.1 * mean["Ankle boot"][:6].mean()
    legs = mean["Trouser"][20:26]
    assert legs[:, 13:15].mean() < 0.6 * legs[:, [9, 10, 17, 18]].mean()
    # Heels are on the right in this set; a mirrored copy would show the boot's shaft on the left.
    boot = mean["Ankle boot"][4:10]
    assert boot[:, 16:26].mean() > 2 * boot[:, 2:12].mean()


def test_embedded_splits_share_no_image(train, test):
    rows = [split["x"].reshape(len(split["x"]), -1) for split in (train, test)]
    assert not {r.tobytes() for r in rows[0]} & {r.tobytes() for r in rows[1]}


def test_embedded_source_is_random_access():
    source = data.open_dataset("fashion_mnist")
    assert source.shape == (28, 28, 1) and source.num_classes == len(source.class_names) == 10
    assert source.class_names[1] == "Trouser" and source.class_names[9] == "Ankle boot"
    example = source[3]
    assert example["x"].shape == source.shape and type(example["label"]) is int


def test_embedded_resized_and_in_rgb():
    source = data.open_dataset("fashion_mnist", "test", size=32, channels=3)
    assert source.shape == (32, 32, 3) and len(source) == 2000
    x = source[0]["x"]
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    assert abs(x.mean() - data.open_dataset("fashion_mnist", "test")[0]["x"].mean()) < 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion-mnist", r"allowed are .*tfds:NAME.*folder:PATH.*did you mean 'fashion_mnist'\?"),
        ("tfd:cifar10", r"did you mean 'tfds:cifar10'\?"),
        ("Folder:cats", r"did you mean 'folder:cats'\?"),
        ("tfds:", r"did you mean 'tfds:\.\.\.'\?"),
        ("imagenet", r"unknown data set 'imagenet': allowed are [^;]*$"),
        ("", "unknown data set ''"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        data.open_dataset(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, 'splits "train" and "test", got \'validation\''),
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"size": 2.5}, "size must be"),
        ({"channels": 4}, "channels must be 1, 3 or None, got 4"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.open_dataset("fashion_mnist", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 4, 4, 1), np.float32),), "x must be uint8"),
        ((np.zeros((2, 4, 4), np.uint8),), "x must be uint8"),
        ((np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int)), "go together, got num_classes=0"),
        ((np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), 1), "2 images need as many labels"),
        ((np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 2]), 2), r"labels must be in 0\.\.1, got 0\.\.2"),
    ],
)
def test_array_source_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.ArraySource(*arguments)


def test_read_idx_follows_the_header(tmp_path):
    path = tmp_path / "images.gz"
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    header = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + pixels.tobytes()))
    np.testing.assert_array_equal(embed.read_idx(path), pixels)
    path.write_bytes(gzip.compress(b"\x89PNG"))
    with pytest.raises(ValueError, match="not an idx file"):
        embed.read_idx(path)


def test_first_of_each_class_keeps_the_order():
    label = np.array([1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(embed.first_of_each_class(label, 2), [0, 1, 2, 4])


def test_a_prompt_says_each_class_and_nothing_last():
    assert data.class_prompts("a {} of {cat}, {}{0}", ["boot", "{}"]) == [
        "a boot of {cat}, boot{0}",
        "a {} of {cat}, {}{0}",
        "",
    ]
    with pytest.raises(ValueError, match="this data has none"):
        data.class_prompts("a {}", ())


def test_the_help_of_commands_names_every_source():
    for words in (SOURCES, encode.command.__doc__):
        assert set(re.findall('"(.+?)"', FORMS)) <= set(re.findall(r"[\w:]+", words))
