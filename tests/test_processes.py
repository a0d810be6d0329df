"""processes: each against its paper's formula, transcribed in numpy float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import levels, processes
from jaxdiff.levels import Level
from jaxdiff.processes import EDM, VE, VP, Cosine, Discrete, Flow, Laplace, Learned, Shifted, Sigmoid, SubVP


def _logistic(z):
    return 1 / (1 + np.exp(-z))


def _vp(t, low=0.1, high=20.0):  # Song et al. 2020, eq. 33: alpha^2 = exp(-int_0^t beta)
    alpha2 = np.exp(-0.5 * t**2 * (high - low) - t * low)
    return np.sqrt(alpha2), np.sqrt(1 - alpha2)


def _sub_vp(t):
    alpha, sigma = _vp(t)
    return alpha, sigma**2


def _sigmoid(t, start=-3.0, end=3.0, tau=0.7):  # Chen 2023, algorithm 1
    low, high = _logistic(start / tau), _logistic(end / tau)
    gamma = (high - _logistic((t * (end - start) + start) / tau)) / (high - low)
    return np.sqrt(gamma), np.sqrt(1 - gamma)


def _shifted_flow(t, shift=3.0):  # Esser et al. 2024, eq. 23
    t = shift * t / (1 + (shift - 1) * t)
    return 1 - t, t


def _of_log_snr(log_snr):
    return np.sqrt(_logistic(log_snr)), np.sqrt(_logistic(-log_snr))


def _shifted_cosine(t, d=4.0):  # Hoogeboom et al. 2023, section 3.1: log SNR of the cosine - 2 log d
    return _of_log_snr(-2 * np.log(np.tan(np.pi * t / 2)) - 2 * np.log(d))


def _laplace(t, mu=0.3, b=0.7):  # Hang et al. 2024, table 1
    return _of_log_snr(mu - b * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(t - 0.5)))


LOGITS = np.array([0.3, -1.0, 0.5, 1.2, 0.0])


def _learned(t):
    share = np.exp(LOGITS) / np.exp(LOGITS).sum()
    fallen = np.array([sum(share[j] * np.clip(5 * u - j, 0, 1) for j in range(5)) for u in np.ravel(t)])
    return _of_log_snr(2 * (5 - 10 * fallen.reshape(np.shape(t))))


# name: (process, formula, times between the ends, the first and last time)
PROCESSES = {
    "vp": (VP(), _vp, (0.0, 1.0)),
    "vp_2": (VP(0.2, 5.0), lambda t: _vp(t, 0.2, 5.0), (0.0, 1.0)),
    "sub_vp": (SubVP(), _sub_vp, (0.0, 1.0)),
    "ve": (VE(), lambda t: (np.ones_like(t), 0.01 * (50 / 0.01) ** t), (0.0, 1.0)),
    "edm": (EDM(), lambda t: (np.ones_like(t), t), (0.0, 80.0)),
    "flow": (Flow(), lambda t: (1 - t, t), (0.0, 1.0)),
    "cosine": (Cosine(), lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)), (0.0, 1.0)),
    "sigmoid": (Sigmoid(tau=0.7), _sigmoid, (0.0, 1.0)),
    "laplace": (Laplace(0.3, 0.7), _laplace, (0.0, 1.0)),
    "shifted_flow": (Shifted(Flow(), 3.0), _shifted_flow, (0.0, 1.0)),
    "shifted_cosine": (Shifted(Cosine(), 4.0), _shifted_cosine, (0.0, 1.0)),
    "learned": (Learned(LOGITS), _learned, (0.0, 1.0)),
}
slow = pytest.mark.slow
each = pytest.mark.parametrize("name", PROCESSES)
INNER = np.linspace(0.013, 0.987, 12)  # no knot of the learned one


def _times(name):
    low, high = PROCESSES[name][2]
    return low + (high - low) * INNER


def _float32(process):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), process)


class Facts(NamedTuple):
    """What a process says at some times, from one compiled call."""

    level: Level
    lam: np.ndarray
    time: np.ndarray
    sde: tuple[np.ndarray, np.ndarray]


@functools.cache
def _facts(name, wide):
    """Facts between the ends in float64; near them, too, in float32."""
    with jax.enable_x64(wide):
        process, _, (_, high) = PROCESSES[name]
        t = _times(name) if wide else np.concatenate([_times(name), high * np.array([1e-4, 1e-3, 0.999])])
        dtype = np.float64 if wide else np.float32
        process = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), process)
        say = jax.jit(lambda p, t: Facts(p(t), p(t).lam, p.time(p(t).lam), p.sde(t)))
        return jax.tree.map(np.asarray, say(process, t.astype(dtype)))


@each
def test_levels_are_the_papers(name):
    level = _facts(name, True).level
    alpha, sigma = PROCESSES[name][1](_times(name))
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-10)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-10)
    np.testing.assert_array_equal(level.t, _times(name))


@each
def test_float32_is_as_good_as_float32_can_be(name):
    level = _facts(name, False).level
    alpha, sigma = PROCESSES[name][1](level.t.astype(np.float64))
    assert level.alpha.dtype == level.sigma.dtype == np.float32
    # A time near 1 is itself a rounding away (6e-8), which is what is left of a small alpha.
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-5)


@each
def test_time_inverts_lam_and_lam_falls(name):
    facts = _facts(name, True)
    assert np.all(np.diff(facts.lam) < 0)
    np.testing.assert_allclose(facts.time, _times(name), rtol=1e-10)


@each
def test_time_inverts_lam_in_float32(name):
    """To what a rounding of lam is worth: |dt| <= |dt/dlam| eps |lam|, and a few roundings of t itself."""
    facts, formula = _facts(name, False), PROCESSES[name][1]
    t = facts.level.t.astype(np.float64)
    h = 1e-5 * t
    slope = (np.log(np.divide(*formula(t + h))) - np.log(np.divide(*formula(t - h)))) / (2 * h)
    bound = 4e-7 * (1 + np.abs(facts.lam)) / np.abs(slope) + 2e-6 * t
    assert np.all(np.abs(facts.time - t) <= bound)


@each
def test_ends(name):
    """Both ends: the formula's values, time(lam) there, and gradients in t and the numbers without NaN."""
    process, formula, ends = PROCESSES[name]
    process, t = _float32(process), jnp.asarray(ends, jnp.float32)

    @jax.jit
    def at_ends(process, t):
        grads = jax.grad(lambda p, t: jnp.sum(p(t).alpha) + jnp.sum(p(t).sigma), argnums=(0, 1))(process, t)
        return process(t), process.time(process(t).lam), grads

    level, time, grads = at_ends(process, t)
    with np.errstate(divide="ignore"):
        alpha, sigma = formula(np.asarray(ends))
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(time, t, atol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["flow", "cosine", "sigmoid", "laplace", "shifted_flow"])
def test_exact_zeros(name):
    """alpha = 0 and sigma = 0 are exact, since lam = inf and the refusal of pure noise hang on it."""
    level = _float32(PROCESSES[name][0])(jnp.array([0.0, 1.0]))
    assert level.sigma[0] == 0 and level.alpha[1] == 0


