"""What scheduler configs say, and what they may not; parity with diffusers' is in tests/parity."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.interop import scheduler

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PNDM = {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, **SD}


def test_stable_diffusion_is_told_981_first_and_ends_at_the_tables_first_level(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(PNDM))
    made = scheduler(tmp_path)
    levels = made.grid(50)
    told = made.row(levels).noise
    assert told[0] == 981 and told[-2] == 1 and levels.t[-1] == 1
    np.testing.assert_allclose(levels.sigma[-1], math.sqrt(0.00085), rtol=1e-5)
    assert made.std(levels) == pytest.approx(1)


def test_euler_starts_at_the_known_sigma_and_scales_the_networks_input():
    made = scheduler({"_class_name": "EulerDiscreteScheduler", **SD})
    levels = made.grid(20)
    assert float(levels.sigma[0]) == pytest.approx(14.6146, rel=1e-5) and float(levels.sigma[-1]) == 0
    row = made.row(levels)
    np.testing.assert_allclose(row.inp[0], 1 / np.hypot(1, 14.6146), rtol=1e-5)
    np.testing.assert_allclose(row.out[0], -14.6146, rtol=1e-5)
    assert float(row.noise[0]) == 999
    assert float(made.std(levels)) == pytest.approx(14.6146, rel=1e-5)


def test_a_flow_is_shifted_by_the_number_of_tokens():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
    made = scheduler(config, tokens=4096, even=True)
    t = np.linspace(1, 0, 5)
    shift = math.exp(1.15)
    np.testing.assert_allclose(made.grid(4).sigma, shift * t / (1 + (shift - 1) * t), rtol=1e-5)
    np.testing.assert_allclose(made.row(made.grid(4)).noise, 1000 * made.grid(4).sigma, rtol=1e-6)
    with pytest.raises(ValueError, match="tokens"):
        scheduler(config)


@pytest.mark.parametrize("curve", ["karras", pytest.param("beta", marks=pytest.mark.slow)])
def test_a_grid_is_a_constant_inside_of_jit(curve):
    made = scheduler({"_class_name": "DPMSolverMultistepScheduler", f"use_{curve}_sigmas": True, **SD})
    denoise = jd.denoiser(lambda params, x, noise, cond: 0.1 * x, None, made.row)
    x = jax.jit(lambda x, key: jd.sample(denoise, made.solver(4), made.grid(4), x, key))(
        jnp.ones((2, 3)), jax.random.key(0)
    )
    assert jnp.all(jnp.isfinite(x))


def test_what_is_not_supported_is_named():
    for config, words in (
        ({"_class_name": "ScheduleScheduler"}, "PNDMScheduler"),
        ({"_class_name": "DDIMScheduler", "wobble": 2}, "wobble"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "prediction_type must be 'epsilon'"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "beta_schedule"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, "variance_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0"),
        ({"_class_name": "LCMScheduler", "clip_sample": True}, "clip_sample"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True}, "one way"),
    ):
        with pytest.raises(ValueError, match=words):
            scheduler(config)
    for n in (0, 1001, 2.5):
        with pytest.raises(ValueError, match="number of steps"):
            scheduler(PNDM).grid(n)
    with pytest.raises(ValueError, match="does not exist"):
        scheduler("nowhere")
