"""Captions that are found by pictures: in the report of compositions, and the model that finds them, in its file."""

from importlib import import_module

import numpy as np
import pytest

from jaxdiff.data import to_float
from jaxdiff.data.compositions import caption, plain, select
from jaxdiff.data.render import render
from jaxdiff.data.twemoji import load_twemoji
from jaxdiff.media import Samples, compositions
from jaxdiff.media.compositions import _asked, _measure
from jaxdiff.media.retrieval import Retriever, fit_retriever, load_retriever, save_retriever


def unit(x):
    flat = x.reshape(len(x), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def asked():
    """Captions of an evaluation of 200 and their true pictures."""
    each = [select(part, i) for part in _asked(200, "core") for i in range(100)]
    return [caption(c) for c in each], to_float(np.stack([render(c) for c in each]))


class Perfect:
    """Finds a caption by its true picture."""

    def __init__(self, captions, pictures):
        self.known = dict(zip(captions, unit(pictures), strict=True))

    def pictures(self, x):
        return unit(x)

    def captions(self, captions):
        return np.stack([self.known[each] for each in captions])


@pytest.mark.slow
def test_the_report_has_the_share_of_captions_that_are_found(asked):
    """Of true pictures all, also where the order is another; of half of them half; chance and true ones next to it."""
    captions, pictures = asked
    x = pictures.copy()
    x[:50] = pictures[50:100]  # the first half of the seen ones has the pictures of the second
    report = _measure(Samples(x, {}), subset="core", retriever=lambda: Perfect(captions, pictures))
    seen, held_out = (report.values["samples"][part]["caption of 100"] for part in ("seen", "held_out"))
    nearly = pytest.approx(1, abs=0.011)  # two captions may have one picture
    assert seen == {"right": pytest.approx(0.5, abs=0.03), "chance": 0.01, "rendered": nearly, "captions": 100}
    assert held_out["right"] == held_out["rendered"] == nearly
    assert "caption of 100" in report.text
    assert report.values["samples"]["seen"]["all"]["captions"] == 100  # the attributes' mean has no part in it


@pytest.mark.slow
def test_few_captions_need_no_model(asked):
    def refuse():
        raise AssertionError("fitted")

    x = asked[1][:4]
    report = _measure(Samples(np.concatenate([x, x]), {}), subset="core", retriever=refuse)
    assert "caption of 100" not in report.values["samples"]["seen"]


def test_copies_of_training_pictures_are_told_from_compositions_of_the_same_objects():
    """Half of these are pictures of training, a little noisy; the others halves of two of them side by side."""
    known = to_float(load_twemoji().x[[picture for picture, _ in plain("few")]])[:20]
    noise = 0.05 * np.random.default_rng(0).normal(size=known.shape).astype(np.float32)
    half = np.concatenate([known[:, :, :16], known[::-1, :, 16:]], axis=2)
    report = _measure(Samples(np.concatenate([known + noise, half]), {}), subset="few", retriever=None)
    assert report.values["copies"]["share"] == 0.5
    # What the grammar makes is moved, small or of another colour, but for a few captions such as "large egg".
    assert 0 <= report.values["copies"]["rendered"] < 0.2
    assert f"pictures: 50.0 %, of the grammar's own {100 * report.values['copies']['rendered']:.1f} %" in report.text


@pytest.mark.slow
def test_a_model_is_fitted_kept_and_read(tmp_path, monkeypatch):
    fitted = fit_retriever(subset="core", steps=2, batch_size=4)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    vectors = fitted.pictures(x), fitted.captions(["dog face", "a red pizza on the left"])
    assert vectors[0].shape == (3, 64) and vectors[1].shape == (2, 64)
    for each in vectors:
        np.testing.assert_allclose(np.linalg.norm(each, axis=1), 1, rtol=1e-5)
    path = save_retriever(tmp_path / "judge.npz", fitted)
    read = load_retriever(path)
    np.testing.assert_array_equal(read.pictures(x), vectors[0])
    np.testing.assert_array_equal(read.captions(["dog face", "a red pizza on the left"]), vectors[1])
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), got \(8, 8, 3\)"):
        read.pictures(x[:, :8, :8])
    with pytest.raises(ValueError, match="unknown word"):
        read.captions(["xylophonist"])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a saved image-text model"):
        load_retriever(tmp_path / "other.npz")
    # An evaluation reads it, and fits no other.
    monkeypatch.setattr(import_module("jaxdiff.media.compositions"), "fit_retriever", None)
    measure = compositions(subset="core").evaluator(tmp_path, None)
    assert isinstance(measure.keywords["retriever"](), Retriever)
