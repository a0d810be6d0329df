"""DDIM's inversion: there and back again, against its formula in numpy, and the exact flow of a Gaussian."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
TABLE = jd.processes.Discrete.from_betas(np.linspace(1e-4, 0.2, 12))
STARTS = {"vp": (VP, 0.9), "flow": (FLOW, 0.9), "edm": (EDM, 5.0)}
invert = partial(jax.jit, static_argnums=(0, 3))(
    lambda denoise, levels, x, iterations: jd.invert(denoise, levels, x, iterations=iterations)
)


@partial(jax.jit, static_argnums=2)
def there_and_back(levels, x, iterations):
    noisy = jd.invert(CLUSTERS.denoise, levels, x, iterations=iterations)
    return jd.sample(CLUSTERS.denoise, jd.solvers.ddim(), levels, noisy, KEY)


def data(n=8):
    return jnp.asarray(CLUSTERS.draw(np.random.default_rng(0), n))


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_is_undone_by_ddim_to_the_fixed_points_error_and_in_one_iteration_to_order_1(name):
    process, start = STARTS[name]
    error = {
        (n, k): float(
            jnp.sqrt(jnp.mean((there_and_back(jd.grids.by_time(process, n, start=start), data(), k) - data()) ** 2))
        )
        for n, k in ((50, 20), (50, 1), (200, 1))
    }
    print(name, error)
    assert error[50, 20] < 1e-9
    slope = np.log(error[50, 1] / error[200, 1]) / np.log(4)
    np.testing.assert_allclose(slope, 1, atol=0.15)


@pytest.mark.parametrize("iterations", [1, 3])
def test_is_the_formula(iterations):
    # Its first iterate is the inversion of Dhariwal and Nichol's appendix F as it is widely used: eps_hat(x_s, t).
    times, x = np.array([12, 9, 6, 3, 1, 0]), np.asarray(data())
    out = invert(rational, TABLE(times), data(), iterations)
    abar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.2, 12))])
    for s, t in pairwise(times[::-1]):
        x_t = x
        for _ in range(iterations):
            x0 = rational(x_t, Level(t, np.sqrt(abar[t]), np.sqrt(1 - abar[t])))
            eps = (x_t - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])
            x_t = np.sqrt(abar[t]) * (x - np.sqrt(1 - abar[s]) * eps) / np.sqrt(abar[s]) + np.sqrt(1 - abar[t]) * eps
        x = x_t
    np.testing.assert_allclose(out, x, rtol=1e-9)


@pytest.mark.slow
def test_nears_the_exact_flow_of_a_gaussian():
    errors = []
    for n in (100, 400):
        levels = jd.grids.by_lambda(VP, n, start=0.9, end=0.02)
        first, last = (jax.tree.map(lambda field: field[i], levels) for i in (0, -1))  # noqa: B023
        exact = BLOB.flow(data(), last, first)
        errors.append(float(jnp.max(jnp.abs(invert(BLOB.denoise, levels, data(), 2) - exact))))
    print(errors)
    assert errors[1] < 0.02 and errors[1] < 0.3 * errors[0]


@pytest.mark.slow
def test_any_shape_example_by_example_with_finite_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3)))
    net = lambda params, x, noise, cond: jnp.tanh(params * x + noise[:, None, None])  # noqa: E731
    levels = jd.grids.by_time(FLOW, 6, start=0.9)

    @jax.jit
    def value_and_grads(x, params, levels):
        def f(x, params, levels):
            out = jd.invert(jd.denoiser(net, params, jd.parameterize.velocity), levels, x, iterations=2)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(x, params, levels)

    (value, out), grads = value_and_grads(x, 0.3, levels)
    (_, alone), _ = value_and_grads(x[2:3], 0.3, levels)
    np.testing.assert_allclose(alone[0], out[2], rtol=1e-12)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    ahead = value_and_grads(x, 0.3 + 1e-6, levels)[0][0]
    np.testing.assert_allclose(grads[1], (ahead - value) / 1e-6, rtol=1e-4)


@pytest.mark.slow
def test_in_float32():
    levels = jd.grids.by_time(VP, 20, start=0.9)
    out = invert(rational, levels, data().astype(jnp.float32), 3)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, invert(rational, levels, data(), 3), atol=1e-5)


def test_refuses_pure_noise_no_iterations_and_no_grid():
    for levels, iterations, message in (
        (jd.grids.by_time(FLOW, 4), 1, r"pure noise \(alpha = 0\) says nothing of x"),
        (jd.grids.by_time(VP, 4), 0, "iterations must be at least 1, got 0"),
        (VP(np.array([0.1, 0.5])), 1, "the noise of a grid falls"),
    ):
        with pytest.raises(ValueError, match=message):
            jd.invert(rational, levels, data(), iterations=iterations)
    for denoise, message in ((lambda x, level: x[:, :1], "shape of x"), (lambda x, level: (x, x), "drop_variance")):
        with pytest.raises(ValueError, match=message):
            jd.invert(denoise, jd.grids.by_time(VP, 4), data())
