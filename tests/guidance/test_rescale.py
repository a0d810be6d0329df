"""Guidance rescale: its limits, and the formula on what the network predicts."""

import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import Level, guidance

pytestmark = pytest.mark.usefixtures("x64")
AT = Level(*map(np.float64, (0.3, 0.8, 0.6)))
X = np.random.default_rng(0).normal(size=(3, 4, 5))


def other(x, level):
    return 0.5 * np.sin(x)


def guide(cond):
    return guidance.cfg(cond, other, 4.0)


GUIDED = guide(rational)


def test_phi_goes_from_the_guided_to_the_conditionals_std():
    guided, cond = (np.asarray(d(X, AT)) for d in (GUIDED, rational))
    np.testing.assert_allclose(guidance.rescale(guide, rational, 0.0)(X, AT), guided, rtol=1e-14)
    full = np.asarray(guidance.rescale(guide, rational, 1.0)(X, AT))
    np.testing.assert_allclose(full.std(axis=(1, 2)), cond.std(axis=(1, 2)), rtol=1e-12)
    assert not np.allclose(guided.std(axis=(1, 2)), cond.std(axis=(1, 2)), rtol=0.1)
    half = guidance.rescale(guide, rational, np.array([0.0, 0.5, 1.0]))(X, AT)
    np.testing.assert_allclose(half, [guided[0], (guided[1] + full[1]) / 2, full[2]], rtol=1e-12)
    np.testing.assert_allclose(guidance.rescale(lambda cond: cond, rational, 0.7)(X, AT), cond, rtol=1e-12)


@pytest.mark.parametrize("row", ["eps", "v", "velocity"])
def test_the_std_is_that_of_the_named_prediction(row):
    row = getattr(jd.parameterize, row)
    guided, cond = (np.asarray(jd.parameterize.target(row, d(X, AT), X, AT)) for d in (GUIDED, rational))
    stds = [np.std(F, axis=(1, 2), keepdims=True) for F in (cond, guided)]
    expected = 0.7 * guided * stds[0] / stds[1] + 0.3 * guided
    out = guidance.rescale(guide, rational, 0.7, row)(X, AT)
    np.testing.assert_allclose(jd.parameterize.target(row, out, X, AT), expected, rtol=1e-10, atol=1e-12)


def test_a_constant_has_no_std_to_rescale():
    flat = lambda x, level: np.ones_like(x)  # noqa: E731
    np.testing.assert_array_equal(guidance.rescale(lambda cond: flat, rational, 1.0)(X, AT), 1)


def test_another_share_is_refused():
    for phi in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"phi must be a finite number in \[0, 1\]"):
            guidance.rescale(guide, rational, phi)


def test_a_guided_denoiser_in_place_of_the_guidance_is_refused():
    with pytest.raises(ValueError, match="guide must be a function of the conditional denoiser"):
        guidance.rescale(GUIDED, rational, 0.7)
    with pytest.raises(ValueError, match=r"guide\(cond\) must be a denoiser"):
        guidance.rescale(lambda cond: None, rational, 0.7)


def test_the_conditional_denoiser_is_evaluated_once():
    calls = []

    def cond(x, level):
        calls.append(x)
        return rational(x, level)

    guidance.rescale(guide, cond, 0.7)(X, AT)
    assert len(calls) == 1
