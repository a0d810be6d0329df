"""levels: every formula against an independent one in numpy float64, for processes of any variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import levels
from jaxdiff.levels import Ends, Level

# t -> (alpha, sigma), in float64
FAMILIES = {
    "vp": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    "sub_vp": lambda t: (np.exp(-2 * t**2), 1 - np.exp(-4 * t**2)),
    "ve": lambda t: (np.ones_like(t), 0.01 * 5000.0**t),
    "flow": lambda t: (1 - t, t),
    "neither": lambda t: (2 - t, 0.3 * t + t**2),
}
family = pytest.mark.parametrize("name", FAMILIES)
S, T = np.array([0.05, 0.3, 0.5, 0.7]), np.array([0.1, 0.31, 0.9, 0.95])  # s < t


def _level(name, t, dtype=jnp.float64):
    return Level(*(jnp.asarray(f, dtype) for f in (t, *FAMILIES[name](np.asarray(t, np.float64)))))


def _data(seed=0, n=4):
    return np.random.default_rng(seed).normal(size=(2, n, 3, 2))


@family
def test_q_is_alpha_x0_plus_sigma_eps(name, x64):
    x0, eps = _data()
    alpha, sigma = (f[:, None, None] for f in FAMILIES[name](T))
    mean, std = levels.q_mean_std(jnp.asarray(x0), _level(name, T))
    np.testing.assert_allclose(mean, alpha * x0, rtol=1e-14)
    np.testing.assert_allclose(np.broadcast_to(std, x0.shape), np.broadcast_to(sigma, x0.shape), rtol=1e-14)
    x = levels.q_sample(jnp.asarray(x0), jnp.asarray(eps), _level(name, T))
    np.testing.assert_allclose(x, alpha * x0 + sigma * eps, rtol=1e-13)


@family
def test_snr(name, x64):
    alpha, sigma = FAMILIES[name](T)
    level = _level(name, T)
    np.testing.assert_allclose(level.snr, (alpha / sigma) ** 2, rtol=1e-13)
    np.testing.assert_allclose(level.log_snr, np.log((alpha / sigma) ** 2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(level.lam, np.log(alpha / sigma), rtol=1e-12, atol=1e-12)


@family
def test_transition_carries_the_marginal_at_s_to_the_one_at_t(name, x64):
    """N(alpha_s x0, sigma_s^2) pushed through x -> a x + b eps is N(alpha_t x0, sigma_t^2), which fixes a and b."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = FAMILIES[name](S), FAMILIES[name](T)
    x = _data()[0]
    mean, std = levels.q_transition(jnp.asarray(x), _level(name, S), _level(name, T))
    np.testing.assert_allclose(mean, (alpha_t / alpha_s)[:, None, None] * x, rtol=1e-13)
    var = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    np.testing.assert_allclose(np.asarray(std).ravel() ** 2, var, rtol=1e-10)


@family
def test_transitions_compose(name, x64):
    """s -> r -> t is s -> t."""
    R = (S + T) / 2
    s, r, t = (_level(name, u) for u in (S, R, T))
    one = jnp.ones(4)
    a1, b1 = levels.q_transition(one, s, r)
    a2, b2 = levels.q_transition(one, r, t)
    a, b = levels.q_transition(one, s, t)
    np.testing.assert_allclose(a2 * a1, a, rtol=1e-12)
    np.testing.assert_allclose(a2**2 * b1**2 + b2**2, b**2, rtol=1e-10)


