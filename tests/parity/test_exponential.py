"""Parity with diffusers' exponential integrators, in PyTorch: the same network, grid and noise give the same steps.

Departures of ours, each on purpose:
- DPM-Solver++(3M) and its SDE form integrate the whole second derivative. diffusers' take half of its share (see
  `dpmpp_3m`): their x is ours less half of that term, which is what is compared. Their SDE form has a sign wrong
  besides (-1/2 for +1/2 in that term), and is not compared.
- Singlestep methods have their inner points at 1/2, or 1/3 and 2/3, in lam. diffusers' take the grid's own levels, so
  they are given such a grid. DPM-Solver-3 is the paper's: "heun" at its second point, "midpoint" at its end.
- The order falls at the end where sigma = 0 and nowhere else (`lower_order_final` acts there below 15 steps). There
  UniPC's bh1 is NaN in diffusers' and finite here; DEIS and DPM-Solver cannot go there, and do here.
- SA-Solver's coefficients of order 2 are the paper's integrals; diffusers' are changed by O(h^3), which is taken back
  before the comparison, and its tau is a function of the table's time, ours of the level.
- DPMSolverSDEScheduler draws its two increments of a step from a tree whose clock is sigma; ours is SNR. Both are given
  the same ones. eta is an argument here, 1 there.
- Their default grids are not compared; they are given one.

All run in float64 (1e-8), the float32 of their modules being replaced by it.
"""

import sys
from importlib import import_module
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import KEY, noises, start  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff import Level  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")
VP = jd.processes.VP()
RHO = np.geomspace(20, 0.05, 13) * np.tile([1, 1.05, 0.95], 5)[:13]  # sigma / alpha, uneven
Z = noises(len(RHO))
PREDICTIONS = {"epsilon": jd.parameterize.eps, "v_prediction": jd.parameterize.v, "sample": jd.parameterize.x0}


class Double:
    """torch, with float64 for float32: their modules compute in what it says."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def network(params, x, rho, cond=None):
    return (0.6 * x + 0.1) / (1 + 0.1 * x**2) + 0.1 * rho / (1 + rho)


def levels_of(rho):
    alpha = 1 / np.sqrt(1 + rho**2)
    lam = -np.log(np.maximum(rho, 1e-300))
    return Level(np.where(rho > 0, np.asarray(VP.time(jnp.asarray(lam))), 0), alpha, rho * alpha)


def drawn(levels):
    return lambda key, x, cur, nxt: jnp.asarray(Z)[jnp.argmin(jnp.abs(levels.sigma - cur.sigma))]


def ours(solver, rho=RHO, prediction="epsilon"):
    prediction = jd.parameterize.with_noise_input(PREDICTIONS[prediction], lambda level: level.sigma / level.alpha)
    denoise = jd.denoiser(lambda params, x, rho, cond: network(params, x, rho[:, None]), None, prediction)
    levels, x = levels_of(rho), jnp.asarray(start())
    return np.asarray(jax.jit(lambda x: jd.sample_path(denoise, solver, levels, x, KEY)[1])(x))


def theirs(monkeypatch, kind, rho=RHO, before=lambda scheduler, i: None, **config):
    """Every x of a diffusers' run on this grid."""
    scheduler = getattr(diffusers, kind)(**config)
    module = type(scheduler).__module__
    monkeypatch.setattr(import_module(module), "torch", Double())
    draws = iter(Z)
    if hasattr(import_module(module), "randn_tensor"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(draws)))
    n = len(rho) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.from_numpy(np.asarray(rho))
    scheduler.timesteps = torch.arange(n, 0, -1)
    x, path = torch.from_numpy(start()), []
    for i, t in enumerate(scheduler.timesteps):
        before(scheduler, i)
        x = scheduler.step(network(None, x, rho[i]), t, x).prev_sample
        path.append(x.numpy())
    return np.stack(path)


def close(out, expected):
    assert expected.dtype == np.float64
    np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-8)


PLAIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}


# DPM-Solver


