"""sde: a mixture's score and its derivative; each SDE's moments; the probability flow; Langevin's stationary law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, gaussian

from jaxdiff import Level, sde
from jaxdiff.processes import EDM, VE, VP, Cosine, Discrete, Flow, Learned, Sigmoid, SubVP

LEVEL = Level(*(np.array(n) for n in (0.5, 0.8, 0.6)))
# name: (process, two times between its ends, the clean one first)
PROCESSES = {
    "vp": (VP(), 0.1, 0.9),
    "sub_vp": (SubVP(), 0.1, 0.9),
    "ve": (VE(0.1, 10.0), 0.1, 0.9),
    "edm": (EDM(), 0.2, 3.0),
    "flow": (Flow(), 0.1, 0.9),
    "cosine": (Cosine(), 0.1, 0.9),
    "sigmoid": (Sigmoid(), 0.1, 0.9),
    "learned": (Learned(np.array([0.3, -0.4])), 0.51, 0.98),  # inside one piece, for the integrals below
    "table": (Discrete.linear(50, 0.01, 0.2), 10.05, 10.95),
}
EACH = pytest.mark.parametrize(
    "name", [n if n in ("vp", "edm", "flow") else pytest.param(n, marks=pytest.mark.slow) for n in PROCESSES]
)


def _points(n=6):
    x, v = np.random.default_rng(0).normal(size=(2, n, 2))
    return jnp.asarray(x), jnp.asarray(v)


def test_score_and_jacobian_are_the_mixtures(x64):
    x, v = _points()
    levels = Level(*(jnp.linspace(*ends, 6) for ends in ((0, 1), (1.0, 0.3), (0.2, 2.0))))  # one per example
    np.testing.assert_allclose(sde.score(CLUSTERS.denoise)(x, levels), CLUSTERS.score(x, levels), rtol=1e-9)
    h = 1e-5

    def slope(f):
        return (f(x + h * v, levels) - f(x - h * v, levels)) / (2 * h)

    score, along = jax.jit(lambda x, v: sde.score_jvp(CLUSTERS.denoise, x, levels, v))(x, v)
    np.testing.assert_allclose(score, CLUSTERS.score(x, levels), rtol=1e-9)
    np.testing.assert_allclose(along, slope(CLUSTERS.score), rtol=1e-6, atol=1e-8)
    x0, moved = sde.jvp(CLUSTERS.denoise, x, levels, v)
    np.testing.assert_allclose(x0, CLUSTERS.denoise(x, levels), rtol=1e-12)
    np.testing.assert_allclose(moved, slope(CLUSTERS.denoise), rtol=1e-6, atol=1e-8)
    at = levels.expand_to(x)
    np.testing.assert_allclose(along, (at.alpha * moved - v) / at.sigma**2, rtol=1e-9)


def _integrate(slope, y, ts):
    """dy/dt = slope(t, y) along times ts by Runge-Kutta 4, in one scan."""

    def step(y, ends):
        t, h = ends[0], ends[1] - ends[0]
        k1 = slope(t, y)
        k2 = slope(t + h / 2, y + h / 2 * k1)
        k3 = slope(t + h / 2, y + h / 2 * k2)
        k4 = slope(t + h, y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, y, (ts[:-1], ts[1:]))[0]


M, C = 0.7, 0.5
DATA = gaussian([M], [[C**2]])


def _moments(process, t):
    level = process(jnp.asarray(t))
    return np.array([float(level.alpha) * M, (float(level.alpha) * C) ** 2 + float(level.sigma) ** 2])


def _carried(equation, moments, ts):
    """Mean and variance under a linear SDE: m' = drift(m), v' = 2 drift' v + diffusion^2 (backwards: - diffusion^2)."""
    way = jnp.sign(ts[-1] - ts[0])

    def slope(t, y):
        drift = lambda m: equation.drift(m[None, None], t)[0, 0]  # noqa: E731
        value, gain = jax.value_and_grad(drift)(y[0])
        return jnp.stack([value, 2 * gain * y[1] + way * jnp.square(equation.diffusion(t))])

    return jax.jit(lambda y: _integrate(slope, y, ts))(jnp.asarray(moments))


