"""continuous: the bound of Gaussian, mixed and discrete data, whose exact denoiser and likelihood are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, gaussian

from jaxdiff import Level
from jaxdiff.likelihood import continuous_bound
from jaxdiff.processes import EDM, VE, VP, Discrete, Flow, Learned, SubVP

M, C = 0.3, 0.6
DATA = gaussian([M], [[C**2]])
SHORT = Learned(jnp.zeros(3), 4.0, -4.0)
slow = pytest.mark.slow


def _snr(process, t):
    level = process(jnp.asarray(t, float))
    return (float(level.alpha) / float(level.sigma)) ** 2


CASES = {
    "vp time": (VP(), 1.0, 0.02, "time"),
    "edm lam": (EDM(), 80.0, 0.01, "lam"),
    "flow time": (Flow(), 1.0, 0.05, "time"),  # from alpha = 0, where lam is infinite and the prior free
    "learned time": (Learned(np.array([0.5, -0.7, 0.2]), 4.0, -4.0), 1.0, 0.0, "time"),
    "vp lam": (VP(), 1.0, 0.01, "lam"),
    "sub_vp lam": (SubVP(), 1.0, 0.05, "lam"),
    "ve time": (VE(), 1.0, 0.1, "time"),
    "table lam": (Discrete.linear(), 1000.0, 1.0, "lam"),
}
FAST = ("edm lam", "flow time")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=slow) for n in CASES])
def test_gaussian_data_pays_its_integral(name, x64):
    """1/2 int Var[x_0 | x_t] dSNR = log((1 + c^2 SNR_end) / (1 + c^2 SNR_start)) / 2 nats, by the ends alone."""
    process, start, end, over = CASES[name]
    n, low, high = 20_000, _snr(process, start), _snr(process, end)
    x0 = jnp.asarray(DATA.draw(np.random.default_rng(0), n))
    run = jax.jit(
        lambda process, x0, key: continuous_bound(
            DATA.denoise, process, x0, key, start=start, end=end, variable=over, num_times=8, bins=None
        )
    )
    got = run(process, x0, jax.random.key(0))
    nats = jax.tree.map(lambda part: np.asarray(part) * np.log(2), got)
    np.testing.assert_allclose(nats.prior, 0.5 * low * np.asarray(x0)[:, 0] ** 2, rtol=1e-6, atol=1e-15)
    expected = 0.5 * np.log((1 + C**2 * high) / (1 + C**2 * low))
    error = nats.diffusion.std() / np.sqrt(n)
    print("diffusion:", nats.diffusion.mean(), "+-", error, "expected:", expected)
    assert abs(nats.diffusion.mean() - expected) < 4 * error < 0.05 * expected
    # Against the exact -log p of the data: E total - h = log(1 + 1 / (c^2 SNR_end)) / 2, and what the prior costs.
    nll = 0.5 * np.log(2 * np.pi * np.e * C**2)
    gap = 0.5 * np.log1p(1 / (C**2 * high)) + 0.5 * low * (C**2 + M**2) - 0.5 * np.log1p(C**2 * low)
    assert gap > 0
    np.testing.assert_allclose(nats.total.mean() - nll, gap, atol=4 * nats.total.std() / np.sqrt(n))


@slow
def test_bound_of_a_mixture_is_above_its_likelihood_and_close(x64):
    """The model's x_0 is x_end / alpha and the decoder's noise once more: a density known exactly."""
    n, process = 8000, Learned(jnp.zeros(2), 3.5, -5.0)
    x0 = jnp.asarray(CLUSTERS.draw(np.random.default_rng(1), n))
    got = jax.jit(
        lambda x0, key: continuous_bound(CLUSTERS.denoise, process, x0, key, variable="lam", bins=None, num_times=50)
    )(x0, jax.random.key(1))
    s = jnp.exp(-3.5)
    nll = -CLUSTERS.log_density(x0, Level(s, jnp.ones_like(s), s * jnp.sqrt(2))) / (2 * np.log(2))
    gap = np.asarray(got.total - nll)
    error = gap.std() / np.sqrt(n)
    print("gap in bits/dim:", gap.mean(), "+-", error)
    # Above; with the exact denoiser and sharp ends the gap is s^2 of the clusters' variances (about 0.15) in nats.
    assert -4 * error < gap.mean() < 0.02 + 4 * error and error < 0.015


@pytest.mark.slow
def test_discrete_data_pays_its_entropy(x64):
    """The exact denoiser of four values with unequal chances: the bound's expectation is their entropy."""
    values, chance = np.linspace(-1, 1, 4), np.array([0.5, 0.1, 0.15, 0.25])

    def denoise(x, level):
        level = level.expand_to(x[..., None])
        away = (x[..., None] - level.alpha * values[None, None]) / level.sigma
        return jax.nn.softmax(np.log(chance)[None, None] - 0.5 * jnp.square(away), axis=-1) @ values

    n, process = 20_000, Learned(jnp.zeros(2), 2.5, -6.0)
    x0 = jnp.asarray(np.random.default_rng(2).choice(values, (n, 1), p=chance))
    got = jax.jit(lambda x0, key: continuous_bound(denoise, process, x0, key, variable="lam", num_times=12, bins=4))(
        x0, jax.random.key(2)
    )
    entropy, error = -np.sum(chance * np.log2(chance)), np.asarray(got.total).std() / np.sqrt(n)
    print("bound:", got.total.mean(), "+-", error, "entropy:", entropy)
    assert abs(got.total.mean() - entropy) < 4 * error + 1e-4 < 0.08