@each
def test_sde_is_the_one_with_these_marginals(name):
    """f = (log alpha)', g^2 = (sigma^2)' - 2 f sigma^2, by central differences of the paper's formula."""
    formula, t = PROCESSES[name][1], _times(name)
    h = 1e-5 * np.minimum(t, 1)
    (a0, s0), (a1, s1) = formula(t - h), formula(t + h)
    f = (np.log(a1) - np.log(a0)) / (2 * h)
    g2 = (s1**2 - s0**2) / (2 * h) - 2 * f * formula(t)[1] ** 2
    drift, diffusion = _facts(name, True).sde
    np.testing.assert_allclose(drift, f, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(np.square(diffusion), g2, rtol=1e-6)


def test_sde_closed_forms():
    """As published: Song et al. 2020, eq. 30, 32, 29; Karras et al. 2022; Liu et al. 2022."""
    t = INNER
    beta = 0.1 + t * 19.9
    published = {
        "vp": (-0.5 * beta, np.sqrt(beta)),
        "sub_vp": (-0.5 * beta, np.sqrt(beta * (1 - np.exp(-2 * (0.1 * t + 0.5 * t**2 * 19.9))))),
        "ve": (0 * t, 0.01 * 5000**t * np.sqrt(2 * np.log(5000))),
        "edm": (0 * t, np.sqrt(2 * 80 * t)),
        "flow": (-1 / (1 - t), np.sqrt(2 * t / (1 - t))),
    }
    for name, (f, g) in published.items():
        drift, diffusion = _facts(name, True).sde
        np.testing.assert_allclose(drift, f, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(diffusion, g, rtol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", pytest.param("sub_vp", marks=slow), pytest.param("cosine", marks=slow)])
def test_sde_simulated(name):
    """Euler-Maruyama of the forward SDE from x_0 = 1.5 to t = 0.6: moments of q(x_t | x_0)."""
    process, n, steps, end, x0 = PROCESSES[name][0], 20_000, 400, 0.6, 1.5
    dt = end / steps

    def step(x, i):
        f, g = process.sde((i + 0.5) * dt)  # the midpoint: the moments are off by O(dt^2) in the coefficients
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i.astype(int)), x.shape)
        return x + f * x * dt + g * jnp.sqrt(dt) * noise, None

    x, _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(steps, dtype=jnp.float32)))(jnp.full(n, x0))
    mean, std = levels.q_mean_std(jnp.float32(x0), process(jnp.float32(end)))
    assert abs(jnp.mean(x) - mean) < 4 * std / np.sqrt(n) + 0.005 * mean
    np.testing.assert_allclose(jnp.std(x), std, rtol=4 / np.sqrt(2 * n) + 0.005)


