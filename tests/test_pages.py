"""docs/extend.md, inverse.md, likelihood.md, few_steps.md: blocks run as they are; docs/glossary.md fits a screen."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

DOCS = Path(__file__).parents[1] / "docs"


def run(page):
    scope: dict = {"__name__": "page"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
        for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S):
            exec(block, scope)
    return scope


@pytest.mark.slow
def test_parts_of_ones_own():
    scope = run("extend.md")
    process, t = scope["process"], jnp.array([0.1, 0.5, 0.9])
    level = process(t)
    np.testing.assert_allclose(process.time(level.lam), t, rtol=1e-5)
    np.testing.assert_allclose(level.alpha + level.sigma, 1, rtol=1e-6)
    f, g = process.sde(t)  # f = alpha'/alpha, g^2 = (sigma^2)' - 2 f sigma^2, for sigma = t^2
    np.testing.assert_allclose(f, -2 * t / (1 - t**2), rtol=1e-5)
    np.testing.assert_allclose(g**2, 4 * t**3 + 4 * t**5 / (1 - t**2), rtol=1e-4)


@pytest.mark.slow
def test_likelihood():
    scope = run("likelihood.md")
    x, exact = scope["x"], scope["exact"]
    level = scope["levels"].at(-1)
    std = np.hypot(0.5 * level.alpha, level.sigma)  # of the data at the last level
    log_prob = -0.5 * np.sum((x / std) ** 2, axis=1) - 2 * np.log(std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(exact.log_prob, log_prob, atol=2e-3)
    np.testing.assert_allclose(scope["bits"].shape, (4,))
    assert jd.likelihood.bits_per_dim(exact.log_prob, 2, bins=None).shape == (256,)


def test_the_glossary_fits_a_screen():
    lines = (DOCS / "glossary.md").read_text().splitlines()
    assert len(lines) <= 25 and all(line.count("|") == 3 for line in lines[4:] if line.startswith("|"))


@pytest.mark.slow
def test_a_few_step_model_in_ones_own_training():
    scope = run("few_steps.md")
    assert int(scope["state"].step) == 1 and int(scope["metrics"]["skipped"]) == 0
    assert scope["x"].shape == (8, 2) and bool(np.isfinite(scope["x"]).all())


@pytest.mark.slow
def test_inverse_problems():
    scope = run("inverse.md")
    x, y, known = (np.asarray(scope[name]) for name in ("x", "y", "known"))
    assert x.shape == (4, 8, 8, 1)
    # The data is N(0, I): known pixels are y / (1 + 0.05^2) with a standard deviation of 0.05, the others new.
    away = (x - y)[np.broadcast_to(known > 0, x.shape)]
    assert abs(away.std() - 0.05) < 0.015 and 0.7 < x[np.broadcast_to(known == 0, x.shape)].std() < 1.3