@pytest.mark.parametrize("s", [0.5, pytest.param(0.08, marks=slow)])
def test_decoder_is_the_noise_normalized_over_the_values(s, x64):
    """-log q(x | x_0) / sum_v q(x | v), averaged over x by quadrature."""
    bins, n = 5, 20_000
    values, (z, w) = np.linspace(-1, 1, bins), np.polynomial.hermite_e.hermegauss(60)
    got = jax.jit(lambda x0, key: continuous_bound(lambda x, level: x, EDM(), x0, key, start=2.0, end=s, bins=bins))(
        jnp.repeat(jnp.asarray(values), n)[:, None], jax.random.key(0)
    )
    each = np.asarray(got.decoder).reshape(bins, n)
    q = np.exp(-0.5 * ((values[:, None, None] + s * z[:, None] - values) / s) ** 2)  # [x_0, z, value]
    own = np.take_along_axis(q, np.arange(bins)[:, None, None], axis=2)[..., 0]
    expected = -np.log2(own / q.sum(-1)) @ (w / w.sum())
    np.testing.assert_array_less(abs(each.mean(1) - expected), 4 * each.std(1) / np.sqrt(n) + 1e-9)


@pytest.mark.slow
def test_a_learned_schedule_moves_the_variance_and_not_the_expectation(x64):
    """Gradients with respect to the schedule: true ones of each draw, zero on average, and not zero for the square."""
    n = 20_000
    x0 = jnp.asarray(DATA.draw(np.random.default_rng(3), n))
    logits = jnp.array([0.8, -0.5, 0.1])

    @jax.jit
    def run(logits, keys):
        def diffusion(logits, x0, key):
            process = Learned(logits, 4.0, -4.0)
            return continuous_bound(DATA.denoise, process, x0[None], key[None], variable="time", bins=None).diffusion[0]

        return jax.vmap(jax.value_and_grad(diffusion), (None, 0, 0))(logits, x0, keys)

    keys = jax.random.split(jax.random.key(4), n)
    value, grad = run(logits, keys)
    way = jnp.array([0.3, 1.0, -0.7])
    (up, _), (down, _) = (run(logits + h * way, keys) for h in (1e-6, -1e-6))
    # A draw whose t crosses a knot of the schedule on the way has no derivative there.
    differences, along = np.asarray((up - down) / 2e-6), np.asarray(grad @ way)
    np.testing.assert_allclose(along[: n // 10], differences[: n // 10], rtol=1e-5, atol=1e-6)
    for g in np.asarray(grad).T:
        assert abs(g.mean()) < 4 * g.std() / np.sqrt(n)
    square = 2 * np.asarray(value)[:, None] * np.asarray(grad)
    assert np.any(abs(square.mean(0)) > 6 * square.std(0) / np.sqrt(n))
    assert run._cache_size() == 1


def test_an_example_is_its_keys_alone_in_any_shape_and_no_knob_compiles():
    rng = np.random.default_rng(0)
    x0, keys = (
        jnp.asarray(rng.choice(np.linspace(-1, 1, 256), (4, 2, 3, 1)), jnp.float32),
        jax.random.split(jax.random.key(1), 4),
    )

    @jax.jit
    def run(process, x0, keys, end):
        return continuous_bound(lambda x, level: 0.5 * x, process, x0, keys, start=0.9, end=end, num_times=2)

    got, order = run(VP(), x0, keys, 0.01), np.array([2, 0, 3, 1])
    moved = run(VP(), x0[order], keys[order], 0.01)
    for part, other in zip(got, moved, strict=True):
        assert part.shape == (4,) and np.all(np.isfinite(part))
        np.testing.assert_allclose(other, part[order], rtol=1e-4)
    other = run(VP(0.2, 15.0), x0, keys, 0.02)
    assert run._cache_size() == 1 and not np.any(other.diffusion == got.diffusion)


def test_the_default_varies_least(x64):
    """Times uniform in lam and in t have one mean and another spread; lam's is the default."""
    x0 = jnp.asarray(DATA.draw(np.random.default_rng(5), 100))

    @jax.jit
    def run(keys):
        options = {"start": 20.0, "end": 0.2, "bins": None, "num_times": 4}

        def each(key):
            ways = ({}, {"variable": "lam"}, {"variable": "time"})
            bounds = (continuous_bound(DATA.denoise, EDM(), x0, key, **options, **way) for way in ways)
            return [jnp.mean(bound.diffusion) for bound in bounds]

        return jax.lax.map(each, keys)

    default, lam, time = map(np.asarray, run(jax.random.split(jax.random.key(6), 200)))
    print("lam:", lam.mean(), "+-", lam.std(), "time:", time.mean(), "+-", time.std())
    np.testing.assert_array_equal(default, lam)
    assert lam.std() < 0.5 * time.std()
    np.testing.assert_allclose(lam.mean(), time.mean(), atol=4 * time.std() / np.sqrt(200))


def test_data_off_its_bins_is_refused():
    half = lambda x, level: 0.5 * x  # noqa: E731

    def bound(x0, **bins):  # traced and not run: the data is a constant, and is looked at all the same
        return jax.eval_shape(lambda: continuous_bound(half, VE(), x0, jax.random.key(0), **bins).total)

    on = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3)) / 127.5 - 1, jnp.float32)
    for x0, bins in ((on, {}), (on.astype(jnp.bfloat16), {}), (jnp.linspace(-1, 1, 5)[None], {"bins": 5})):
        assert bound(x0, **bins).shape == x0.shape[:1]
    for x0, bins, got in ((on + 1 / 255, {}, "256 .* got"), (1.5 * on[:1], {}, "256"), (on, {"bins": 5}, "5 equally")):
        with pytest.raises(ValueError, match=f"{got}.*for continuous data use continuous_bound with bins=None"):
            bound(x0, **bins)
        assert bound(x0, bins=None).shape == x0.shape[:1]