@each
@pytest.mark.slow
def test_processes_are_pytrees(name):
    """jit takes one as an argument, vmap maps over one's numbers, and integer times are times."""
    process = _float32(PROCESSES[name][0])
    t = jnp.array([0.3, 0.6])
    eager = process(t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), jax.jit(lambda p: p(t))(process), eager)
    np.testing.assert_array_equal(process(jnp.array([0, 1])).alpha, process(jnp.array([0.0, 1.0])).alpha)
    stacked, ts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), process), jnp.stack([t, t])
    np.testing.assert_allclose(jax.vmap(lambda p, t: p(t))(stacked, ts).alpha[1], process(t).alpha, rtol=1e-6)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "flow", "sigmoid", "learned"])
@pytest.mark.parametrize("wide", [True, False])
def test_types_are_kept(name, wide, x64):
    """A Python-number process answers in the type of t; time in the type of lam."""
    dtype = jnp.float64 if wide else jnp.float32
    process = PROCESSES[name][0] if name != "learned" else Learned(jnp.asarray(LOGITS, dtype))
    shapes = jax.eval_shape(lambda t: (process(t), process.time(process(t).lam), process.sde(t)), jnp.zeros(2, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_gradient_reaches_the_numbers(x64):
    """d alpha / d beta_max = -t^2 alpha / 4, and through time by the implicit function theorem."""
    t = 0.4
    grad = jax.grad(lambda p: p(jnp.asarray(t)).alpha)(VP(0.1, 20.0))
    np.testing.assert_allclose(grad.beta_max, -0.25 * t**2 * _vp(t)[0], rtol=1e-10)
    np.testing.assert_allclose(grad.beta_min, (0.25 * t**2 - 0.5 * t) * _vp(t)[0], rtol=1e-10)
    lam, h = jnp.asarray(0.3), 1e-6
    got = jax.grad(lambda b: VP(0.1, b).time(lam))(20.0)
    np.testing.assert_allclose(got, (VP(0.1, 20 + h).time(lam) - VP(0.1, 20 - h).time(lam)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("shift", [0, -1.0])
def test_a_table_is_shifted_by_a_positive_factor(shift):
    with pytest.raises(ValueError, match=f"shift must be positive, got {shift}"):
        Discrete.linear().shifted(shift)


def test_shift_multiplies_the_noise_to_signal_ratio(x64):
    t = jnp.asarray(INNER)
    for base in (VP(), SubVP(), VE(), Flow(), Cosine(), Sigmoid()):
        plain, shifted = jax.jit(lambda base=base: (base(t), Shifted(base, 2.5)(t)))()
        ratio = np.asarray(shifted.sigma / shifted.alpha) / np.asarray(plain.sigma / plain.alpha)
        np.testing.assert_allclose(ratio, 2.5, rtol=1e-10)


class TestLearned:
    def test_ends_are_kept_whatever_the_logits(self):
        for seed in range(3):
            logits = 30 * jax.random.normal(jax.random.key(seed), (16,))
            lam = Learned(logits, 6.0, -4.0)(jnp.array([0.0, 1.0])).lam
            np.testing.assert_allclose(lam, [6.0, -4.0], rtol=2e-6)

    def test_falls_and_is_invertible(self):
        process = Learned(2 * jax.random.normal(jax.random.key(0), (16,)))
        t = jnp.linspace(0, 1, 201)
        lam = process(t).lam
        assert np.all(np.diff(lam) < 0)
        np.testing.assert_allclose(process.time(lam), t, atol=2e-4)

    def test_never_rises_even_with_extreme_logits(self):
        process = Learned(100 * jax.random.normal(jax.random.key(1), (64,)))
        lam, sde = jax.jit(lambda t: (process(t).lam, process.sde(t)))(jnp.linspace(0, 1, 1001))
        assert np.all(np.diff(lam) <= 1e-5) and np.isfinite(lam).all()
        assert all(np.isfinite(c).all() for c in sde)

    def test_gradient_reaches_the_logits_and_not_the_ends(self):
        process = Learned(jnp.zeros(8), jnp.float32(5), jnp.float32(-5))
        grad = jax.grad(lambda p: p(jnp.float32(0.3)).lam)(process)
        assert np.abs(grad.logits).min() > 1e-3
        assert grad.lam_max == 0 and grad.lam_min == 0

    def test_zero_logits_are_straight(self):
        np.testing.assert_allclose(Learned(jnp.zeros(7))(jnp.float32(0.3)).lam, 2.0, rtol=1e-5)


TABLES = {  # the published betas
    "linear": (Discrete.linear(), np.linspace(1e-4, 0.02, 1000)),
    "scaled_linear": (Discrete.scaled_linear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "cosine": (
        Discrete.cosine(),
        np.array([
            min(1 - np.cos(((i + 1) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
                / np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2, 0.999)
            for i in range(1000)
        ]),
    ),
    "sigmoid": (Discrete.sigmoid(), _logistic(np.linspace(-6, 6, 1000)) * (0.02 - 1e-4) + 1e-4),
    "few": (Discrete.from_betas([0.1, 0.3, 0.2]), np.array([0.1, 0.3, 0.2])),
}  # fmt: skip
table = pytest.mark.parametrize("name", TABLES)


class TestDiscrete:
    @table
    def test_tables(self, name):
        process, betas = TABLES[name]
        abar = np.cumprod(1 - betas)
        assert len(betas) == process.T and {process.alpha.dtype, process.sigma.dtype} == {np.dtype("float64")}
        assert process.alpha[0] == 1 and process.sigma[0] == 0
        np.testing.assert_allclose(process.alpha[1:], np.sqrt(abar), rtol=1e-11)
        np.testing.assert_allclose(process.sigma[1:], np.sqrt(1 - abar), rtol=1e-11)
        np.testing.assert_allclose(process.betas, betas, rtol=1e-10)
        np.testing.assert_allclose(Discrete.from_betas(process.betas).alpha, process.alpha, rtol=1e-11)

    @table
    def test_integer_times_read_the_table(self, name):
        process = TABLES[name][0]
        t = jnp.arange(process.T + 1)
        level = process(t)
        assert level.t.dtype == t.dtype and level.alpha.dtype == jnp.float32
        np.testing.assert_array_equal(level.alpha, process.alpha.astype(np.float32))
        np.testing.assert_array_equal(level.sigma, process.sigma.astype(np.float32))

    @pytest.mark.parametrize("name", [n if n in ("linear", "few") else pytest.param(n, marks=slow) for n in TABLES])
    def test_fractional_times_agree_with_the_table_and_interpolate_lam(self, name, x64):
        process = TABLES[name][0]
        level = jax.jit(process.__call__)(jnp.arange(process.T + 1.0))
        np.testing.assert_allclose(level.alpha, process.alpha, rtol=1e-10)
        np.testing.assert_allclose(level.sigma, process.sigma, rtol=1e-10)
        lam = np.log(process.alpha[1:] / process.sigma[1:])
        half = jax.jit(lambda t: process(t).lam)(jnp.arange(1.0, process.T) + 0.25)
        np.testing.assert_allclose(half, lam[:-1] + 0.25 * np.diff(lam), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("zero_snr", [False, True])
    @pytest.mark.parametrize("name", ["linear", "few", *(pytest.param(n, marks=slow) for n in ("cosine", "sigmoid"))])
    def test_fractional_times_are_continuous_monotone_and_invertible(self, name, zero_snr, x64):
        process = TABLES[name][0].zero_terminal_snr() if zero_snr else TABLES[name][0]
        knots = [k + d for k in (1, 2, process.T - 1) for d in (-1e-9, 1e-9)]
        t = np.concatenate([knots, np.linspace(0, 2, 41), np.linspace(2, process.T, 81)[1:]])
        level, lam, time = jax.jit(lambda t: (process(t), process(t).lam, process.time(process(t).lam)))(t)
        for field in (level.alpha, level.sigma):
            np.testing.assert_allclose(field[:6:2], field[1:6:2], rtol=1e-7)
        assert np.all(np.diff(lam[7:]) < 0) and lam[6] == jnp.inf
        np.testing.assert_allclose(time, t, rtol=1e-7, atol=1e-9)
        assert (level.alpha[-1] == 0) == zero_snr

    def test_fractional_times_in_float32(self):
        process = Discrete.linear()
        t = jnp.arange(1001.0)
        alpha, time = jax.jit(lambda t: (process(t).alpha, process.time(process(t - 0.5).lam) + 0.5))(t.at[0].set(0.5))
        np.testing.assert_allclose(time[1:], t[1:], atol=2e-3)
        np.testing.assert_allclose(alpha[1:], process.alpha[1:], rtol=2e-6)

    def test_one_step(self):
        process, t = Discrete.from_betas([0.5]), jnp.array([0.0, 0.5, 1.0])
        np.testing.assert_allclose(process(t).sigma / process(t).alpha, t, atol=1e-6)
        np.testing.assert_allclose(process.time(process(t).lam), t, atol=1e-6)

    @table
    def test_zero_terminal_snr(self, name):
        """Lin et al. 2023, algorithm 1, as printed (it returns betas)."""
        process, betas = TABLES[name]
        alphas_bar_sqrt = np.sqrt(np.cumprod(1 - betas))
        first, last = alphas_bar_sqrt[0].copy(), alphas_bar_sqrt[-1].copy()
        alphas_bar_sqrt = (alphas_bar_sqrt - last) * first / (first - last)
        alphas_bar = alphas_bar_sqrt**2
        new = 1 - np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
        shifted = process.zero_terminal_snr()
        np.testing.assert_allclose(shifted.betas, new, rtol=1e-8)
        assert shifted.alpha[-1] == 0 and shifted.sigma[-1] == 1
        np.testing.assert_allclose(shifted.alpha[1], process.alpha[1], rtol=1e-14)
        np.testing.assert_allclose(Discrete.from_betas(shifted.betas).alpha, shifted.alpha, atol=1e-9)
        np.testing.assert_allclose(shifted.zero_terminal_snr().alpha, shifted.alpha, atol=1e-12)

    def test_zero_terminal_snr_of_one_step(self):
        with pytest.raises(ValueError, match="at least two"):
            Discrete.from_betas([0.5]).zero_terminal_snr()

    @pytest.mark.parametrize("t", [-1, 1001, -0.5, 1000.5, np.nan])
    def test_times_out_of_range(self, t):
        with pytest.raises(ValueError, match=r"0\.\.1000"):
            Discrete.linear()(jnp.array([1, t]))

    def test_constant_times_inside_jit(self):
        process, t, beyond = Discrete.linear(), jnp.array([1, 500]), jnp.array([1001])
        inside = jax.jit(lambda x: x * process(t).alpha)(jnp.ones(2))
        np.testing.assert_array_equal(inside, process(t).alpha)
        with pytest.raises(ValueError, match="1001"):
            jax.jit(lambda x: x * process(beyond).alpha)(jnp.ones(1))

    @pytest.mark.parametrize("betas", [[], [[0.1]], [0.1, 0.0], [0.1, -0.1], [0.1, 1.1], [1.0, 0.5], [0.1, np.nan]])
    def test_bad_betas(self, betas):
        with pytest.raises(ValueError, match="betas"):
            Discrete.from_betas(betas)

    def test_through_jit_vmap_and_grad(self):
        process, t = Discrete.linear(), jnp.array([1, 500, 1000])
        jitted = jax.jit(lambda p, t: p(t))(process, t)
        np.testing.assert_array_equal(jitted.alpha, process(t).alpha)
        np.testing.assert_array_equal(jax.vmap(process)(t).sigma, process(t).sigma)
        half = jnp.array([0.5, 500.5])
        one = jax.jit(lambda p, t: (p(t), p.time(p(t).lam)))(process, half)
        np.testing.assert_allclose(one[0].alpha, process(half).alpha, rtol=1e-6)
        np.testing.assert_allclose(one[1], half, rtol=1e-5)
        slope = jax.jit(jax.vmap(jax.grad(lambda t: process(t).alpha + process(t).sigma)))
        grads = slope(jnp.array([0.0, 0.5, 1.0, 999.5]))
        assert np.isfinite(grads).all()

    def test_a_table_of_float32_times_under_x64(self, x64):
        level = jax.eval_shape(Discrete.linear(), jnp.asarray([0.5, 3.5], jnp.float32))
        assert level.alpha.dtype == level.sigma.dtype == jnp.float32

    @pytest.mark.slow
    def test_sde_counts_steps(self, x64):
        """f -> -beta_t / 2 and g^2 -> beta_t: a step is small, and its rate is -log(1 - beta_t) / 2 on average."""
        process = Discrete.linear()
        f, g = jax.jit(process.sde)(jnp.arange(100.0, 1001.0) - 0.5)
        np.testing.assert_allclose(f, -process.betas[99:] / 2, rtol=0.02)
        np.testing.assert_allclose(np.square(g), process.betas[99:], rtol=0.02)
        h, t = 1e-6, 321.4
        below, above = process(jnp.asarray(t - h)), process(jnp.asarray(t + h))
        np.testing.assert_allclose(process.sde(t)[0], np.log(above.alpha / below.alpha) / (2 * h), rtol=1e-6)

    def test_the_limit_of_many_steps_is_vp(self):
        """beta_t = beta(t / T) / T: abar tends to VP's alpha^2 with error O(1/T) (Song et al. 2020, appendix B)."""
        t = np.array([0.25, 0.5, 1.0])
        errors = []
        for T in (1000, 10_000):
            process = Discrete.from_betas((0.1 + np.arange(1, T + 1) / T * 19.9) / T)
            errors.append(np.abs(process.alpha[(t * T).astype(int)] - _vp(t)[0]).max())
        assert errors[1] < 0.002 and 8 < errors[0] / errors[1] < 12

    def test_shifted(self):
        process, t = Discrete.linear(), jnp.arange(1, 1001)
        shifted = process.shifted(2.0)
        np.testing.assert_allclose(shifted.alpha**2 + shifted.sigma**2, 1, rtol=1e-14)
        got, plain = shifted(t), process(t)
        np.testing.assert_allclose(got.sigma / got.alpha, 2 * plain.sigma / plain.alpha, rtol=1e-6)
        assert shifted.alpha[0] == 1 and shifted.zero_terminal_snr().shifted(3.0).alpha[-1] == 0

    def test_shifted_is_refused_where_the_shift_would_be_lost(self):
        """Beyond the noisiest step a table's time(lam) stays there, so that x_T would keep its old noise."""
        for base in (Discrete.linear(), Learned(jnp.zeros(3))):
            with pytest.raises(ValueError, match="shift"):
                Shifted(base, 2.0)
        for shift in (0, -1.0):
            with pytest.raises(ValueError, match="shift must be positive, got"):
                Shifted(VP(), shift)


def test_all_processes_are_here():
    made = {type(process).__name__ for process, *_ in PROCESSES.values()} | {
        "Discrete",
        "Process",
        "AutodiffSDE",
        "UnitTime",
    }
    assert made == set(processes.__all__)