def with_inner(k):
    """RHO with k - 1 levels between each two, evenly in log."""
    fine = np.interp(np.arange((len(RHO) - 1) * k + 1) / k, np.arange(len(RHO)), np.log(RHO))
    return np.exp(fine)


@pytest.mark.parametrize(("order", "plus"), [(1, "dpmsolver"), (2, "dpmsolver"), (3, "dpmsolver"), (2, "dpmsolver++")])
def test_singlestep(order, plus, monkeypatch):
    def before(scheduler, i):
        # The paper's second point of order 3 takes the slope's exact integral.
        heun = order == 3 and i % 3 == 1
        scheduler.register_to_config(solver_type="heun" if heun else "midpoint")

    solver = jd.solvers.dpm_solver(order, VP) if plus == "dpmsolver" else jd.solvers.dpmpp_2s(VP)
    config = {"algorithm_type": plus, "solver_order": order, "prediction_type": "epsilon"}
    expected = theirs(monkeypatch, "DPMSolverSinglestepScheduler", with_inner(order), before, **config, **PLAIN)
    close(ours(solver), expected[order - 1 :: order])


def test_dpmpp_sde(monkeypatch):
    mid = np.sqrt(RHO[:-1] * RHO[1:])
    # Their module imports torchsde for its tree of noise, which is replaced.
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    scheduler = import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler()
    scheduler.set_timesteps(len(RHO) - 1)
    scheduler.sigmas = torch.from_numpy(np.repeat(RHO, 2)[1:])  # each but the first stands twice
    scheduler.timesteps = torch.arange(2 * (len(RHO) - 1), 0, -1)

    def increment(sigma, to):
        i = int(np.argmin(np.abs(RHO - float(sigma))))
        if abs(float(to) - mid[i]) < 1e-9:
            return torch.from_numpy(Z[i])
        parts = mid[i] ** -2 - RHO[i] ** -2, RHO[i + 1] ** -2 - mid[i] ** -2
        return torch.from_numpy((np.sqrt(parts[0]) * Z[i] + np.sqrt(parts[1]) * -Z[i]) / np.sqrt(sum(parts)))

    scheduler.noise_sampler = increment
    x, expected = torch.from_numpy(start()), []
    for i, t in enumerate(scheduler.timesteps):
        sigma = mid[i // 2] if i % 2 else RHO[i // 2]
        x = scheduler.step(network(None, x, sigma), t, x).prev_sample
        if i % 2:
            expected.append(x.numpy())
    levels = jd.processes.EDM()(RHO)

    def noise(key, x, cur, nxt):
        i = jnp.sum(levels.sigma > cur.sigma * (1 - 1e-9)) - 1
        return jnp.where(jnp.min(jnp.abs(levels.sigma - cur.sigma)) < 1e-9, 1, -1) * jnp.asarray(Z)[i]

    prediction = jd.parameterize.with_noise_input(jd.parameterize.eps, lambda level: level.sigma)
    denoise = jd.denoiser(lambda params, x, rho, cond: network(params, x, rho[:, None]), None, prediction)
    run = lambda x: jd.sample_path(denoise, jd.solvers.dpmpp_sde(noise_sampler=noise), levels, x, KEY)[1]  # noqa: E731
    close(jax.jit(run)(jnp.asarray(start())), np.stack(expected))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmpp_2m(prediction, monkeypatch):
    for rho, config in ((RHO, PLAIN), (np.append(RHO, 0), {})):
        config = {"prediction_type": prediction, **config}
        expected = theirs(monkeypatch, "DPMSolverMultistepScheduler", rho, **config)
        close(ours(jd.solvers.dpmpp_2m(), rho, prediction), expected)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_dpmpp_2m_sde(variant, monkeypatch):
    rho = np.append(RHO[:-1], 0)
    config = {"algorithm_type": "sde-dpmsolver++", "solver_type": variant}
    solver = jd.solvers.dpmpp_2m_sde(variant=variant, noise_sampler=drawn(levels_of(rho)))
    close(ours(solver, rho), theirs(monkeypatch, "DPMSolverMultistepScheduler", rho, **config))


def test_dpmpp_3m_less_half_of_the_second_derivative(monkeypatch):
    config = {"solver_order": 3, "solver_type": "heun"}
    expected = theirs(monkeypatch, "DPMSolverMultistepScheduler", RHO, **config, **PLAIN)
    # Each of our steps from their x, so that only the step's own term differs.
    levels, solver = levels_of(RHO), jd.solvers.dpmpp_3m()
    lam = np.log(levels.alpha / levels.sigma)
    prediction = jd.parameterize.with_noise_input(jd.parameterize.eps, lambda level: level.sigma / level.alpha)
    denoise = jd.denoiser(lambda params, x, rho, cond: network(params, x, rho[:, None]), None, prediction)
    step = jax.jit(lambda x, state, cur, nxt: (denoise(x, cur), *solver.step(denoise, KEY, x, state, cur, nxt)))
    x, state, past = jnp.asarray(start()), solver.init(jnp.asarray(start())), []
    for i, after in enumerate(expected):
        x0, new, state = step(x, state, *(levels.at(k) for k in (i, i + 1)))
        past = [np.asarray(x0), *past[:2]]
        term = 0
        if i > 1:
            h = lam[i + 1] - lam[i]
            slopes = [(past[k] - past[k + 1]) / (lam[i - k] - lam[i - k - 1]) for k in (0, 1)]
            second = 2 * (slopes[0] - slopes[1]) / (lam[i] - lam[i - 2])
            # int exp(lam - lam_s) (lam - lam_t)^2 / 2 dlam, times the derivative
            term = levels.alpha[i + 1] * (h**2 / 2 - h - np.expm1(-h)) * second
        close(np.asarray(new) - 0.5 * term, after)
        x = jnp.asarray(after)


# DEIS


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, monkeypatch):
    expected = theirs(monkeypatch, "DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    close(ours(jd.solvers.deis(order)), expected)


# UniPC


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "corrector"), [(1, True), (2, True), (2, False), (3, True)])
def test_unipc(order, corrector, variant, monkeypatch):
    off = [] if corrector else list(range(len(RHO)))
    config = {"solver_order": order, "solver_type": variant, "disable_corrector": off}
    expected = theirs(monkeypatch, "UniPCMultistepScheduler", **config, **PLAIN)
    close(ours(jd.solvers.unipc(order, variant, corrector=corrector)), expected)