def test_wrong_arguments():
    x0, key = jnp.zeros((2, 3)), jax.random.key(0)
    bound = lambda process=SHORT, key=key, **kw: continuous_bound(lambda x, level: x, process, x0, key, **kw)  # noqa: E731
    for wrong, match in (
        ({"process": VP()}, "sigma > 0, got end = 0.0"),
        ({"end": 1.0}, "end < start"),
        ({"process": Flow(), "end": 0.1, "variable": "lam"}, "alpha > 0 at the start"),
        ({"num_times": 0}, "at least 1, got 0"),
        ({"bins": 1}, "at least 2, got 1"),
        ({"variable": "sigma"}, "variable must be lam or time, got 'sigma'"),
        ({"process": EDM(), "end": 0.1}, "EDM has no noisiest time of its own: give start"),
        ({"key": 0}, r"jax\.random\.key"),
    ):
        with pytest.raises(ValueError, match=match):
            bound(**wrong)
    for denoise, match in ((lambda x, level: x[:, :1], "shape of x"), (lambda x, level: (x, x), "drop_variance")):
        with pytest.raises(ValueError, match=match):
            continuous_bound(denoise, SHORT, x0, key, bins=None)
    with pytest.raises(ValueError, match="sigma > 0"):
        jax.jit(lambda x0: continuous_bound(lambda x, level: x, VP(), x0, key))(x0)
