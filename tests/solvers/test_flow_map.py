"""Jumps of a network that is given both ends of a step: exact in any number of steps where its map is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.parameterize import with_next_noise
from jaxdiff.solvers.base import exponential_step, implied_x0

KEY = jax.random.key(0)
FLOW = jd.processes.Flow()


def mean_velocity(x, t, s, m=0.7, v=0.25):
    """u(x, t, s) of Gaussian data N(m, v) on x_t = (1 - t) x_0 + t eps, in closed form."""
    std = lambda t: np.sqrt((1 - t) ** 2 * v + t**2)  # noqa: E731
    return -m + (std(t) - std(s)) / ((t - s) * std(t)) * (x - (1 - t) * m)


def jump(x, cur, nxt):
    """The denoiser of both ends of BLOB, from its exact flow."""
    return implied_x0(x, BLOB.flow(x, cur, nxt), cur, nxt)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [FLOW, jd.processes.EDM(), jd.processes.Cosine()], ids=["flow", "edm", "cosine"])
def test_one_step_is_many(process):
    t = {"EDM": [9.0, 2.0, 0.3, 0.0]}.get(type(process).__name__, [0.9, 0.5, 0.2, 0.0])
    levels = process(jnp.asarray(t))
    x = jnp.asarray(BLOB.draw(np.random.default_rng(0), 5, levels.at(0)))
    for some in ([0, 1, 2, 3], [0, 2, 3], [0, 3]):
        out = jd.sample(jump, jd.solvers.flow_map(), levels.at(np.array(some)), x, KEY)
        np.testing.assert_allclose(out, BLOB.flow(x, levels.at(0), levels.at(3)), rtol=1e-10)


def test_of_a_velocity_it_is_the_mean_velocitys_step():
    x, t, s = 1.3, 0.8, 0.2
    assert abs(mean_velocity(x, t, s) - 0.160912954) < 1e-8  # worked out by hand elsewhere

    def network(params, x, noise, cond):
        return jnp.full_like(x, 1.0) * (3 * noise + 5 * cond["next_noise"])[:, None]

    denoise = jd.denoiser(network, None, jd.parameterize.velocity)
    levels = FLOW(jnp.asarray([t, s]))
    out = jax.jit(lambda x: jd.sample(denoise, jd.solvers.flow_map(), levels, x, KEY))(jnp.full((2, 3), x))
    np.testing.assert_allclose(out, x - (t - s) * (3 * t + 5 * s), rtol=1e-5)


def test_implied_x0_inverts_the_step():
    x, x0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2)), jnp.float32)
    levels = FLOW(jnp.asarray([[0.9, 0.5, 0.2], [0.6, 0.1, 0.0]], jnp.float32))
    cur, nxt = levels.at(0), levels.at(1)
    z = exponential_step(x, x0, cur.expand_to(x), nxt.expand_to(x))
    np.testing.assert_allclose(implied_x0(x, z, cur, nxt), x0, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(z[2], x0[2])  # the last one ends clean


def test_the_network_is_given_the_noise_of_the_next_level():
    x, edm = jnp.zeros((2, 3)), jd.parameterize.edm(0.5)
    nxt = jd.processes.EDM()(jnp.asarray([2.0, 0.0]))
    noise = with_next_noise({"label": x}, edm, nxt, x)["next_noise"]
    np.testing.assert_allclose(noise, np.log([2.0, 1e-4]) / 4, rtol=1e-6)  # finite where the level is clean
    zero = jd.parameterize.time_scaled(jd.parameterize.velocity)
    clean = Level(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))
    np.testing.assert_array_equal(with_next_noise(None, zero, clean, x)["next_noise"], [0.0, 0.0])


def test_mistakes():
    levels, x = FLOW(jnp.asarray([0.9, 0.0])), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"\(x, cur, nxt\) -> x0_hat"):
        jd.sample(lambda x, level: x, jd.solvers.flow_map(), levels, x, KEY)
    pure = FLOW(jnp.asarray([1.0, 0.0]))
    eps = jd.denoiser(lambda p, x, noise, cond: x, None, jd.parameterize.eps)
    with pytest.raises(ValueError, match="cannot denoise pure noise"):
        jd.sample(eps, jd.solvers.flow_map(), pure, x, KEY)
