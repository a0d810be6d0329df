"""DPM-Solver++ against its paper's algorithms and the form in which k-diffusion writes them, in numpy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")


def run(levels, x, denoise=rational):
    return jax.jit(lambda x: jd.sample(denoise, jd.solvers.dpmpp_2m(), levels, x, jax.random.key(0)))(x)


def at(alpha, sigma):
    return Level(np.float64(0), np.float64(alpha), np.float64(sigma))


def test_is_algorithm_2_on_an_uneven_grid():
    """Lu et al. 2022b, algorithm 2, in the paper's indices."""
    t = np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.05])
    alpha = np.exp(-0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1)
    sigma = np.sqrt(1 - alpha**2)
    lam = np.log(alpha / sigma)
    start = np.random.default_rng(0).normal(size=(5, 2))

    x, h = start, np.append(np.nan, np.diff(lam))
    Q = [rational(x, at(alpha[0], sigma[0]))]
    x = sigma[1] / sigma[0] * x - alpha[1] * (np.exp(-h[1]) - 1) * Q[0]
    Q.append(rational(x, at(alpha[1], sigma[1])))
    for i in range(2, len(t)):
        r = h[i - 1] / h[i]
        D = (1 + 1 / (2 * r)) * Q[i - 1] - 1 / (2 * r) * Q[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h[i]) - 1) * D
        Q.append(rational(x, at(alpha[i], sigma[i])))
    np.testing.assert_allclose(run(jd.processes.VP()(t), jnp.asarray(start)), x, rtol=1e-8)


def test_on_sigmas_that_end_at_0_the_last_step_is_of_order_1():
    """As sample_dpmpp_2m of k-diffusion writes it, with alpha = 1 and t = -log sigma."""
    sigmas = np.append(np.geomspace(20.0, 0.05, 8), 0.0)
    start = 20 * np.random.default_rng(0).normal(size=(5, 2))
    x, old = start, None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = rational(x, at(1, sigma))
        with np.errstate(divide="ignore"):
            h = np.log(sigma) - np.log(sigma_next)
        if old is None or sigma_next == 0:
            used = denoised
        else:
            r = (np.log(sigmas[i - 1]) - np.log(sigma)) / h
            used = denoised + (denoised - old) / (2 * r)
        x, old = sigma_next / sigma * x - np.expm1(-h) * used, denoised
    np.testing.assert_allclose(run(jd.processes.EDM()(sigmas), jnp.asarray(start)), x, rtol=1e-9)


def test_the_first_two_steps_from_pure_noise_are_of_order_1():
    levels, x = (
        jd.grids.by_time(jd.processes.Flow(), 5, end=0.5),
        jnp.asarray(np.random.default_rng(0).normal(size=(5, 2))),
    )
    for n in (1, 2, 3):
        head = levels.at(slice(None, n + 1))
        euler = jax.jit(lambda x: jd.sample(rational, jd.solvers.euler(), head, x, jax.random.key(0)))(x)  # noqa: B023
        assert np.allclose(run(head, x), euler, rtol=1e-12) is (n < 3)


def test_does_not_draw_noise_and_evaluates_once():
    solver = jd.solvers.dpmpp_2m()
    assert (solver.order, solver.nfe, solver.stochastic) == (2, 1, False)


# The others


