"""Restart against Xu et al. 2023, algorithm 1, transcribed with Heun's method; and what it does to errors."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
EDM = jd.processes.EDM()
SIGMA = np.append(np.geomspace(20.0, 0.05, 8), 0.0)
INTERVAL = EDM(np.array([2.0, 1.5, 1.0, SIGMA[5]]))


@partial(jax.jit, static_argnums=(0, 3))
def run(solver_of, levels, x, repeats=2, interval=None):
    return jd.sample(rational, solver_of(interval, repeats), levels, x, KEY)


def with_heun(interval, repeats):
    return jd.solvers.restart(jd.solvers.heun(), interval, repeats)


def start():
    return jnp.asarray(20 * np.random.default_rng(0).normal(size=(5, 2)))


def D(x, sigma):
    return rational(x, Level(sigma, np.float64(1), np.float64(sigma)))


def heun(x, cur, nxt):
    d = (x - D(x, cur)) / cur
    ahead = x + (nxt - cur) * d
    return ahead if nxt == 0 else x + (nxt - cur) * 0.5 * (d + (ahead - D(ahead, nxt)) / nxt)


def restarted(x, interval, repeats, *, every):
    for i, (cur, nxt) in enumerate(pairwise(SIGMA)):
        x = heun(x, cur, nxt)
        t = [cur, nxt] if every else [*interval[:-1], nxt]
        if (nxt > 0) if every else (nxt == interval[-1]):
            for k in range(repeats):
                z = np.asarray(normal_like(fold_in(fold_in(KEY, i), 2 * k + 1), x))
                x = x + np.sqrt(t[0] ** 2 - nxt**2) * z
                for a, b in pairwise(t):
                    x = heun(x, a, b)
    return x


def test_is_algorithm_1_within_an_interval_and_compiles_once_for_any():
    run.clear_cache()
    for sigma in ([2.0, 1.5, 1.0, SIGMA[5]], [9.0, 7.0, 5.0, SIGMA[2]]):
        out = run(with_heun, EDM(SIGMA), start(), 2, EDM(np.array(sigma)))
        expected = restarted(np.asarray(start()), sigma, 2, every=False)
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-10)
    assert run._cache_size() == 1


def test_without_an_interval_each_step_is_its_own():
    expected = restarted(np.asarray(start()), None, 2, every=True)
    np.testing.assert_allclose(run(with_heun, EDM(SIGMA), start()), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_multistep_methods_history_is_the_intervals():
    def dpmpp_2m(x, sigmas, history=None):
        for cur, nxt in pairwise(sigmas):
            x0 = slope = D(x, cur)
            h = np.log(cur / nxt) if nxt else np.inf
            if history and nxt:
                slope = x0 + h / history[1] / 2 * (x0 - history[0])
            x, history = nxt / cur * x + (1 - nxt / cur) * slope, (x0, h)
        return x, history

    x, history = dpmpp_2m(np.asarray(start()), SIGMA[:6])
    again = [2.0, 1.5, 1.0, SIGMA[5]]
    x = x + np.sqrt(again[0] ** 2 - SIGMA[5] ** 2) * np.asarray(normal_like(fold_in(fold_in(KEY, 4), 1), x))
    x, history = dpmpp_2m(x, again)
    x, _ = dpmpp_2m(x, SIGMA[5:], history)
    ours = lambda interval, repeats: jd.solvers.restart(jd.solvers.dpmpp_2m(), interval, repeats)  # noqa: E731
    np.testing.assert_allclose(run(ours, EDM(SIGMA), start(), 1, INTERVAL), x, rtol=1e-9, atol=1e-10)


def test_no_repeats_are_the_solver_alone():
    plain = run(lambda interval, repeats: jd.solvers.heun(), EDM(SIGMA), start())
    np.testing.assert_allclose(run(with_heun, EDM(SIGMA), start(), 0, INTERVAL), plain, rtol=1e-12)
    assert not jd.solvers.restart(repeats=0).stochastic


@pytest.mark.slow
def test_intervals_nest_and_steps_outside_of_them_cost_nothing():
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return rational(x, level)

    high = EDM(np.array([9.0, 6.0, SIGMA[2]]))
    solver = jd.solvers.restart(jd.solvers.restart(interval=INTERVAL, repeats=3), high, 2)
    jax.block_until_ready(jax.jit(lambda x: jd.sample(denoise, solver, EDM(SIGMA), x, KEY))(start()))
    jax.effects_barrier()
    assert len(calls) == 2 * (8 + 3 * 3 + 2 * 2)


@pytest.mark.slow
def test_fresh_noise_forgets_an_error_made_above():
    """Two starts far apart end nearer to one another than by the ODE alone, since new noise is all that they share."""
    levels, far = EDM(SIGMA[:-1]), start() + 3
    end = lambda x, repeats: run(with_heun, levels, x, repeats, EDM(np.array([10.0, 5.0, 2.0, SIGMA[5]])))  # noqa: E731
    apart = [np.abs(end(start(), k) - end(far, k)).mean() for k in (0, 4)]
    assert apart[1] < 0.3 * apart[0]


def test_mistakes():
    with pytest.raises(ValueError, match="repeats is an integer of at least 0, got -1"):
        jd.solvers.restart(repeats=-1)
    with pytest.raises(ValueError, match=r"interval is a Level with fields \[M \+ 1\]"):
        jd.solvers.restart(interval=Level(np.zeros(3), np.ones(3), np.ones(2)))


def test_noise_that_comes_twice_is_refused():
    """A Brownian path's increments do not depend on the key: x already has them when a step is taken again."""
    path = jd.solvers.ddim(1.0, noise_sampler=jd.noise.brownian(KEY))
    for solver in (jd.solvers.restart(path), jd.solvers.restart(path, INTERVAL)):
        with pytest.raises(ValueError, match="draws the same noise when a step is taken again"):
            jd.sample(rational, solver, EDM(SIGMA), start(), KEY)
    for solver in (jd.solvers.restart(path, repeats=0), jd.solvers.restart(jd.solvers.ddpm("learned"))):
        both = lambda x, level: (rational(x, level), jnp.zeros_like(x))  # noqa: E731
        denoise = both if solver.learned_variance else rational
        jax.eval_shape(lambda x: jd.sample(denoise, solver, EDM(SIGMA), x, KEY), start())  # noqa: B023


@pytest.mark.slow
def test_an_interval_between_a_tables_times():
    process = jd.processes.Discrete.linear(1000)
    seen = []

    def denoise(x, level):
        jax.debug.callback(lambda t: seen.append(float(t)), level.t)
        return rational(x, level)

    levels = process(np.array([900, 500, 100]))
    between = process(np.array([801.3, 650.7, 500.0]))
    jd.sample(denoise, jd.solvers.restart(jd.solvers.ddim(), between), levels, start(), KEY)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(set(seen)), [500, 650.7, 801.3, 900])
