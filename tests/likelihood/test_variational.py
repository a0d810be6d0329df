"""variational: the bound and its terms against closed forms computed independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff.likelihood import discretized_normal_nll, normal_kl, variational_bound, variational_term
from jaxdiff.processes import VP, Discrete

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
    if variance == "large":  # Ho et al.'s code: np.append(posterior_variance[1], betas[1:])
        large = np.append(_posterior_var(2), BETAS[1:])[t - 1]
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
    """Every t of a table, with KL and decoder written out; frac 0 is the small variance, frac 1 is beta."""
    x0 = GRID[np.array([[0, 3, 100, 255], [128, 7, 250, 40], [60, 61, 62, 63], [255, 0, 0, 1]])]
    x0_hat, t = 0.2, np.array([1, 2, 3, 4])

    def denoise(x, level):
        x0 = jnp.full_like(x, x0_hat)
        return (x0, jnp.full_like(x, frac)) if variance == "learned" else x0

    eps = jnp.asarray(np.random.default_rng(0).normal(size=x0.shape))
    got = jax.jit(lambda *args: variational_term(denoise, TABLE, *args, variance=variance))(x0, eps, t)
    expected = [_expected_term(int(s), row, x0_hat, variance, frac) for s, row in zip(t, x0, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    if variance != "learned":  # that of a network which has one counts nothing
        pair = lambda x, level: (denoise(x, level), x)  # noqa: E731
        np.testing.assert_allclose(variational_term(pair, TABLE, x0, eps, t, variance=variance), got, rtol=1e-9)


def test_the_sum_of_the_terms_of_gaussian_data():
    """With the exact denoiser: sum over t > 1 of (SNR_{t-1} - SNR_t) Var[x_0 | x_t] / 2, and of many steps the integral

    log((1 + c^2 SNR_1) / (1 + c^2 SNR_T)) / 2 (Kingma et al. 2021, eq. 13 and 17).
    """
    process, c, n = Discrete.linear(), 0.5, 512
    snr = np.square(process.alpha[1:] / process.sigma[1:])
    terms = (snr[:-1] - snr[1:]) / 2 * c**2 / (1 + c**2 * snr[1:])

    def denoise(x, level):
        level = level.expand_to(x)
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


@pytest.mark.slow
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


# The whole bound


@pytest.mark.parametrize("variance", ["learned", pytest.param("small", marks=pytest.mark.slow)])
def test_bound_is_the_papers_sum(variance, x64):
    """A constant prediction makes every term a formula, whatever the noise; the rest is the prior's KL."""
    x0, frac = GRID[np.array([[0, 3, 100, 255], [128, 7, 250, 40]])], 0.3 if variance == "learned" else 0.0
    denoise = lambda x, level: (0.2 + 0 * x, frac + 0 * x) if variance == "learned" else 0.2 + 0 * x  # noqa: E731
    run = jax.jit(lambda x0, key: variational_bound(denoise, TABLE, x0, key, variance=variance))
    got = run(jnp.asarray(x0), jax.random.key(0))
    prior = np.mean(0.5 * (ABAR[4] * x0**2 + (1 - ABAR[4]) - 1 - np.log(1 - ABAR[4])), axis=1) / np.log(2)
    terms = np.stack([_expected_term(t, x0, 0.2, variance, frac) for t in (1, 2, 3, 4)], axis=1)
    np.testing.assert_allclose(got.prior, prior, rtol=1e-9)
    np.testing.assert_allclose(got.terms, terms, rtol=1e-6)
    np.testing.assert_allclose(got.total, prior + terms.sum(1), rtol=1e-6)


class Linear:
    """The chain of a linear denoiser x0_hat = gain x + shift, exact for N(m, c^2): its bound and likelihood by hand."""

    def __init__(self, variance, m=0.1, c=0.3):
        t = np.arange(1, 5)
        self.s = np.sqrt(1 - ABAR[1:])
        self.gain = np.sqrt(ABAR[1:]) * c**2 / (ABAR[1:] * c**2 + self.s**2)
        self.shift = m * (1 - self.gain * np.sqrt(ABAR[1:]))
        self.pull = np.sqrt(ABAR[:-1]) * BETAS / (1 - ABAR[1:])
        self.keep = np.sqrt(1 - BETAS) * (1 - ABAR[:-1]) / (1 - ABAR[1:])
        self.small = np.array([_posterior_var(max(i, 2)) for i in t])
        self.var = self.small if variance == "small" else np.append(self.small[0], BETAS[1:])

    def denoise(self, x, level):
        i = jnp.asarray(level.t) - 1
        return jnp.asarray(self.gain)[i] * x + jnp.asarray(self.shift)[i]

    def nll(self, x0):
        mean, var = 0.0, 1.0
        for i in (3, 2, 1, 0):
            slope = self.keep[i] + self.pull[i] * self.gain[i]
            mean, var = slope * mean + self.pull[i] * self.shift[i], slope**2 * var + self.var[i]
        normal = stats.norm(mean, np.sqrt(var))
        return -np.log(normal.cdf(x0 + 1 / 255) - normal.cdf(x0 - 1 / 255)) / np.log(2)

    def terms(self, x0):
        """E over x_t of L_0..L_3, [B, 4] in bits."""
        miss = (1 - self.gain * np.sqrt(ABAR[1:])) * x0[:, None] - self.shift
        square = miss**2 + (self.gain * self.s) ** 2
        kl = 0.5 * (np.log(self.var / self.small) + (self.small + self.pull**2 * square) / self.var - 1)
        z, w = np.polynomial.hermite_e.hermegauss(40)
        mean = self.gain[0] * (np.sqrt(ABAR[1]) * x0[:, None] + self.s[0] * z) + self.shift[0]
        low, high = ((x0[:, None] + side - mean) / np.sqrt(self.var[0]) for side in (-1 / 255, 1 / 255))
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # the nearer tail keeps its digits
        low, high = stats.norm.logcdf(low), stats.norm.logcdf(high)
        kl[:, 0] = -(high + np.log1p(-np.exp(low - high))) @ (w / w.sum())
        return kl / np.log(2)


