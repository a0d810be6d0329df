from functools import partial

import jax
import numpy as np
import pytest
from helpers.shapes import CLASSES, shapes
from helpers.shapes import fitted as fit_once

from jaxdiff.media import classifier
from jaxdiff.media.classifier import FittedClassifier, fit_classifier, load_classifier, save_classifier
from jaxdiff.metrics import accuracy
from jaxdiff.networks.classifier import Classifier


@pytest.fixture(scope="module")
def fitted():
    return fit_once()


@pytest.mark.slow
def test_it_learns_and_generalizes(fitted):
    x, label = shapes(150, 1)
    logits, features = fitted(x)
    assert accuracy(logits, label).overall > 0.97
    assert logits.shape == (150, CLASSES) and logits.dtype == np.float32
    assert features.shape == (150, 128) and features.dtype == np.float32


@pytest.mark.slow
def test_calls_are_the_networks_whatever_the_number_of_images(fitted, monkeypatch):
    monkeypatch.setattr(classifier, "_ROWS", 8)
    x, _ = shapes(19, 2)
    logits, features = fitted(x)
    want = jax.jit(Classifier(CLASSES).apply)({"params": fitted.params}, x)
    np.testing.assert_allclose(logits, want[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features, want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_seed_decides_everything(monkeypatch):
    monkeypatch.setattr(classifier, "Classifier", partial(Classifier, channels=(4,), features=8))
    x, label = shapes(30, 0)
    fit = partial(fit_classifier, x, label, num_classes=CLASSES, steps=2, batch_size=8)
    a, b = fit(seed=1).params, fit(seed=1).params
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_an_epoch_shows_each_image_once():
    index = np.concatenate(list(classifier._batches(10, 4, 5, seed=0)))
    assert sorted(index[:10]) == sorted(index[10:]) == list(range(10))
    other = np.concatenate(list(classifier._batches(10, 4, 5, seed=1)))
    assert index.tolist() != other.tolist()


def test_shifts_reach_each_neighbour_and_no_further():
    x = np.zeros((400, 5, 5, 1), np.float32)
    x[:, 2, 2] = 1.0
    moved = np.asarray(classifier._shift(x, jax.random.key(0)))[..., 0]
    np.testing.assert_array_equal(moved.sum((1, 2)), 1.0)
    seen = {tuple(np.argwhere(image)[0]) for image in moved}
    assert seen == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}


@pytest.mark.slow
def test_a_saved_classifier_comes_back(tmp_path, fitted):
    path = save_classifier(tmp_path / "deep" / "classifier.npz", fitted)
    x, _ = shapes(10, 3)
    for ours, theirs in zip(load_classifier(path)(x), fitted(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.name for p in path.parent.iterdir()] == ["classifier.npz"]


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused(tmp_path, fitted):
    with pytest.raises(ValueError, match=r"\.npz"):
        save_classifier(tmp_path / "a.bin", fitted)
    with pytest.raises(FileNotFoundError):
        load_classifier(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    whole = save_classifier(tmp_path / "whole.npz", fitted).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:2000])
    for name in ("text", "other", "cut"):
        with pytest.raises(ValueError, match="not a saved classifier"):
            load_classifier(tmp_path / f"{name}.npz")
    params = {**fitted.params, "hidden": {"kernel": np.zeros((5, 5)), "bias": np.zeros(5)}}
    old = save_classifier(tmp_path / "old.npz", FittedClassifier(params, fitted.shape))
    with pytest.raises(ValueError, match="hidden/bias, hidden/kernel differ"):
        load_classifier(old)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": 2}, r"0 \.\. 1, got 0 \.\. 2"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"batch_size": 0}, "batch_size"),
        ({"train_labels": np.zeros(3, np.int32)}, "30 integers"),
        ({"train_labels": np.zeros(30)}, "30 integers, got float64"),
        ({"train_images": np.zeros((30, 12, 12))}, "N, H, W, C"),
        ({"train_images": np.full((30, 12, 12, 1), np.nan)}, "not finite"),
    ],
)
def test_wrong_training_data_are_refused(change, message):
    x, label = shapes(30, 0)
    with pytest.raises(ValueError, match=message):
        fit_classifier(**({"train_images": x, "train_labels": label, "num_classes": CLASSES} | change))


@pytest.mark.slow
def test_images_of_another_shape_are_refused(fitted):
    with pytest.raises(ValueError, match=r"\(12, 12, 1\), got \(8, 8, 1\)"):
        fitted(np.zeros((2, 8, 8, 1)))
