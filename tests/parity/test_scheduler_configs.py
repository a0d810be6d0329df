"""Parity with diffusers' schedulers made by `from_config` of the same config: the same network, the same path.

Whole programs, of configs as they are published; `test_step_configs` and `test_exponential_configs` walk over the
options. Both in float64, theirs by reading its float32 as float64, and to 1e-8.
"""

import json
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import KEY, apply, in_double, inject, network, start  # noqa: E402

import jaxdiff as jd  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
EXTRA = {"_diffusers_version": "0.6.0", "clip_sample": False, "trained_betas": None, "interpolation_type": "linear"}
# As published, with the fields of other classes that many carry.
PUBLISHED = {
    "ddpm-cifar10": (
        "DDPMScheduler", 10, {"beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
        "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large"},
    ),
    "sd-1.5": (
        "PNDMScheduler", 10,
        {**SD, **EXTRA, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
    ),
    "sd-2.1": (
        "DDIMScheduler", 20,
        {**SD, **EXTRA, "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1},
    ),
    "sdxl": (
        "EulerDiscreteScheduler", 12,
        {**SD, **EXTRA, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "use_karras_sigmas": False},
    ),
    "sdxl-turbo": (
        "EulerAncestralDiscreteScheduler", 4,
        {**SD, **EXTRA, "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "trailing"},
    ),
    "playground-2.5-like": (
        "EulerDiscreteScheduler", 8,
        {**SD, "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True,
        "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading", "steps_offset": 1},
    ),
    "sd3": ("FlowMatchEulerDiscreteScheduler", 9, {"num_train_timesteps": 1000, "shift": 3.0}),
    "flux-dev": (
        "FlowMatchEulerDiscreteScheduler", 9,
        {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
        "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True},
    ),
    "lcm-dreamshaper": (
        "LCMScheduler", 4,
        {**SD, **EXTRA, "clip_sample_range": 1.0, "original_inference_steps": 50, "prediction_type": "epsilon",
        "set_alpha_to_one": True, "steps_offset": 0, "thresholding": False, "timestep_spacing": "leading"},
    ),
    "if": (
        "DDPMScheduler", 10, {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon",
        "thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5,
        "variance_type": "fixed_small"},
    ),
}  # fmt: skip


@pytest.fixture
def double():
    """diffusers in float64."""
    with in_double():
        yield


def theirs(scheduler, n, **options):
    """x at the beginning, and after each call."""
    scheduler.set_timesteps(n, **options)
    x = torch.from_numpy(start()) * getattr(scheduler, "init_noise_sigma", 1.0)
    x = x.reshape(4, 3, 2) if getattr(scheduler.config, "thresholding", False) else x  # which asks for more axes
    path = [x.numpy()]
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(None, scaled, t), t, x).prev_sample
        path.append(x.numpy())
    return np.stack(path).reshape(len(path), 4, 6)


def ours(made, n):
    sampling = made.sampling
    levels = sampling.grid(n)
    x = jnp.asarray(start()) * sampling.init_noise_std(levels)
    denoise = sampling.clip(jd.denoiser(apply, None, made.prediction))
    path = jax.jit(lambda x: jd.sample_path(denoise, sampling.solver(n), levels, x, KEY)[1])(x)
    return np.concatenate([x[None], path])


MODULES = {
    "DDPMScheduler": "ddpm", "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete", "LCMScheduler": "lcm",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_is_the_same_path(name, double, monkeypatch, tmp_path):
    kind, n, config = PUBLISHED[name]
    if kind in MODULES:
        inject(monkeypatch, f"scheduling_{MODULES[kind]}", n)
        module = import_module(f"diffusers.schedulers.scheduling_{MODULES[kind]}")
        drawn = module.randn_tensor
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **options: drawn().reshape(shape))
    made = getattr(diffusers, kind).from_config(config)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **config}))
    options, tokens = {}, None
    if config.get("use_dynamic_shifting"):
        tokens = 1024
        options = {"mu": 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)}
    want = theirs(made, n, **options)
    got = ours(jd.interop.scheduler(tmp_path, tokens=tokens), n)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())


def test_another_class_takes_the_fields_but_not_the_defaults_written():
    """As theirs: a field that was written because it was the class's default is the other class's default."""
    config = {
        "_class_name": "DDIMScheduler",
        "_use_default_values": ["timestep_spacing"],
        "timestep_spacing": "leading",
        **SD,
    }
    made = diffusers.EulerDiscreteScheduler.from_config(config)
    made.set_timesteps(10)
    levels = jd.interop.scheduler(config, "EulerDiscreteScheduler").sampling.grid(10)
    np.testing.assert_allclose(levels.t[:-1] - 1, made.timesteps.numpy(), rtol=1e-6)
    np.testing.assert_allclose(levels.sigma, made.sigmas.numpy(), rtol=1e-4)


def test_float32_is_near():
    """Ours in float32, without x64, against theirs as it comes."""
    kind, n, config = PUBLISHED["sdxl"]
    want = theirs(getattr(diffusers, kind).from_config(config), n)
    with jax.enable_x64(False):
        got = ours(jd.interop.scheduler({"_class_name": kind, **config}), n)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
