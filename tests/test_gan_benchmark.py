"""`benchmarks/gan.py`: what it counts, and that its rivals have equal parameters."""

import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def page():
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module("gan_page")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def rivals(page):
    return page.rivals


def test_samples_of_the_modes(rivals):
    mode, good = rivals.nearest_modes(
        np.stack([rivals.CENTRES + np.array([2.9 * rivals.STD, 0]), rivals.CENTRES + 0.1]).reshape(-1, 2)
    )
    assert list(mode) == 2 * list(range(25)) and list(good) == 25 * [True] + 25 * [False]
    exact = np.repeat(rivals.CENTRES, 4, axis=0)
    assert rivals.misplaced(exact) == pytest.approx(0)
    assert rivals.misplaced(exact[:4]) == pytest.approx(24 / 25)  # a single mode
    assert rivals.misplaced(np.concatenate([exact, exact + 0.1])) == pytest.approx(1 / 2)
    np.testing.assert_allclose(np.var(rivals.CENTRES, axis=0), 1)


def test_principal_components_and_back(rivals):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(rivals.COMPONENTS, rivals.SIZE**2)) / 200
    pictures = (rng.normal(size=(300, rivals.COMPONENTS)) @ directions).reshape(-1, rivals.SIZE, rivals.SIZE)
    components = rivals.Components.of(pictures)
    coefficients = components.encode(pictures)
    assert np.mean(coefficients**2) == pytest.approx(1, rel=0.01)
    back = components.decode(coefficients.reshape(100, -1))
    np.testing.assert_allclose(back.transpose(0, 3, 1, 2).reshape(pictures.shape), pictures, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gaussians", "stacked"])
def test_rivals_have_equal_parameters(rivals, task):
    counts = {}
    for name in ("flow matching", "R3GAN"):  # the other two have the same networks
        phase = rivals.RIVALS[name](rivals.TASKS[task]()).phases[0]
        shapes = jax.eval_shape(lambda key, phase=phase: phase.start(key, None), jax.random.key(0))
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert max(counts.values()) <= 1.1 * min(counts.values()), counts


def test_verdicts_on_claims(page):
    def results(*, gan, flow=25):
        """All runs of this quality: (modes of 25, seconds a draw, misplaced samples as the loss falls)."""
        out = {}
        for task, rival, factor in product(page.SECONDS, page.rivals.RIVALS, page.FACTORS):
            modes, draw, misplaced = gan if rival.startswith("R3GAN") else (flow, 1.0, (0.5, 0.1))
            if factor == 3 and rival.startswith("R3GAN"):
                modes = modes // 2
            curve = [[loss, loss, x] for loss, x in zip((2.0, 1.0), misplaced, strict=True)]
            modes *= 1 if task == "gaussians" else 40
            out[f"{task}/{rival}/{factor}/0"] = {"covered": modes, "failed": modes < 12, "draw": draw, "curve": curve}
        return out

    verdicts = lambda results: [line.split("|")[2].strip() for line in page.claims(results)[2:9]]  # noqa: E731
    assert verdicts(results(gan=(20, 1 / 50, (0.1, 0.5)))) == ["yes", "yes", "yes", "yes", "yes", "yes", "no"]
    assert verdicts(results(gan=(25, 1 / 30, (0.5, 0.1)))) == ["no", "yes", "no", "yes", "yes", "no", "no"]
    assert verdicts(results(gan=(25, 1 / 30, (0.5, 0.1)), flow=20))[1] == "no"
    assert page.claims({}) == ["Not all rivals have been measured."]
