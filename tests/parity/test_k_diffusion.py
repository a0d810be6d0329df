"""Parity with k-diffusion's samplers, in PyTorch and float64: the same denoiser, sigmas and noise give the same end.

Only its file of samplers is loaded: the package around it asks for training tools, among them a torchvision that the
CPU build of PyTorch has no partner for. Noise is the increment of one path W at the clock SNR for both sides, so that
what a sampler draws for half a step is part of what it draws for the whole, as of k-diffusion's Brownian trees.

Departures of ours, each on purpose:
- dpmpp_3m_sde gives the second derivative its whole share, k-diffusion's half of it, which leaves order 2 (see
  tests/solvers/test_dpmpp.py): here only the steps before there is one are compared.
- lms integrates its polynomials exactly, k-diffusion by quadrature to a tolerance of 1e-4, here set to 1e-13.
- dpm_adaptive chooses the steps of each example, k-diffusion those of the batch: here examples go alone.
"""

import importlib.util
import sys
from functools import partial
from itertools import pairwise
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("k_diffusion") is None:
    pytest.skip("k_diffusion is not installed", allow_module_level=True)

import jaxdiff as jd  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")
SIGMA = np.append(np.geomspace(20.0, 0.05, 9) * (1 + 0.15 * np.sin(np.arange(9.0))), 0.0)
START = 20 * np.random.default_rng(0).normal(size=(5, 3))
DIRECTION = np.random.default_rng(1).normal(size=(5, 3))


@pytest.fixture(scope="module")
def k_diffusion():
    """The module k_diffusion.sampling."""
    folder = importlib.util.find_spec("k_diffusion").submodule_search_locations[0]
    with pytest.MonkeyPatch.context() as patch:
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = [folder]
        package.utils = utils
        utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
        patch.setitem(sys.modules, "k_diffusion", package)
        patch.setitem(sys.modules, "k_diffusion.utils", utils)
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", f"{folder}/sampling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def denoised(x, sigma):
    return (0.6 * x + 0.1) / (1 + sigma**2 + 0.1 * x**2)


def theirs(sampler, sigma=SIGMA, **settings):
    model = lambda x, sigma: denoised(x, sigma[:, None])  # noqa: E731
    return sampler(model, torch.from_numpy(START), torch.from_numpy(sigma), disable=True, **settings).numpy()


def ours(solver, sigma=SIGMA):
    levels = jd.processes.EDM()(jnp.asarray(sigma))
    denoise = lambda x, level: denoised(x, level.sigma)  # noqa: E731
    return jax.jit(lambda x: jd.sample(denoise, solver, levels, x, jax.random.key(0)))(jnp.asarray(START))


def path(tau, np):
    """A path W at the clock tau = SNR: any function will do, for both sides walk along it."""
    return np.sqrt(tau) * np.sin(2 * np.log(tau))


def increment(begin, end, np):
    tau = [1 / begin**2, 1 / end**2]
    return (path(tau[1], np) - path(tau[0], np)) / np.sqrt(tau[1] - tau[0])


def noise(key, x, cur, nxt):
    return DIRECTION * increment(cur.sigma, jnp.where(nxt.sigma > 0, nxt.sigma, 1e-3), jnp)


def noise_sampler(sigma, sigma_next):
    return torch.from_numpy(DIRECTION) * increment(float(sigma), float(sigma_next), np)


