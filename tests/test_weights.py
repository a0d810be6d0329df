"""weights: each against its own paper's formula, in the paper's own space of prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import parameterize, weights
from jaxdiff.levels import Level
from jaxdiff.processes import EDM, VE, VP, Cosine, Discrete, Flow, Laplace, Learned, Shifted, Sigmoid, SubVP

T = np.array([0.02, 0.2, 0.5, 0.8, 0.97])
ALPHA, SIGMA = np.cos(np.pi * T / 2), np.sin(np.pi * T / 2)
SNR = ALPHA**2 / SIGMA**2


def _level():
    return Level(*map(jnp.asarray, (T, ALPHA, SIGMA)))


def _on(row, weight):
    """What `weight`, of the error of x_0, is on the error of the row's F."""
    return np.asarray(weight(_level()) * row(_level()).out ** 2)


def test_simple_loss_is_1_on_eps(x64):
    np.testing.assert_allclose(_on(parameterize.eps, weights.simple), 1, rtol=1e-9)


def test_snr_plus_one_is_1_on_v(x64):
    np.testing.assert_allclose(_on(parameterize.v, weights.snr_plus_one), 1, rtol=1e-9)


def test_truncated_snr(x64):
    """Salimans and Ho 2022, section 4: max(|x - x_hat|^2, |eps - eps_hat|^2) = max(1, SNR) on x_0."""
    np.testing.assert_allclose(_on(parameterize.x0, weights.truncated_snr()), np.maximum(SNR, 1), rtol=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr(gamma, x64):
    """Hang et al. 2023: min(SNR, g) on x_0, min(SNR, g) / SNR on eps, min(SNR, g) / (SNR + 1) on v."""
    clipped, weight = np.minimum(SNR, gamma), weights.min_snr(gamma)
    np.testing.assert_allclose(_on(parameterize.x0, weight), clipped, rtol=1e-9)
    np.testing.assert_allclose(_on(parameterize.eps, weight), clipped / SNR, rtol=1e-9)
    np.testing.assert_allclose(_on(parameterize.v, weight), clipped / (SNR + 1), rtol=1e-9)


def test_soft_min_snr(x64):
    """Crowson et al. 2024, on x_0 with noise s = sigma / alpha: 1 / (s^2 + 1 / g); near min-SNR far from g."""
    soft = _on(parameterize.x0, weights.soft_min_snr(4.0))
    np.testing.assert_allclose(soft, 1 / ((SIGMA / ALPHA) ** 2 + 1 / 4), rtol=1e-9)
    np.testing.assert_allclose(soft, 4 * SNR / (4 + SNR), rtol=1e-9)
    assert np.all(soft <= np.minimum(SNR, 4))


@pytest.mark.parametrize(("gamma", "k"), [(1.0, 1.0), (0.5, 2.0)])
def test_p2(gamma, k, x64):
    """Choi et al. 2022, eq. 8: the simple loss on eps times 1 / (k + SNR)^gamma."""
    np.testing.assert_allclose(_on(parameterize.eps, weights.p2(gamma, k)), (k + SNR) ** -gamma, rtol=1e-9)


def test_sigmoid(x64):
    """Kingma and Gao 2023: sigmoid(-lambda + b) on eps, lambda the log-SNR."""
    lam = np.log(SNR)
    np.testing.assert_allclose(_on(parameterize.eps, weights.sigmoid(1.5)), 1 / (1 + np.exp(lam - 1.5)), rtol=1e-9)


def test_edm(x64):
    """Karras et al. 2022: lambda(sigma) = 1 / c_out(sigma)^2, in sigma / alpha."""
    data, s = 0.6, SIGMA / ALPHA
    published = (s**2 + data**2) / (s * data) ** 2
    np.testing.assert_allclose(_on(parameterize.x0, weights.edm(data)), published, rtol=1e-9)
    np.testing.assert_allclose(_on(parameterize.edm(data), weights.edm(data)), 1, rtol=1e-9)


@pytest.mark.parametrize(
    "process",
    [
        VP(),
        SubVP(),
        VE(),
        EDM(),
        Flow(),
        Cosine(),
        Shifted(Flow(), 3.0),
        Learned(np.array([0.1, 0.7, -1.0])),
        Laplace(),
    ],
)
def test_likelihood(process, x64):
    """-SNR'(t) / 2 by central differences; on the score, g^2 / 2 (Song et al. 2021)."""
    t, h = jnp.asarray(T), 1e-6

    @jax.jit
    def facts(t):
        out = parameterize.score(process(t)).out
        return process(t + h).snr - process(t - h).snr, weights.likelihood(process)(process(t)), out, process.sde(t)[1]

    rise, weight, out, g = facts(t)
    np.testing.assert_allclose(weight, -rise / (2 * h) / 2, rtol=1e-5)
    np.testing.assert_allclose(weight * out**2, g**2 / 2, rtol=1e-9)


def test_likelihood_of_a_table_counts_steps(x64):
    process, t, h = Discrete.linear(), jnp.asarray([3.5, 200.5, 999.5]), 1e-5
    rise, weight = jax.jit(
        lambda t: (process(t + h).snr - process(t - h).snr, weights.likelihood(process)(process(t)))
    )(t)
    np.testing.assert_allclose(weight, -rise / (2 * h) / 2, rtol=1e-5)


@pytest.mark.parametrize("process", [Flow(), Cosine(), Sigmoid(), Discrete.linear(16).zero_terminal_snr()])
def test_likelihood_is_the_slope_at_pure_noise(process, x64):
    """Of an SNR that is 0 there, by a one-sided difference: 0 where it falls as a square, and not for all processes."""
    last = jnp.asarray(getattr(process, "T", 1.0))
    weight = jax.jit(lambda t: weights.likelihood(process)(process(t)))
    before = process((1 - 1e-5) * last).snr / (1e-5 * last)
    np.testing.assert_allclose(weight(last), before / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weight(last.astype(jnp.float32)), before / 2, rtol=1e-3, atol=1e-4)
    assert (weight(last) > 0.1) == isinstance(process, Sigmoid)


def test_all_are_finite_under_jit_in_float32():
    level = VP()(jnp.array([1e-4, 0.5, 1.0]))
    made = [
        weights.simple, weights.snr_plus_one, weights.truncated_snr(), weights.min_snr(), weights.soft_min_snr(),
        weights.p2(), weights.sigmoid(), weights.edm(), weights.likelihood(VP()),
    ]  # fmt: skip
    assert len(made) == len(weights.__all__)
    for weight in made:
        got = jax.jit(weight)(level)
        assert got.shape == (3,) and got.dtype == jnp.float32 and np.all(np.isfinite(got)) and np.all(got > 0)
