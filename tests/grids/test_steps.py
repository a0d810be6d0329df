"""What holds for all grids: they fall on every process, and their number of steps may be traced."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff import grids
from jaxdiff.sample import check_levels

VP, EDM, FLOW = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow()
TABLE = jd.processes.Discrete.linear(1000)
PROCESSES = {  # first and last time, with finite lam
    "vp": (VP, 1.0, 1e-3),
    "subvp": (jd.processes.SubVP(), 1.0, 1e-3),
    "ve": (jd.processes.VE(), 1.0, 0.0),
    "edm": (EDM, 80.0, 0.002),
    "flow": (FLOW, 0.999, 0.001),
    "cosine": (jd.processes.Cosine(), 0.999, 0.001),
    "sigmoid": (jd.processes.Sigmoid(), 0.999, 0.001),
    "shifted": (jd.processes.Shifted(FLOW, 3.0), 0.999, 0.001),
    "table": (TABLE, 1000.0, 1.0),
    "learned": (None, 1.0, 0.0),
}


def every_grid(process, start, end, n, max_steps=None):
    """All grids with n steps, between two times or (a little inside) their noise."""
    of = {"n": n, "max_steps": max_steps}
    times = {**of, "start": start, "end": end}
    high, low = (jnp.exp(-process(jnp.asarray(t, float)).lam) for t in (0.99 * start, 1.01 * end + 1e-3 * start))
    noise = {**of, "sigma_min": low, "sigma_max": high}
    line = jnp.exp(jnp.linspace(jnp.log(high), jnp.log(low), 5))
    return {
        "by_time": grids.by_time(process, **times),
        "beta": grids.beta(process, **times),
        "cosine": grids.cosine(process, **times),
        "cosine to clean": grids.cosine(process, sway=1.75, **times),
        "by_lambda": grids.by_lambda(process, **times),
        "by_angle": grids.by_angle(process, scale=0.5, **times),
        "karras": grids.karras(process, **noise),
        "exponential": grids.exponential(process, **noise),
        "polyexponential": grids.polyexponential(process, rho=2.0, **noise),
        "from_sigmas": grids.from_sigmas(process, line, **of),
        **({"shifted": grids.shifted(process, shift=3.0, **times)} if start <= 1 else {}),
    }


# One and two steps are special to a grid rather than to a process, a thousand are close in each process's own way.
@pytest.mark.parametrize(
    ("n", "name"),
    [
        (2, "vp"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *((1, name) for name in ("vp", "edm", "table")),
                *((2, name) for name in ("flow", "table")),
                *((1000, name) for name in PROCESSES),
            ]
        ),
    ],
)
def test_every_grid_falls_on_every_process(n, name):
    process, start, end = PROCESSES[name]
    process = jd.processes.Learned(jnp.linspace(-1, 1, 8)) if process is None else process
    for name, levels in jax.jit(partial(every_grid, process, start, end, n))().items():
        assert all(field.shape == (n + 1,) and field.dtype == jnp.float32 for field in levels), name
        check_levels(levels)
        if name in ("by_time", "beta", "cosine", "by_lambda", "by_angle"):
            np.testing.assert_array_equal(levels.t[jnp.array([0, -1])], np.float32([start, end]), name)


MOST = 5


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "plain_ones"), [("vp", (1, 4)), ("table", (2, MOST))])
def test_a_traced_number_of_steps_gives_the_grid_of_the_plain_one(name, plain_ones):
    run = partial(every_grid, *PROCESSES[name])
    traced = jax.jit(jax.vmap(partial(run, max_steps=MOST)))(jnp.arange(1, MOST + 1))
    for n in plain_ones:
        for kind, plain in jax.jit(run, static_argnums=0)(n).items():
            for field, expected in zip(traced[kind], plain, strict=True):
                expected = np.append(expected, [expected[-1]] * (MOST - n))
                np.testing.assert_allclose(field[n - 1], expected, rtol=1e-12, atol=1e-14, err_msg=f"{kind} {n}")


@partial(jax.jit, static_argnums=0)
def slopes(process, start, end, bend, n):
    def every(start, end, bend):
        times = {"n": n, "start": start, "end": end, "max_steps": MOST}
        noise = {"n": n, "sigma_min": 0.05, "sigma_max": 20 * start, "rho": bend, "max_steps": MOST}
        return [
            grids.by_time(process, **times),
            grids.beta(process, **times),
            grids.cosine(process, sway=-bend / 7, **times),
            grids.shifted(process, shift=bend, **times),
            grids.by_angle(process, scale=bend, **times),
            grids.karras(process, **noise),
            grids.polyexponential(process, **noise),
        ]

    return jax.jacrev(every, argnums=(0, 1, 2))(start, end, bend)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("process", [FLOW, VP, jd.processes.Cosine()], ids=["flow", "vp", "cosine"])
def test_gradients_are_finite_from_pure_noise_to_clean_data(process, n):
    found = slopes(process, 1.0, 0.0, 5.0, n)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert all(np.any(levels.t[0] != 0) for levels in found)  # each moves with its start


def test_a_sampler_that_stops_after_n_steps_takes_the_plain_grid():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    key, solver = jax.random.key(0), jd.solvers.heun()

    @jax.jit
    def run(n):
        levels = grids.karras(FLOW, n, sigma_min=0.05, sigma_max=20.0, max_steps=MOST)
        return jd.sample(rational, solver, levels, x, key, stop=n)

    for n in (1, 3, MOST):
        plain = jd.sample(rational, solver, grids.karras(FLOW, n, sigma_min=0.05, sigma_max=20.0), x, key)
        np.testing.assert_allclose(run(n), plain, rtol=1e-5, atol=1e-6)
    assert run._cache_size() == 1


def test_a_plain_number_below_at_most_is_padded_too():
    levels = grids.by_time(FLOW, 2, max_steps=4)
    np.testing.assert_array_equal(levels.t, [1, 0.5, 0, 0, 0])
    levels = grids.karras(EDM, np.int64(1), sigma_min=0.1, sigma_max=2.0, max_steps=3)
    np.testing.assert_allclose(levels.sigma, [2, 0, 0, 0], rtol=1e-6)


def test_ends_may_be_traced_and_compile_once():
    @jax.jit
    def f(high, low, rho):
        return (
            grids.karras(VP, 5, sigma_min=low, sigma_max=high, rho=rho),
            grids.exponential(VP, 5, sigma_min=low, sigma_max=high),
            grids.by_time(VP, 5, start=high / 100, end=low),
            grids.by_lambda(VP, 5, start=high / 100, end=low),
        )

    for high, low, rho in ((80.0, 0.01, 7.0), (50.0, 0.02, 3.0)):
        karras, exponential, by_time, by_lambda = f(*jnp.array([high, low, rho], jnp.float32))
        np.testing.assert_allclose((karras.sigma / karras.alpha)[jnp.array([0, 4])], [high, low], rtol=1e-3)
        np.testing.assert_allclose((exponential.sigma / exponential.alpha)[jnp.array([0, 4])], [high, low], rtol=1e-3)
        for levels in (by_time, by_lambda):
            np.testing.assert_allclose(levels.t[jnp.array([0, 5])], [high / 100, low], rtol=1e-3)
    assert f._cache_size() == 1


def test_a_grid_has_a_step():
    for n in (0, -3, jnp.asarray(0)):
        with pytest.raises(ValueError, match="at least one step"):
            grids.by_time(VP, n)
        with pytest.raises(ValueError, match="at least one step"):
            grids.karras(VP, n, sigma_min=0.1, sigma_max=1.0)


def test_a_key_or_a_fraction_is_no_number_of_steps():
    for n in (jax.random.key(3), 2.5, jnp.arange(3), jnp.asarray(2.0)):
        with pytest.raises(ValueError, match="integer number of steps"):
            grids.by_time(VP, n, max_steps=5)


def test_a_traced_number_of_steps_needs_its_bound():
    for n in (jnp.asarray(3), 3):
        with pytest.raises(ValueError, match=r"n must lie in 1\.\.max_steps = 2, got n = 3"):
            grids.by_lambda(VP, n, start=1.0, end=0.1, max_steps=2)
    with pytest.raises(ValueError, match="needs max_steps"):
        jax.jit(lambda n: grids.by_time(VP, n).t)(3)
    for max_steps in (0, 2.5):
        with pytest.raises(ValueError, match="max_steps, the largest number of steps, is an integer of at least 1"):
            grids.exponential(VP, 1, sigma_min=0.1, sigma_max=1.0, max_steps=max_steps)