S = jd.solvers
WITHOUT_NOISE = {
    "euler": (S.euler(), {}),
    "heun": (S.heun(), {}),
    "dpm_2": (S.dpm_2(), {}),
    "dpmpp_2m": (S.dpmpp_2m(), {}),
    **{f"lms order {n}": (S.lms(n), {"order": n}) for n in (1, 2, 3, 4)},
}
WITH_NOISE = {
    "euler_ancestral": S.euler_ancestral,
    "dpm_2_ancestral": S.dpm_2_ancestral,
    "dpmpp_2s_ancestral": S.dpmpp_2s_ancestral,
    "dpmpp_sde": S.dpmpp_sde,
    "dpmpp_2m_sde": S.dpmpp_2m_sde,
    "dpmpp_2m_sde heun": partial(S.dpmpp_2m_sde, variant="heun"),
    "dpmpp_3m_sde": S.dpmpp_3m_sde,
}
SETTINGS = [(1.0, 1.0), (0.6, 1.02), (0.0, 1.0)]


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_without_noise(name, k_diffusion, monkeypatch):
    solver, settings = WITHOUT_NOISE[name]
    quad = k_diffusion.integrate.quad
    monkeypatch.setattr(
        k_diffusion.integrate, "quad", lambda f, a, b, epsrel: quad(f, a, b, epsrel=1e-13, epsabs=1e-13)
    )
    sampler = getattr(k_diffusion, f"sample_{name.split()[0]}")
    np.testing.assert_allclose(ours(solver), theirs(sampler, **settings), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", WITH_NOISE)
def test_with_noise(name, k_diffusion):
    sampler = getattr(k_diffusion, f"sample_{name.split()[0]}")
    for eta, s_noise in SETTINGS:
        settings = {"eta": eta, "s_noise": s_noise, "noise_sampler": noise_sampler}
        if "heun" in name or name == "dpmpp_2m_sde":
            settings["solver_type"] = "heun" if "heun" in name else "midpoint"
        solver = WITH_NOISE[name](eta=eta, s_noise=s_noise, noise_sampler=noise)
        sigma = SIGMA[:3] if name == "dpmpp_3m_sde" else SIGMA
        np.testing.assert_allclose(ours(solver, sigma), theirs(sampler, sigma, **settings), rtol=1e-8, atol=1e-8)


ADAPTIVE = {
    "order 3": {"order": 3},
    "order 2": {"order": 2},
    "pid": {"order": 3, "rtol": 2**-8, "atol": 2**-10, "pid": (0.4, 0.3, 0.05), "accept_safety": 0.9, "h_init": 1.5},
    "noise": {"order": 3, "eta": 1.0},
    "some noise": {"order": 2, "eta": 0.6, "s_noise": 1.02, "pid": (0.2, 0.5, 0.0)},
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_of_each_example(name, k_diffusion):
    settings = {"rtol": 2**-4, "atol": 2**-7} | ADAPTIVE[name]  # exact in float32, as torch.tensor(atol) is
    levels = jd.processes.EDM()(jnp.asarray([20.0, 0.05]))
    z = lambda key, x, cur, nxt: jnp.asarray(DIRECTION) * increment(cur.expand_to(x).sigma, nxt.expand_to(x).sigma, jnp)  # noqa: E731
    solver = S.dpm_adaptive(**settings, noise_sampler=z)
    denoise = lambda x, level: denoised(x, level.expand_to(x).sigma)  # noqa: E731
    x, state = jax.jit(lambda x: jd.sample_state(denoise, solver, levels, x, jax.random.key(0)))(jnp.asarray(START))
    settings |= dict(zip(("pcoeff", "icoeff", "dcoeff"), settings.pop("pid", (0.0, 1.0, 0.0)), strict=True))
    theirs = k_diffusion.DPMSolver(lambda x, sigma: denoised(x, sigma[:, None]))
    ends = [-torch.log(torch.tensor(sigma, dtype=torch.float64)) for sigma in (20.0, 0.05)]
    rejected = 0
    for i, start in enumerate(START):
        noise = lambda s, t, i=i: torch.from_numpy(DIRECTION[i : i + 1]) * increment(float(s), float(t), np)  # noqa: E731
        x_i, info = theirs.dpm_solver_adaptive(torch.from_numpy(start[None]), *ends, **settings, noise_sampler=noise)
        np.testing.assert_allclose(x[i], x_i[0].detach(), rtol=1e-8, atol=1e-8)
        assert state.nfe[i] == info["nfe"] and not state.failed[i]
        rejected += info["n_reject"]
    print("evaluations:", state.nfe, "rejected steps:", rejected)
    assert len(set(state.nfe.tolist())) > 1


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_between_two_sigmas(name, k_diffusion, monkeypatch):
    drawn = np.random.default_rng(2).normal(size=(9, *START.shape))
    each = iter(drawn)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.from_numpy(next(each)))
    settings = {"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.01}
    expected = theirs(getattr(k_diffusion, f"sample_{name}"), **settings)
    # They draw in every step, we too: step i's key is i + 1.
    monkeypatch.setattr(jax.random, "fold_in", lambda key, i: jnp.asarray(i))
    monkeypatch.setattr(jd.noise, "_normal", lambda i, shape, dtype: jnp.asarray(drawn)[i])
    churn = lambda level: jnp.where((level.sigma >= 0.2) & (level.sigma <= 9), 2.0 / (len(SIGMA) - 1), 0)  # noqa: E731
    solver = getattr(S, name)(jd.processes.EDM(), churn, 1.01)
    np.testing.assert_allclose(ours(solver), expected, rtol=1e-8, atol=1e-8)


def test_sigmas(k_diffusion):
    n, low, high = 12, 0.02, 50.0
    for grid, rho in (("karras", 5.0), ("exponential", None), ("polyexponential", 1.7)):
        given = {} if rho is None else {"rho": rho}
        levels = getattr(jd.grids, grid)(jd.processes.EDM(), n, sigma_min=low, sigma_max=high, **given)
        expected = getattr(k_diffusion, f"get_sigmas_{grid}")(n, low, high, **given)  # float32
        np.testing.assert_allclose(levels.sigma, expected, rtol=1e-5)
    assert all(a > b for a, b in pairwise(SIGMA))
