"""How samples are shown and saved, and what is refused before there are any."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.shapes import fitted, shapes
from PIL import Image

from jaxdiff import conditions, data, media
from jaxdiff.media import Medium, Samples, classifier


def test_images_go_by_the_suffix_with_a_column_for_each_class(tmp_path):
    medium = media.images((2, 2, 1))
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 2, 2, 1)
    samples = Samples(x, {"label": np.arange(6) % 3, "hint": np.zeros((6, 2, 2))}, choices=3)
    medium.save(tmp_path / "a.png", samples)
    assert Image.open(tmp_path / "a.png").size == (3 * 4 - 2, 2 * 4 - 2)
    medium.save(tmp_path / "b.png", samples._replace(choices=12))
    assert Image.open(tmp_path / "b.png").size == (6 * 4 - 2, 2)  # no empty columns
    medium.save(tmp_path / "a.npz", samples)
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays) == ["label", "x"] and np.array_equal(arrays["x"], x)
    medium.save(tmp_path / "a", samples)
    assert len(list((tmp_path / "a").iterdir())) == 6


def test_latents_have_false_colours_in_pictures_alone(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 2, 2, 4)).astype(np.float32)
    medium = media.latents((2, 2, 4))
    medium.save(tmp_path / "a.png", Samples(x, {}))
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.png"))[:, :2], np.rint((x[0, ..., :3] + 1) * 127.5)
    )
    medium.save(tmp_path / "a.npz", Samples(x, {}))
    assert np.load(tmp_path / "a.npz")["x"].shape == (1, 2, 2, 4)
    media.latents((2, 2, 2)).save(tmp_path / "b.png", Samples(x[..., :2], {}))
    assert Image.open(tmp_path / "b.png").mode == "L"


def test_points_show_where_they_come_from_and_end(tmp_path):
    path = np.array([[[-2.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]]])  # from the left over the centre to the upper right
    media.points().save(tmp_path / "a.png", Samples(path[-1], {}, path=path))
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (800, 800, 3)
    assert tuple(pixels[400, 100]) == (240, 140, 40) and tuple(pixels[250, 550]) == (40, 90, 200)
    assert tuple(pixels[400, 250]) == (190, 190, 190) and tuple(pixels[550, 550]) == (255, 255, 255)
    with pytest.raises(ValueError, match="not finite"):
        media.points().save(tmp_path / "b.png", Samples(path[-1], {}, path=path * np.nan))
    assert not (tmp_path / "b.png").exists()


def test_samples_say_their_shapes():
    samples = Samples(np.zeros((4, 2), np.float32), {"label": np.arange(4, dtype=np.int32)})
    assert repr(samples) == "Samples(x: float32[4, 2], label: int32[4])"


def test_what_cannot_be_shown_or_measured_is_refused(tmp_path):
    for shape in ((2,), (4, 4), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"images have a shape \(height, width, 1 or 3\), got .*media.points"):
            media.images(shape)
    assert media.images((4, 4, 4), decode=lambda params, x: x[..., :3]).shape == (4, 4, 4)
    with pytest.raises(ValueError, match="needs an experiment with classes"):
        media.images((28, 28, 1), source="fashion_mnist").evaluator(tmp_path, conditions.none())
    assert media.images((28, 28, 1)).evaluator is None
    medium = Medium((3,), lambda path, samples: None)
    for field, value, words in (
        ("shape", (0,), "medium.shape must be an integer of at least 1, got 0"),
        ("suffixes", (), 'medium.suffixes must be like ".png"'),
        ("suffixes", ("png",), 'medium.suffixes must be like ".png"'),
        ("last", 0, "medium.last must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(medium, **{field: value})


@pytest.mark.slow
def test_images_are_measured_by_the_runs_classifier(tmp_path, monkeypatch):
    """Fitted to the training data the first time, and kept; the classes' names are told."""
    sets = {split: shapes(n, seed) for split, n, seed in (("train", 600, 0), ("validation", 300, 1))}

    def open_source(name, split, *, size, channels):
        assert (name, size, channels) == ("bars", 12, 1)
        if split not in sets:
            raise ValueError(f"no split {split}")
        x, label = sets[split]
        return data.ArraySource(data.to_uint8(x), label, 3)

    fits = []
    monkeypatch.setattr(data, "open_dataset", open_source)
    monkeypatch.setattr(classifier, "fit_classifier", lambda *args, **_: fits.append(args) or fitted())
    medium = media.images((12, 12, 1), source="bars")
    condition = conditions.label(3, ("top", "bottom", "upright"))
    x, label = shapes(90, 2)
    for wrong in (0, 1):
        report = medium.evaluator(tmp_path, condition)(Samples(x, {"label": (label + wrong) % 3}, 3))
        assert (report.values["samples"]["accuracy"] > 0.9) == (not wrong)
    assert report.values["class_names"] == ["top", "bottom", "upright"] and "upright" in report.text
    with pytest.raises(ValueError, match="the test set has 0 of 'none'"):  # before a classifier is fitted
        medium.evaluator(tmp_path / "other", conditions.label(4, (*condition.names, "none")))
    sets.pop("validation")
    with pytest.raises(ValueError, match="no split test"):
        medium.evaluator(tmp_path, condition)
    assert len(fits) == 1 and (tmp_path / "judge.npz").exists()
