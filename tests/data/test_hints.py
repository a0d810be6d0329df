"""An image's hint is its own, goes the way of its image, and edges are where brightness changes."""

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import edges

pytestmark = pytest.mark.slow


def images(count=12):
    x = np.random.default_rng(0).integers(0, 256, (count, 4, 6, 1), np.uint8)
    return data.ArraySource(x, np.arange(count) % 3, 3)


def test_edges_of_a_plane_and_of_a_step():
    ramp = np.tile(np.arange(6, dtype=np.uint8) * 3, (4, 1))[..., None]
    np.testing.assert_array_equal(edges(ramp), np.full((4, 6, 3), 6, np.uint8))
    step = np.zeros((4, 6, 3), np.uint8)
    step[:, 3:] = 100  # half of it to each side, twice
    np.testing.assert_array_equal(edges(step)[..., 0], np.tile([0, 0, 100, 100, 0, 0], (4, 1)))
    step[:, 3:] = 255
    assert edges(step).max() == 255


@pytest.mark.parametrize("flip", [False, True])
def test_a_hint_goes_with_its_image(flip):
    source = images()
    hinted = data.Hinted(source, 255 - source.x)
    assert hinted.hint_shape == (4, 6, 1) and hinted.shape == (4, 6, 1) and len(hinted) == 12
    stream = data.batches(hinted, 8, seed=1, flip=flip)
    for _ in range(3):
        batch = next(stream)
        assert batch["hint"].dtype == np.float32
        np.testing.assert_allclose(batch["hint"], (1 - batch["x"]) / 2, atol=1e-6)
    stream.close()


def test_own_edges_and_a_hint_of_each_class():
    source = images()
    hinted = data.open_hints("edges", source)
    np.testing.assert_array_equal(hinted[5]["hint"], edges(source.x[5]))
    assert hinted.hint_shape == (4, 6, 3)
    numbers = np.zeros((12, 4, 6, 1), np.uint8) + source.label.astype(np.uint8)[:, None, None, None]
    found = data.Hinted(source, numbers).class_hints()
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 1, 2])


def test_a_low_resolution_is_what_a_source_of_that_size_has():
    large = data.open_dataset("fashion_mnist", "test")
    small, hinted = data.open_dataset("fashion_mnist", "test", size=14), data.low_resolution(large, 14)
    assert hinted.hint_shape == (14, 14, 1) and hinted.shape == (28, 28, 1)
    for i in (0, 7):
        np.testing.assert_array_equal(hinted[i]["hint"], small[i]["x"])
    shown = data.load_arrays(hinted, 4)
    np.testing.assert_array_equal(shown["hint"], data.load_arrays(small, 4)["x"])
    assert shown["hint"].dtype == np.uint8 and shown["x"].shape == (4, 28, 28, 1)


def test_a_file_of_hints(tmp_path):
    source = images()
    np.savez(tmp_path / "a.npz", hint=source.x)
    np.testing.assert_array_equal(data.open_hints(str(tmp_path / "a.npz"), source)[3]["hint"], source.x[3])
    np.savez(tmp_path / "b.npz", hints=source.x)
    with pytest.raises(ValueError, match='must hold "hint", got hints'):
        data.open_hints(str(tmp_path / "b.npz"), source)
    for name, words in (("edge", '"edges" or an .npz file, got .edge'), ("no.npz", "there is no file no.npz")):
        with pytest.raises(ValueError, match=words):
            data.open_hints(name, source)
    for wrong in (source.x[:5], source.x.astype(np.float32), source.x[..., 0]):
        with pytest.raises(ValueError, match=r"uint8\[12, H, W, C\]"):
            data.Hinted(source, wrong)
    with pytest.raises(ValueError, match="a broken picture is replaced by another"):
        data.Hinted(data.Skipping(source, 1), source.x)