@family
def test_posterior_is_bayes_rule(name, x64):
    """q(x_s | x_t, x_0) from the precisions of q(x_s | x_0) and q(x_t | x_s)."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = ([f[:, None, None] for f in FAMILIES[name](u)] for u in (S, T))
    x0, x = _data(1)
    a = alpha_t / alpha_s
    var = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / var
    mean = (alpha_s * x0 / sigma_s**2 + a * x / var) / precision
    got, std = levels.posterior(jnp.asarray(x0), jnp.asarray(x), _level(name, T), _level(name, S))
    np.testing.assert_allclose(got, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.asarray(std) ** 2, 1 / precision, rtol=1e-10)


@pytest.mark.parametrize("end", [0.02, 0.3])
def test_posterior_is_ddpm_eq_7(end, x64):
    """mu_tilde and beta_tilde as Ho et al. 2020 print them, for every t of a table of betas."""
    beta = np.linspace(1e-4, end, 200)
    abar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    now, before = abar[1:, None], abar[:-1, None]
    x0, x = np.random.default_rng(2).normal(size=(2, 200, 2))
    b = beta[:, None]
    mean = np.sqrt(before) * b / (1 - now) * x0 + np.sqrt(1 - b) * (1 - before) / (1 - now) * x
    var = (1 - before) / (1 - now) * b

    level = Level(jnp.arange(201), jnp.asarray(np.sqrt(abar)), jnp.asarray(np.sqrt(1 - abar)))
    cur, nxt = level.at(slice(1, None)), level.at(slice(None, -1))
    got, std = levels.posterior(jnp.asarray(x0), jnp.asarray(x), cur, nxt)
    np.testing.assert_allclose(got, mean, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(np.asarray(std) ** 2, var, rtol=1e-9, atol=1e-15)
    step, beta_std = levels.q_transition(jnp.asarray(x), nxt, cur)
    np.testing.assert_allclose(step, np.sqrt(1 - b) * x, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(beta_std) ** 2, b, rtol=1e-9)


@pytest.mark.slow
def test_posterior_by_monte_carlo():
    """Regress x_s on x_t of simulated paths: slope, intercept and residual variance."""
    n, x0, (s, t) = 200_000, 0.7, (0.4, 0.6)
    cur, nxt = _level("sub_vp", t, jnp.float32), _level("sub_vp", s, jnp.float32)
    keys = jax.random.split(jax.random.key(0))
    x_s = levels.q_sample(jnp.full(n, x0), jax.random.normal(keys[0], (n,)), nxt)
    mean, std = levels.q_transition(x_s, nxt, cur)
    x_t = np.asarray(mean + std * jax.random.normal(keys[1], (n,)), np.float64)
    x_s = np.asarray(x_s, np.float64)
    slope, intercept = np.polyfit(x_t, x_s, 1)
    residual = np.std(x_s - slope * x_t - intercept)
    at = [levels.posterior(jnp.float32(x0), jnp.float32(x), cur, nxt) for x in (0.0, 1.0)]
    error = 4 * residual / np.sqrt(n) / np.std(x_t)  # four standard errors of the slope
    np.testing.assert_allclose(at[1][0] - at[0][0], slope, atol=error)
    np.testing.assert_allclose(at[0][0], intercept, atol=error * 2)
    np.testing.assert_allclose(at[0][1], residual, rtol=4 / np.sqrt(2 * n))


def test_float32_keeps_the_share_of_small_steps():
    """1 - SNR_t / SNR_s of adjacent steps of the linear table; `1 - ratio of abar` in float32 is off by 1e-3."""
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - beta)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    level = Level(*(jnp.asarray(f, jnp.float32) for f in (np.arange(1000), alpha, sigma)))
    share = levels.added_variance(level.at(slice(1, None)), level.at(slice(None, -1)))
    exact = beta[1:] / (1 - abar[1:])
    np.testing.assert_allclose(share, exact, rtol=3e-4)


@family
def test_noise_velocity_and_score(name, x64):
    x0, eps = _data(3)
    alpha, sigma = (f[:, None, None] for f in FAMILIES[name](T))
    level = _level(name, T)
    ends = levels.from_x0(jnp.asarray(x0), jnp.asarray(alpha * x0 + sigma * eps), level)
    np.testing.assert_array_equal(ends.x0, x0)
    np.testing.assert_allclose(ends.eps, eps, rtol=1e-8, atol=1e-8)
    ends = Ends(jnp.asarray(x0), jnp.asarray(eps))
    np.testing.assert_allclose(levels.velocity(ends), eps - x0, rtol=1e-12)
    np.testing.assert_allclose(levels.score(ends, level), -eps / sigma, rtol=1e-12)


@family
def test_score_is_the_gradient_of_the_log_density(name, x64):
    """Tweedie: of q(x_t | x_0), and of q(x_t) of Gaussian data with its exact E[x_0 | x_t]."""
    m, c = 0.4, 0.7
    alpha, sigma = (jnp.asarray(f) for f in FAMILIES[name](T))
    x, level = jnp.asarray([0.3, -1.0, 2.0, 0.5]), _level(name, T)

    def log_normal(x, mean, var):
        return jnp.sum(-((x - mean) ** 2) / (2 * var) - 0.5 * jnp.log(2 * jnp.pi * var))

    grad = jax.grad(log_normal)(x, alpha * m, sigma**2)
    np.testing.assert_allclose(levels.score(levels.from_x0(jnp.full(4, m), x, level), level), grad, rtol=1e-10)

    var = alpha**2 * c**2 + sigma**2
    x0_hat = m + alpha * c**2 / var * (x - alpha * m)
    grad = jax.grad(log_normal)(x, alpha * m, var)
    np.testing.assert_allclose(levels.score(levels.from_x0(x0_hat, x, level), level), grad, rtol=1e-8, atol=1e-10)


CLEAN, NOISE = (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)


def test_ends_of_the_process_have_finite_values_and_gradients():
    """sigma = 0 and alpha = 0: limits of each function, and gradients in x, x0, alpha and sigma without NaN."""
    x0, x = jnp.array([0.5, -2.0]), jnp.array([1.0, 0.3])
    mid = Level(*(jnp.float32(f) for f in (0.5, 0.8, 0.6)))
    end = {name: Level(*map(jnp.float32, f)) for name, f in (("clean", CLEAN), ("noise", NOISE))}
    cases = {  # (function of x0, x, level, level), expected mean and std
        "to clean": (levels.posterior, x0, x, mid, end["clean"], (x0, 0.0)),
        "from noise": (levels.posterior, x0, x, end["noise"], mid, (0.8 * x0, 0.6)),
        "from noise to clean": (levels.posterior, x0, x, end["noise"], end["clean"], (x0, 0.0)),
        "out of clean": (lambda x0, x, c, n: levels.q_transition(x, c, n), x0, x, end["clean"], mid, (0.8 * x, 0.6)),
        "into noise": (lambda x0, x, c, n: levels.q_transition(x, c, n), x0, x, mid, end["noise"], (0 * x, 1.0)),
        "clean to noise": (
            lambda x0, x, c, n: levels.q_transition(x, c, n), x0, x, end["clean"], end["noise"], (0 * x, 1.0)
        ),
        "q clean": (lambda x0, x, c, n: (levels.q_sample(x0, x, c), c.sigma), x0, x, end["clean"], mid, (x0, 0.0)),
        "q noise": (lambda x0, x, c, n: (levels.q_sample(x0, x, c), c.sigma), x0, x, end["noise"], mid, (x, 1.0)),
    }  # fmt: skip

    @jax.jit
    def run():
        def total(f):
            return lambda *args: sum(jnp.sum(part) for part in f(*args))

        return {
            name: (f(*args), jax.grad(total(f), argnums=(0, 1, 2, 3))(*args)) for name, (f, *args, _) in cases.items()
        }

    for name, ((got, got_std), grads) in run().items():
        mean, std = cases[name][-1]
        np.testing.assert_allclose(got, mean, rtol=1e-6, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(got_std, std, rtol=1e-6, atol=1e-7, err_msg=name)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)), name


def test_lam_is_infinite_at_the_ends_with_gradient_without_nan():
    level = Level(*(jnp.array([c, n], jnp.float32) for c, n in zip(CLEAN, NOISE, strict=True)))
    np.testing.assert_array_equal(level.lam, [jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(level.snr, [jnp.inf, 0.0])
    grads = jax.grad(lambda level: jnp.sum(jnp.where(jnp.isinf(level.lam), 0, level.lam)))(level)
    assert all(np.isfinite(g).all() for g in grads)


FUNCTIONS = {
    "q_sample": lambda a, b, c, n: levels.q_sample(a, b, c),
    "transition": lambda a, b, c, n: levels.q_transition(b, n, c),
    "posterior": levels.posterior,
    "from_x0": lambda a, b, c, n: levels.from_x0(a, b, c),
    "score": lambda a, b, c, n: levels.score(Ends(a, b), c),
}


SHORT = ("q_sample", "transition", "posterior", "from_x0", "score")  # the rest take the same paths


@pytest.mark.parametrize("function", [f if f in SHORT else pytest.param(f, marks=pytest.mark.slow) for f in FUNCTIONS])
def test_one_level_per_example_is_a_loop_over_examples(function):
    """[B] levels, a Python loop with scalars, vmap and jit answer the same; and grad passes through all."""
    f, (a, b) = FUNCTIONS[function], jnp.asarray(_data(4), jnp.float32)
    cur, nxt = _level("flow", T, jnp.float32), _level("flow", S, jnp.float32)

    def loop(*args):
        rows = [f(*jax.tree.map(lambda leaf, i=i: leaf[i], args)) for i in range(4)]
        return jax.tree.map(lambda *r: jnp.stack(r), *rows)

    @jax.jit
    def compiled(*args):
        grads = jax.grad(lambda *args: sum(map(jnp.sum, jax.tree.leaves(f(*args)))), argnums=(0, 1, 2, 3))(*args)
        return (f(*args), loop(*args), jax.vmap(f)(*args)), grads

    batched = f(a, b, cur, nxt)
    others, grads = compiled(a, b, cur, nxt)
    for other in others:
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(batched), strict=True):
            np.testing.assert_allclose(got.reshape(want.shape), want, rtol=2e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 2, 2, 3)])
def test_levels_align_with_the_leading_axes_of_any_shape(shape):
    x0, eps = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)
    level = _level("vp", T, jnp.float32)
    x = levels.q_sample(x0, eps, level)
    assert x.shape == shape
    for i in range(4):
        np.testing.assert_allclose(x[i], level.alpha[i] * x0[i] + level.sigma[i] * eps[i], rtol=1e-5, atol=1e-6)
    assert level.expand_to(x0).alpha.shape == (4,) + (1,) * (len(shape) - 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_types_are_kept(function, dtype, x64):
    """Under strict promotion, where a hidden constant of another type would raise."""
    a, b = (jnp.asarray(_data()[i], dtype) for i in (0, 1))
    out = jax.eval_shape(FUNCTIONS[function], a, b, _level("vp", T, dtype), _level("vp", S, dtype))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(out))


def test_append_clean_keeps_an_integer_time():
    grid = Level(jnp.array([9, 5]), jnp.array([0.1, 0.5]), jnp.array([0.9, 0.5]))
    grid = levels.append_clean(grid)
    np.testing.assert_array_equal(grid.t, [9, 5, 0])
    np.testing.assert_array_equal(grid.alpha, jnp.array([0.1, 0.5, 1.0]))
    np.testing.assert_array_equal(grid.sigma, jnp.array([0.9, 0.5, 0.0]))
    assert grid.t.dtype == jnp.int32 and grid.alpha.dtype == jnp.float32


def test_a_grid_is_indexed_and_sliced_by_at():
    t = np.linspace(1.0, 0.0, 5, dtype=np.float32)
    grid = Level(t, 1 - t, 2 * t)
    for index in (0, 3, -1, slice(None, -1), slice(1, 4, 2), np.array([2, 0])):
        for part in (grid.at(index), jax.tree.map(jnp.asarray, grid).at(index)):
            assert isinstance(part, Level)
            for got, field in zip(part, grid, strict=True):
                np.testing.assert_array_equal(got, field[index])
    traced = jax.jit(lambda grid, i: grid.at(i))(grid, 3)
    np.testing.assert_array_equal(traced, grid.at(3))
    by_index = jax.jit(jax.vmap(lambda i: grid.at(i)))(jnp.arange(5))
    np.testing.assert_array_equal(by_index, grid)
    for wrong in (5, -6):
        with pytest.raises(ValueError, match=f"a grid of 5 levels has no level {wrong}"):
            grid.at(wrong)
    with pytest.raises(ValueError, match="no level 0"):
        grid.at(0).at(0)
