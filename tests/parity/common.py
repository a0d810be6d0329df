"""What the comparisons with diffusers' schedulers share: a network and a table for both, and the path of each."""

from contextlib import contextmanager
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxdiff as jd

T = 1000
TABLE = jd.processes.Discrete.linear(T)
ROWS = {"epsilon": jd.parameterize.eps, "v_prediction": jd.parameterize.v, "sample": jd.parameterize.x0}
KEY = jax.random.key(0)


def network(params, x, noise, cond=None):
    """A network of plain arithmetic, for JAX and for PyTorch; `noise` counts from 0."""
    if isinstance(noise, torch.Tensor):
        noise = noise.item()  # an integer tensor times a number would be float32
    return (0.6 * x + 0.1) / (1 + 0.1 * x**2) + 0.0003 * noise


def apply(params, x, noise, cond):
    return network(params, x, noise[:, None])


def start():
    return np.random.default_rng(0).normal(size=(4, 6))


def noises(n):
    return np.random.default_rng(1).normal(size=(n, 4, 6))


def in_float64(scheduler):
    # Before `set_timesteps`: the tables, from which everything else is taken.
    scheduler.betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    return scheduler


@contextmanager
def in_double():
    """All of diffusers in float64: its float32 is read as that."""
    with pytest.MonkeyPatch.context() as patch:
        for library in (torch, np):
            patch.setattr(library, "float32", library.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        yield patch
    torch.set_default_dtype(torch.float32)


def path_of(scheduler, model=lambda x, t: network(None, x, t), **kwargs):
    """Every x of a diffusers' run."""
    x, path = torch.from_numpy(start()), []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, **kwargs).prev_sample
        path.append(x.numpy())
    return np.stack(path)


def path_of_ours(solver, prediction, levels, apply=apply):
    denoise = jd.denoiser(apply, None, prediction)
    x = jnp.asarray(start())
    return np.asarray(jax.jit(lambda x: jd.sample_path(denoise, solver, levels, x, KEY)[1])(x))


def inject(monkeypatch, module, n):
    """Make step i of ours and of diffusers' module draw noises(n)[i], which are returned."""
    z, drawn = noises(n), iter(noises(n))
    monkeypatch.setattr(import_module("jaxdiff.sample"), "fold_in", lambda key, i: i)
    monkeypatch.setattr(jd.noise, "_normal", lambda i, shape, dtype: jnp.asarray(z)[i])
    theirs = lambda *args, **kwargs: torch.from_numpy(next(drawn))  # noqa: E731
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", theirs)
    return z


def denoise_as_eps(x, sigma):
    """eps of a denoiser x / (1 + sigma^2) + 0.1, for both."""
    return (x - (x / (1 + sigma**2) + 0.1)) / sigma


def sigma_apply(params, x, sigma, cond):
    return denoise_as_eps(x, sigma[:, None])