def at_cur(z, levels):
    """Noise that is the row of z for the grid's level where the increment begins; of its second half for inner ones."""

    def noise(key, x, cur, nxt):
        apart = jnp.abs(jnp.asarray(levels.sigma) - cur.sigma)
        i = jnp.sum(jnp.asarray(levels.sigma) > cur.sigma * (1 + 1e-9))
        return jnp.asarray(z)[jnp.where(jnp.min(apart) < 1e-9 * cur.sigma, i, len(z) // 2 + i - 1)]

    return noise


SIGMAS = np.append(np.geomspace(20.0, 0.05, 8) * np.array([1, 0.8, 1, 1.2, 1, 0.9, 1.1, 1]), 0.0)
START = 20 * np.random.default_rng(0).normal(size=(5, 2))
ODES = "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "dpmpp_2s"
Z = np.random.default_rng(1).normal(size=(16, 5, 2))


def on_sigmas(of):
    levels = jd.processes.EDM()(SIGMAS)
    solver = of(at_cur(Z, levels))
    return jax.jit(lambda x: jd.sample(rational, solver, levels, x, jax.random.key(0)))(jnp.asarray(START))


def ancestral(sigma, to, eta):
    up = eta * np.sqrt(to**2 * (sigma**2 - to**2) / sigma**2)
    return np.sqrt(to**2 - up**2), up


def D(x, sigma):
    return rational(x, at(1, sigma))


def toward(x, x0, sigma, to):
    """DDIM's step in sigma, alpha = 1."""
    return to / sigma * x + (1 - to / sigma) * x0


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_2s_is_algorithm_1_and_its_ancestral_form_k_diffusions(eta):
    """k-diffusion's sample_dpmpp_2s_ancestral; eta = 0 is algorithm 1 of Lu et al. 2022b with r = 1/2."""
    x = START
    for i, (sigma, to) in enumerate(pairwise(SIGMAS)):
        down, up = ancestral(sigma, to, eta)
        mid = np.sqrt(sigma * down)
        x0 = D(x, sigma)
        if to > 0:
            x0 = D(toward(x, x0, sigma, mid), mid)
        x = toward(x, x0, sigma, down) + 0.9 * up * Z[i]
    np.testing.assert_allclose(on_sigmas(lambda noise: jd.solvers.dpmpp_2s_ancestral(eta, 0.9, noise_sampler=noise)), x)
    if eta == 0:
        np.testing.assert_allclose(on_sigmas(lambda noise: jd.solvers.dpmpp_2s()), x)


@pytest.mark.parametrize(("eta", "r"), [(0.0, 0.5), (0.6, 0.3), (1.0, 0.5)])
def test_sde_is_k_diffusions(eta, r):
    """k-diffusion's sample_dpmpp_sde, its two draws increments of one path that has the clock 1 / sigma^2."""
    x = START
    for i, (sigma, to) in enumerate(pairwise(SIGMAS)):
        x0 = D(x, sigma)
        if to == 0:
            x = x0
            continue
        mid = sigma ** (1 - r) * to**r
        down, up = ancestral(sigma, mid, eta)
        x0_mid = D(toward(x, x0, sigma, down) + 0.9 * up * Z[i], mid)
        x0 = (1 - 0.5 / r) * x0 + 0.5 / r * x0_mid
        before, after = mid**-2 - sigma**-2, to**-2 - mid**-2
        z = (np.sqrt(before) * Z[i] + np.sqrt(after) * Z[8 + i]) / np.sqrt(before + after)
        down, up = ancestral(sigma, to, eta)
        x = toward(x, x0, sigma, down) + 0.9 * up * z
    np.testing.assert_allclose(on_sigmas(lambda noise: jd.solvers.dpmpp_sde(eta, 0.9, r, noise_sampler=noise)), x)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_2m_sde_is_k_diffusions(variant, eta):
    x, old, h_last = START, None, None
    for i, (sigma, to) in enumerate(pairwise(SIGMAS)):
        x0 = D(x, sigma)
        if to == 0:
            x = x0
            continue
        h = np.log(sigma / to)
        H = h + eta * h
        x = to / sigma * np.exp(-eta * h) * x - np.expm1(-H) * x0
        if old is not None:
            slope = (x0 - old) / (h_last / h)
            x = x + (1 + np.expm1(-H) / H if variant == "heun" else -0.5 * np.expm1(-H)) * slope
        x = x + 0.9 * to * np.sqrt(-np.expm1(-2 * eta * h)) * Z[i]
        old, h_last = x0, h
    out = on_sigmas(lambda noise: jd.solvers.dpmpp_2m_sde(eta, 0.9, variant, noise_sampler=noise))
    np.testing.assert_allclose(out, x)


def three(sigmas, x, eta=0.0, *, second, denoise=D, exact=()):
    """k-diffusion's sample_dpmpp_3m_sde; it takes `second` = 1/2 of the second derivative's share.

    The first steps end on `exact`.
    """
    past, hs = [], []
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if to == 0:
            return x0
        h = np.log(sigma / to)
        H = h * (1 + eta)
        new = np.exp(-H) * x - np.expm1(-H) * x0 + 0.9 * to * np.sqrt(-np.expm1(-2 * eta * h)) * Z[i % 16]
        phi_2 = np.expm1(-H) / H + 1
        phi_3 = phi_2 / H - 0.5
        if len(past) > 1:
            r0, r1 = hs[0] / h, hs[1] / h
            d1_0, d1_1 = (x0 - past[0]) / r0, (past[0] - past[1]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = 2 * (d1_0 - d1_1) / (r0 + r1)  # the second derivative, by h^2
            new = new + phi_2 * d1 - second * phi_3 * d2
        elif past:
            new = new + phi_2 * (x0 - past[0]) / (hs[0] / h)
        x = exact[i] if i < len(exact) else new
        past, hs = [x0, *past[:1]], [h, *hs[:1]]
    return x


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_3m_is_k_diffusions_with_the_whole_second_derivative(eta):
    out = on_sigmas(lambda noise: jd.solvers.dpmpp_3m_sde(eta, 0.9, noise_sampler=noise))
    np.testing.assert_allclose(out, three(SIGMAS, START, eta, second=1))
    assert not np.allclose(out, three(SIGMAS, START, eta, second=0.5), rtol=1e-4)
    if eta == 0:
        np.testing.assert_allclose(on_sigmas(lambda noise: jd.solvers.dpmpp_3m()), out, rtol=1e-12)


def test_half_of_the_second_derivative_leaves_order_2():
    (mean, cov), start = BLOB.moments(Level(0.0, 1.0, 0.0)), np.array([[1.0, 0.3]])

    def denoise(x, sigma):
        return mean + (x - mean) @ np.linalg.solve(cov + sigma**2 * np.eye(2), cov)

    def error(second, n):
        sigmas = np.geomspace(4.0, 0.15, n + 1)
        exact = [np.asarray(BLOB.flow(jnp.asarray(start), at(1, 4.0), at(1, sigma))) for sigma in sigmas[[1, 2, 3, -1]]]
        return np.linalg.norm(three(sigmas, start, second=second, denoise=denoise, exact=exact[:-1]) - exact[-1])

    slopes = [np.log(error(second, 100) / error(second, 400)) / np.log(4) for second in (0.5, 1)]
    np.testing.assert_allclose(slopes, [2, 3], atol=0.1)


@pytest.mark.slow
def test_without_noise_the_sde_methods_are_the_odes():
    levels, x = jd.processes.VP()(np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.0])), jnp.asarray(START / 20)

    sdes = [jd.solvers.dpmpp_2m_sde(0.0), jd.solvers.dpmpp_3m_sde(0), jd.solvers.dpmpp_2s_ancestral(0.0)]
    sdes, odes = [*sdes, jd.solvers.dpmpp_sde(0.0)], [getattr(jd.solvers, name)() for name in ODES]
    run = jax.jit(lambda x: [jd.sample(rational, solver, levels, x, jax.random.key(0)) for solver in sdes + odes])
    out = run(x)
    np.testing.assert_allclose(out[:4], out[4:], rtol=1e-10)
    assert [solver[2:] for solver in sdes] == [solver[2:] for solver in odes]
    assert [solver.stochastic for solver in odes] == [False] * 4


@pytest.mark.slow
def test_a_traced_eta_of_0_is_the_ode_with_its_draws_at_0():
    levels, x = jd.grids.by_time(jd.processes.Flow(), 4), jnp.asarray(START / 20)  # pure noise to clean data

    @jax.jit
    def run(x, eta):
        makers = (jd.solvers.dpmpp_2m_sde, jd.solvers.dpmpp_3m_sde, jd.solvers.dpmpp_2s_ancestral, jd.solvers.dpmpp_sde)
        solvers = [maker(eta) for maker in makers] + [getattr(jd.solvers, name)() for name in ODES]
        return [jd.sample(rational, solver, levels, x, jax.random.key(0)) for solver in solvers]

    out, noisy = run(x, 0.0), run(x, 1.0)[:4]
    np.testing.assert_allclose(out[:4], out[4:], rtol=1e-10)
    assert all(np.all(np.isfinite(a)) and not np.allclose(a, b) for a, b in zip(noisy, out, strict=False))


def test_bad_arguments_are_refused():
    for maker in (jd.solvers.dpmpp_2s_ancestral, jd.solvers.dpmpp_sde):
        with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, 1\], got 1.5"):
            maker(1.5)
    for maker in (jd.solvers.dpmpp_2m_sde, jd.solvers.dpmpp_3m_sde):
        with pytest.raises(ValueError, match=r"eta must be at least 0, got -0\.5"):
            maker(-0.5)
    with pytest.raises(ValueError, match="variant must be midpoint or heun, got 'bh2'"):
        jd.solvers.dpmpp_2m_sde(variant="bh2")
    with pytest.raises(ValueError, match="r must lie between 0 and 1, got 1"):
        jd.solvers.dpmpp_sde(r=1)