def test_unipc_to_clean_data(monkeypatch):
    rho = np.append(RHO, 0)
    expected = theirs(monkeypatch, "UniPCMultistepScheduler", rho, solver_order=1)
    close(ours(jd.solvers.unipc(1), rho), expected)
    bh1 = {"solver_order": 1, "solver_type": "bh1"}
    assert np.all(np.isfinite(ours(jd.solvers.unipc(1, "bh1"), rho)))
    assert np.all(np.isnan(theirs(monkeypatch, "UniPCMultistepScheduler", rho, **bh1)[-1]))


# SA-Solver


@pytest.mark.parametrize(("p", "c"), [(1, 1), (2, 2), (3, 4)])
def test_sa_solver(p, c, monkeypatch):
    kind = diffusers.SASolverScheduler
    exact = kind.get_coefficients_fn

    def without_their_change(self, order, begin, end, lams, tau):
        found = exact(self, order, begin, end, lams, tau)
        if order == 2:
            h, square = end - begin, 1 + tau**2
            change = torch.exp(square * end) / (lams[0] - lams[1])
            change = change * (h**2 / 2 - (h * square - 1 + torch.exp(-square * h)) / square**2)
            found = [found[0] - change, found[1] + change]
        return found

    monkeypatch.setattr(kind, "get_coefficients_fn", without_their_change)
    config = {"predictor_order": p, "corrector_order": c, "lower_order_final": False}
    expected = theirs(
        monkeypatch, "SASolverScheduler", tau_func=lambda t: torch.tensor(0.8, dtype=torch.float64), **config
    )
    close(ours(jd.solvers.sa_solver(p, c, 0.8, noise_sampler=drawn(levels_of(RHO)))), expected)