@EACH
@pytest.mark.slow
def test_each_sde_carries_the_processs_moments_forward_and_back(name, x64):
    """Gaussian data, any share of the noise: forward from the clean time, in reverse from the noisy one."""
    process, clean, noisy = PROCESSES[name]
    ts = jnp.linspace(clean, noisy, 401)
    start, end = (_moments(process, t) for t in (clean, noisy))
    np.testing.assert_allclose(_carried(sde.forward(process), start, ts), end, rtol=1e-6)
    for tau in (0.0, 0.6, 1.0) if name == "vp" else (1.0,):
        back = _carried(sde.reverse(process, DATA.denoise, tau=tau), end, ts[::-1])
        np.testing.assert_allclose(back, start, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "edm", "flow", "table"])
def test_probability_flow_is_the_derivative_of_the_exact_map(name, x64):
    process, clean, noisy = PROCESSES[name]
    x, _ = _points()
    t, h = jnp.asarray(0.5 * (clean + noisy)), 1e-5
    flow = sde.probability_flow(process, BLOB.denoise)
    got = jax.jit(flow)(x, t)
    ahead, behind = (BLOB.flow(x, process(t), process(t + s * h)) for s in (1, -1))
    np.testing.assert_allclose(got, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    f, g = process.sde(t)
    formula = f * x - 0.5 * g**2 * BLOB.score(x, process(t))
    np.testing.assert_allclose(got, formula, rtol=1e-9, atol=1e-12)
    none = sde.reverse(process, BLOB.denoise, tau=0.0)
    np.testing.assert_allclose(none.drift(x, t), got, rtol=1e-12)
    assert none.diffusion(t) == 0
    each = jnp.broadcast_to(t, x.shape[:1])  # one time per example
    np.testing.assert_allclose(
        sde.reverse(process, BLOB.denoise).drift(x, each), 2 * got - f * x, rtol=1e-9, atol=1e-12
    )


def test_probability_flow_is_finite_from_pure_noise():
    """Flow at t = 1, where f and g are infinite: eps - E[x_0], with its gradient."""
    x, _ = _points()
    x = x.astype(jnp.float32)
    flow = sde.probability_flow(Flow(), BLOB.denoise)
    np.testing.assert_allclose(flow(x, 1.0), x - jnp.asarray(BLOB.means, jnp.float32), rtol=1e-5)
    grads = jax.grad(lambda x, t: jnp.sum(flow(x, t)), (0, 1))(x, jnp.float32(1.0))
    assert all(np.all(np.isfinite(grad)) for grad in grads)


@pytest.mark.slow
def test_langevin_has_its_stationary_law():
    """Of N(m, c^2), step e: variance c^2 / (1 - e / (4 c^2)); by its keys alone, the step's size traced."""
    n, level = 4000, jax.tree.map(jnp.float32, LEVEL)
    mean, var = LEVEL.alpha * M, (LEVEL.alpha * C) ** 2 + LEVEL.sigma**2
    x, keys = jnp.zeros((n, 1)), jax.random.split(jax.random.key(0), n)
    score = lambda x: sde.score(DATA.denoise)(x, level)  # noqa: E731
    run = jax.jit(lambda x, keys, step: sde.langevin(score, x, keys, step_size=step, steps=60))
    for step in (0.2, 0.9):
        out = np.asarray(run(x, keys, step), np.float64)
        expected = var / (1 - step / (4 * var))
        print("step", step, "variance", out.var(), "expected", expected)
        assert abs(out.mean() - mean) < 4 * np.sqrt(expected / n)
        assert abs(out.var() / expected - 1) < 4 * np.sqrt(2 / n)
    order = np.arange(n)[::-1]
    np.testing.assert_allclose(run(x, keys[order], 0.9), out[order], rtol=1e-5, atol=1e-6)
    sizes = jnp.where(jnp.arange(n) % 2 == 0, 0.2, 0.9)  # one size per example
    mixed = jax.jit(lambda sizes: sde.langevin(score, x, keys, step_size=sizes, steps=60))(sizes)
    np.testing.assert_allclose(mixed[1::2], out[1::2], rtol=1e-5, atol=1e-6)
    assert run._cache_size() == 1


def test_wrong_arguments():
    x, key = jnp.zeros((2, 1)), jax.random.key(0)
    for wrong, match in (
        (lambda: sde.langevin(jnp.negative, x, key, step_size=0.0, steps=1), "positive, got 0.0"),
        (lambda: sde.langevin(jnp.negative, x, key, step_size=0.1, steps=-1), "at least 0, got -1"),
        (lambda: sde.langevin(jnp.negative, x, 0, step_size=0.1, steps=1), r"jax\.random\.key"),
        (lambda: sde.reverse(VP(), DATA.denoise, tau=-1.0), "at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