@pytest.mark.parametrize("variance", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_bound_of_gaussian_data_is_above_its_likelihood_by_the_expected_gap(variance, x64):
    chain, x0, n = Linear(variance), GRID[[90, 128, 140, 170]], 4000
    run = jax.jit(lambda x0, key: variational_bound(chain.denoise, TABLE, x0, key, variance=variance))
    got = run(jnp.repeat(jnp.asarray(x0), n)[:, None], jax.random.key(0))
    each = np.asarray(got.terms).reshape(4, n, 4)
    expected = chain.terms(x0)
    np.testing.assert_array_less(abs(each.mean(1) - expected), 4 * each.std(1) / np.sqrt(n) + 1e-12)
    gap = np.asarray(got.total).reshape(4, n).mean(1) - chain.nll(x0)
    exact_gap = np.asarray(got.prior).reshape(4, n)[:, 0] + expected.sum(1) - chain.nll(x0)
    print("gap in bits:", gap, "expected:", exact_gap)
    assert np.all(exact_gap > 0) and np.all(gap > 0)
    np.testing.assert_allclose(gap, exact_gap, atol=4 * np.asarray(got.total).reshape(4, n).std(1).max() / np.sqrt(n))


@pytest.mark.slow
def test_bound_of_an_example_is_its_keys_alone_and_compiles_once(x64):
    rng = np.random.default_rng(0)
    x0, keys = jnp.asarray(rng.choice(GRID, (4, 3, 2))), jax.random.split(jax.random.key(1), 4)

    @jax.jit
    def run(a, x0, keys):
        def total(a):
            bound = variational_bound(lambda x, level: (a * x, 0.5 + 0 * a * x), TABLE, x0, keys)
            return jnp.sum(bound.total), bound

        return jax.value_and_grad(total, has_aux=True)(a)

    (_, bound), grad = run(0.6, x0, keys)
    order = np.array([2, 0, 3, 1])
    (_, moved), _ = run(0.6, x0[order], keys[order])
    np.testing.assert_allclose(moved.total, bound.total[order], rtol=1e-12)
    (up, _), _ = run(0.6 + 1e-6, x0, keys)
    (down, _), _ = run(0.6 - 1e-6, x0, keys)
    np.testing.assert_allclose(grad, (up - down) / 2e-6, rtol=1e-6)
    assert run._cache_size() == 1 and bound.terms.shape == (4, 4)


def test_program_of_the_bound_does_not_grow_with_T():
    def size(T):
        process, x0 = Discrete.linear(T), jnp.zeros((2, 3))
        bound = lambda x0: variational_bound(lambda x, level: x, process, x0, jax.random.key(0), variance="small")  # noqa: E731
        return len(str(jax.make_jaxpr(bound)(x0)).splitlines())

    assert size(10) == size(1000)


def test_wrong_arguments_of_the_bound():
    x0, key = jnp.ones((2, 3)), jax.random.key(0)
    bound = lambda process, key=key, x0=x0, **kw: variational_bound(lambda x, level: x, process, x0, key, **kw)  # noqa: E731
    for process in (VP(), Discrete.from_betas([0.1])):
        with pytest.raises(ValueError, match="a table of at least two betas"):
            bound(process)
    with pytest.raises(ValueError, match="learned, got 'middle'"):
        bound(TABLE, variance="middle")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        bound(TABLE, bins=1)
    with pytest.raises(ValueError, match=r"on 256 equally spaced values from -1 to 1, got 0\.1234"):
        bound(TABLE, x0=0.1234 * x0)
    with pytest.raises(ValueError, match="x0 must be an array of floating-point numbers, got uint8"):
        bound(TABLE, x0=x0.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"jax\.random\.key"):
        bound(TABLE, 0)
