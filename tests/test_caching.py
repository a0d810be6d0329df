"""Cached layers: a network that is the same where nothing has changed, fewer operations, and sampling by a pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

import jaxdiff as jd
from jaxdiff import networks

PROCESS = jd.processes.Flow()


def unet():
    module = networks.UNet(widths=(4, 8, 8), num_blocks=1, groups=2, mid_attention=False, num_classes=3)
    return module, "up_blocks.1.upsamplers.0", False


def dit():
    return networks.DiT(width=16, layers=3, num_heads=2, num_classes=3), "blocks", True


@pytest.mark.slow
@pytest.mark.parametrize("kind", [unet, dit])
def test_layers_as_they_were(kind):
    """The same input gives the same output by fewer operations; of another one the rest of the network is new."""
    module, name, change = kind()
    x, y = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 1)).astype(np.float32)
    noise, cond = jnp.full(2, 0.3), {"label": jnp.array([0, 2])}
    params = random_weights(lambda key: networks.init(module, key, x, cond), 0)
    cached = networks.as_cached(module, (name,), change=change)
    out, cache = jax.jit(cached.keep)(params, x, noise, cond)
    plain = jax.jit(networks.as_apply(module))
    np.testing.assert_allclose(out, plain(params, x, noise, cond), atol=1e-5)
    reuse = jax.jit(cached.reuse).lower(params, x, noise, cond, cache).compile()
    np.testing.assert_allclose(reuse(params, x, noise, cond, cache), out, atol=1e-4)
    between = reuse(params, y, noise, cond, cache)
    assert np.abs(between - out).max() > 1e-2 and np.abs(between - plain(params, y, noise, cond)).max() > 1e-3
    flops = [c.cost_analysis()["flops"] for c in (reuse, plain.lower(params, x, noise, cond).compile())]
    assert flops[0] < 0.6 * flops[1]


def test_names_are_checked():
    with pytest.raises(ValueError, match="the name of at least one layer"):
        networks.as_cached(networks.MLP(width=4), ())
    module = networks.MLP(width=4, num_blocks=1)
    cached = networks.as_cached(module, "blocks.9")
    params = jax.eval_shape(lambda key: networks.init(module, key, jnp.zeros((1, 2))), jax.random.key(0))
    with pytest.raises(ValueError, match=r"the network has no layer blocks\.9"):
        jax.eval_shape(cached.keep, params, jnp.zeros((1, 2)), jnp.zeros(1))


def two_parts():
    """A network x -> deep(x) + x, whose deep part is cached, as its two functions."""
    deep = lambda params, x, noise: params * jnp.tanh(x + noise[:, None])  # noqa: E731
    keep = lambda params, x, noise, cond: (x + deep(params, x, noise), deep(params, x, noise))  # noqa: E731
    reuse = lambda params, x, noise, cond, cache: x + cache  # noqa: E731
    return networks.Cached(keep, reuse)


@pytest.mark.parametrize("solver", [jd.solvers.ddim(), jd.solvers.dpmpp_2m(), jd.solvers.ddpm()])
def test_sampling_by_a_pattern_is_the_loop_written_by_hand(solver):
    """With guidance, whose two evaluations have caches of their own; every 1 is `sample`."""
    network, levels = two_parts(), jd.grids.by_time(PROCESS, 5, start=0.9)
    keys, x = jax.random.split(jax.random.key(1), 3), jax.random.normal(jax.random.key(0), (3, 2))

    def make(apply):
        cond, uncond = (jd.denoiser(apply, p, jd.parameterize.x0, {}) for p in (0.8, 0.3))
        return jd.guidance.cfg(cond, uncond, 2.0)

    plain = make(lambda *args: network.keep(*args)[0])
    compiled = lambda every: jax.jit(  # noqa: E731
        lambda x, keys: jd.sample_cached(make, network, solver, levels, x, keys, every=every)
    )(x, keys)
    np.testing.assert_allclose(compiled(1), jd.sample(plain, solver, levels, x, keys), atol=1e-6)

    caches, count = [], [0]

    def at_times(x, level):
        """The denoiser, which computes its caches anew at steps 0, 2 and 4."""
        fresh, count[0] = count[0] % 2 == 0, count[0] + 1
        if fresh:
            caches.clear()
        left = iter(list(caches))

        def apply(*args):
            if not fresh:
                return network.reuse(*args, next(left))
            out, cache = network.keep(*args)
            caches.append(cache)
            return out

        return make(apply)(x, level)

    state, y = solver.init(x), x
    typed = levels._replace(alpha=levels.alpha.astype(x.dtype), sigma=levels.sigma.astype(x.dtype))
    for i in range(5):
        step_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)  # noqa: B023
        y, state = solver.step(at_times, step_keys, y, state, typed.at(i), typed.at(i + 1))
    np.testing.assert_allclose(compiled(2), y, atol=1e-5)
    assert np.abs(compiled(2) - compiled(1)).max() > 1e-2


def test_mistakes():
    levels, x = jd.grids.by_time(PROCESS, 5), jnp.zeros((1, 2))
    cached = lambda solver, every: jd.sample_cached(  # noqa: E731
        lambda apply: jd.denoiser(apply, 0.8, jd.parameterize.x0, {}),
        two_parts(),
        solver,
        levels,
        x,
        jax.random.key(0),
        every=every,
    )
    with pytest.raises(ValueError, match="one evaluation a step"):
        cached(jd.solvers.heun(), 1)
    with pytest.raises(ValueError, match="told both ends of a step"):
        cached(jd.solvers.flow_map(), 1)
    with pytest.raises(ValueError, match=r"of the shape of x, \(2, 2\), got \(1, 2\)"):
        jd.sample_cached(
            lambda apply: lambda x, level: jd.denoiser(apply, 0.8, jd.parameterize.x0, {})(x, level)[:1],
            two_parts(), jd.solvers.ddim(), levels, jnp.zeros((2, 2)), jax.random.key(0), every=2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cached(jd.solvers.ddim(), 0)
    churned = jd.solvers.euler(process=PROCESS, churn=0.3)
    for solver in (jd.solvers.plms(), churned, jd.solvers.restart(jd.solvers.ddim(), levels.at(slice(2, 4)))):
        with pytest.raises(ValueError, match="evaluates its denoiser elsewhere than at a step's start"):
            cached(solver, 1)


def test_a_denoiser_that_takes_the_networks_gradient_may_be_cached():
    operator = jd.inverse.operators.linear(lambda x: x[:, :1], (2,))
    y = jnp.ones((1, 1))
    make = lambda apply: jd.inverse.pigdm(jd.denoiser(apply, 0.8, jd.parameterize.x0, {}), operator, y, 0.1)  # noqa: E731
    levels, x = jd.grids.by_time(PROCESS, 5), jnp.ones((1, 2))
    run = lambda every: jax.jit(  # noqa: E731
        lambda x: jd.sample_cached(make, two_parts(), jd.solvers.ddim(), levels, x, jax.random.key(0), every=every)
    )(x)
    plain = make(lambda *args: two_parts().keep(*args)[0])
    np.testing.assert_allclose(run(1), jd.sample(plain, jd.solvers.ddim(), levels, x, jax.random.key(0)), rtol=1e-5)
    assert np.isfinite(run(2)).all()


def test_a_network_within_a_branch_has_no_cache():
    def make(apply):
        both = [jd.denoiser(apply, p, jd.parameterize.x0, {}) for p in (0.8, 0.3)]
        return jd.guidance.interval(jd.guidance.cfg(*both, 2.0), both[0], 0.1, 10.0)

    levels = jd.grids.by_time(PROCESS, 5)
    with pytest.raises(ValueError, match="inside of a branch or a loop"):
        jd.sample_cached(make, two_parts(), jd.solvers.ddim(), levels, jnp.zeros((1, 2)), jax.random.key(0), every=2)
