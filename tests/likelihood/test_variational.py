"""likelihood: the bound's terms against closed forms computed independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff.likelihood import discretized_normal_nll, normal_kl, variational_term
from jaxdiff.processes import Discrete

BETAS = np.array([0.02, 0.1, 0.3, 0.5])
ABAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
TABLE = Discrete.from_betas(BETAS)
GRID = np.linspace(-1, 1, 256)


def test_normal_kl_is_the_integral(x64):
    mean, std, mean_hat, std_hat = 0.3, 0.7, -0.2, 1.1
    x = np.linspace(-12, 12, 200_001)
    p = stats.norm(mean, std)
    integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - stats.norm(mean_hat, std_hat).logpdf(x)), x)
    got = normal_kl(*(jnp.asarray(n) for n in (mean, std, mean_hat, std_hat)))
    np.testing.assert_allclose(got, integral, rtol=1e-8)
    assert normal_kl(*(jnp.asarray(n) for n in (mean, std, mean, std))) == 0


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.9, 0.02), (-1.3, 0.1), (3.0, 0.01), (0.1, 1e-3), (0.0, 30.0)])
def test_decoder_is_a_distribution(mean, std, x64):
    """Over the 256 values it sums to 1, and each value has the mass that Phi gives its bin."""
    nll = discretized_normal_nll(jnp.asarray(GRID), jnp.asarray(mean), jnp.asarray(std))
    np.testing.assert_allclose(np.exp(-nll).sum(), 1, rtol=1e-9)
    edges = np.concatenate([[-np.inf], (GRID[1:] + GRID[:-1]) / 2, [np.inf]])
    z = (edges - mean) / std
    upper = z[:-1] > 0  # Phi of the nearer tail, so that the reference keeps its digits
    mass = np.where(upper, stats.norm.sf(z[:-1]) - stats.norm.sf(z[1:]), stats.norm.cdf(z[1:]) - stats.norm.cdf(z[:-1]))
    seen = mass > 1e-290
    np.testing.assert_allclose(nll[seen], -np.log(mass[seen]), rtol=1e-7, atol=1e-12)
    assert np.isfinite(nll).all()


def test_decoder_in_float32_is_finite_with_its_gradient():
    """A thousand standard deviations away too, where a difference of two cdfs is 0."""
    x = jnp.asarray(GRID, jnp.float32)
    nll_of = jax.jit(discretized_normal_nll)
    grad_of = jax.jit(jax.grad(lambda m, s: jnp.sum(discretized_normal_nll(x, m, s)), (0, 1)))
    for mean, std in ((0.0, 1e-3), (50.0, 0.01), (-50.0, 0.01), (0.3, 1.0)):
        nll = nll_of(x, jnp.float32(mean), jnp.float32(std))
        assert np.isfinite(nll).all() and np.all(nll >= 0)
        assert all(np.isfinite(grad_of(jnp.float32(mean), jnp.float32(std))))
    np.testing.assert_allclose(np.exp(-nll_of(x, jnp.float32(0.2), jnp.float32(0.1))).sum(), 1, rtol=1e-4)


def test_other_numbers_of_bins(x64):
    nll = discretized_normal_nll(jnp.linspace(-1, 1, 4), jnp.asarray(0.1), jnp.asarray(0.4), bins=4)
    edges = stats.norm(0.1, 0.4).cdf([-np.inf, -2 / 3, 0, 2 / 3, np.inf])
    np.testing.assert_allclose(np.exp(-nll), np.diff(edges), rtol=1e-9)


def _posterior_var(t):  # beta-tilde of Ho et al. 2020, eq. 7
    return (1 - ABAR[t - 1]) / (1 - ABAR[t]) * BETAS[t - 1]


def _expected_term(t, x0, x0_hat, variance, frac):
    """L_{t-1} in bits: a network whose x0_hat is a constant makes it independent of eps."""
    coefficient = np.sqrt(ABAR[t - 1]) * BETAS[t - 1] / (1 - ABAR[t])
    small, large = _posterior_var(max(t, 2)), BETAS[t - 1]  # Nichol and Dhariwal clip beta-tilde_1 to beta-tilde_2
    var = np.exp(frac * np.log(large) + (1 - frac) * np.log(small))
    if t == 1:
        half = 1 / 255
        low = np.where(x0 < -0.999, -np.inf, x0 - half)
        high = np.where(x0 > 0.999, np.inf, x0 + half)
        normal = stats.norm(x0_hat, np.sqrt(var))
        return np.mean(-np.log(normal.cdf(high) - normal.cdf(low)), axis=-1) / np.log(2)
    gap = coefficient * (x0 - x0_hat)
    return np.mean(0.5 * (np.log(var / small) + (small + gap**2) / var - 1), axis=-1) / np.log(2)


@pytest.mark.parametrize(
    ("variance", "frac"), [("small", 0.0), ("large", 1.0), ("learned", 0.0), ("learned", 1.0), ("learned", 0.3)]
)
def test_terms_are_the_papers(variance, frac, x64):
    """Every t of a table, with KL and decoder written out; frac 0 is the small variance and frac 1 the large."""
    x0 = GRID[np.array([[0, 3, 100, 255], [128, 7, 250, 40], [60, 61, 62, 63], [255, 0, 0, 1]])]
    x0_hat, t = 0.2, np.array([1, 2, 3, 4])

    def denoise(x, level):
        x0 = jnp.full_like(x, x0_hat)
        return (x0, jnp.full_like(x, frac)) if variance == "learned" else x0

    eps = jnp.asarray(np.random.default_rng(0).normal(size=x0.shape))
    got = jax.jit(lambda *args: variational_term(denoise, TABLE, *args, variance=variance))(x0, eps, t)
    expected = [_expected_term(int(s), row, x0_hat, variance, frac) for s, row in zip(t, x0, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_sum_of_the_terms_of_gaussian_data():
    """With the exact denoiser: sum over t > 1 of (SNR_{t-1} - SNR_t) Var[x_0 | x_t] / 2, and of many steps the integral

    log((1 + c^2 SNR_1) / (1 + c^2 SNR_T)) / 2 (Kingma et al. 2021, eq. 13 and 17).
    """
    process, c, n = Discrete.linear(), 0.5, 512
    snr = np.square(process.alpha[1:] / process.sigma[1:])
    terms = (snr[:-1] - snr[1:]) / 2 * c**2 / (1 + c**2 * snr[1:])

    def denoise(x, level):
        level = level.like(x)
        return level.alpha * c**2 / (level.alpha**2 * c**2 + level.sigma**2) * x

    x0, eps = jax.random.normal(jax.random.key(0), (2, 999, n))
    got = jax.jit(lambda x0, eps, t: variational_term(denoise, process, x0, eps, t, variance="small"))(
        c * x0, eps, jnp.arange(2, 1001)
    )
    error = 4 * np.sqrt(np.sum(terms**2) * 2 / n)
    assert abs(float(got.sum()) * np.log(2) - terms.sum()) < error < 0.02 * terms.sum() + error
    integral = np.log((1 + c**2 * snr[0]) / (1 + c**2 * snr[-1])) / 2
    assert integral < terms.sum() < 1.2 * integral  # a bound: from above, and of few wide first steps


def test_per_example_and_any_shape():
    denoise = lambda x, level: 0.5 * x  # noqa: E731
    x0, eps = jnp.zeros((3, 2, 2, 1)), jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    t = jnp.array([1, 2, 4])
    terms = jax.jit(lambda x0, eps, t: variational_term(denoise, TABLE, x0, eps, t, variance="small"))
    batch = terms(x0, eps, t)
    flat = terms(x0.reshape(3, 4), eps.reshape(3, 4), t)
    np.testing.assert_allclose(batch, flat, rtol=1e-6)
    one = terms(x0[1:2], eps[1:2], t[1:2])
    np.testing.assert_allclose(one, batch[1:2], rtol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_gradients_are_finite_at_every_t(variance):
    """At t = 1 the KL, and elsewhere the decoder, is computed and thrown away: neither may leave a NaN."""
    tables = (TABLE, Discrete.linear(), Discrete.cosine(), Discrete.linear().zero_terminal_snr())
    for process in tables[1:] if variance == "learned" else tables[:1]:
        t = jnp.array([1, 2, process.T // 2, process.T])
        x0 = jnp.asarray(np.random.default_rng(0).choice(GRID, (4, 3)), jnp.float32)

        def total(a, f, process=process, t=t, x0=x0):
            denoise = lambda x, level: (a * x, f + 0 * x) if variance == "learned" else a * x  # noqa: E731
            eps = jax.random.normal(jax.random.key(0), x0.shape)
            return jnp.sum(variational_term(denoise, process, x0, eps, t, variance=variance))

        value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(jnp.float32(0.5), jnp.float32(0.5))
        assert np.isfinite(value) and all(np.isfinite(grads))


def test_unknown_variance():
    with pytest.raises(ValueError, match="learned, got 'middle'"):
        variational_term(lambda x, level: x, TABLE, jnp.zeros((1, 1)), jnp.zeros((1, 1)), 1, variance="middle")
