"""What scheduler configs say, and what they may not; parity with diffusers' is in tests/parity."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.interop import network_scheduler, scheduler

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PNDM = {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, **SD}


def test_stable_diffusion_is_told_981_first_and_ends_at_the_tables_first_level(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(PNDM))
    made = scheduler(tmp_path)
    levels = made.sampling.grid(50)
    told = made.prediction(levels).noise
    assert told[0] == 981 and told[1] == told[2] == 961 and told[-2] == 1 and levels.t[-1] == 1
    np.testing.assert_allclose(levels.sigma[-1], math.sqrt(0.00085), rtol=1e-5)
    assert made.sampling.init_noise_std(levels) == pytest.approx(1)


def test_euler_starts_at_the_known_sigma_and_scales_the_networks_input():
    made = scheduler({"_class_name": "EulerDiscreteScheduler", **SD})
    levels = made.sampling.grid(20)
    assert float(levels.sigma[0]) == pytest.approx(14.6146, rel=1e-5) and float(levels.sigma[-1]) == 0
    row = made.prediction(levels)
    np.testing.assert_allclose(row.inp[0], 1 / np.hypot(1, 14.6146), rtol=1e-5)
    np.testing.assert_allclose(row.out[0], -14.6146, rtol=1e-5)
    assert float(row.noise[0]) == 999
    assert float(made.sampling.init_noise_std(levels)) == pytest.approx(14.6146, rel=1e-5)


def test_a_flow_is_shifted_by_the_number_of_tokens():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
    made = scheduler(config, tokens=4096, uniform_steps=True)
    t = np.linspace(1, 0, 5)
    shift = math.exp(1.15)
    np.testing.assert_allclose(made.sampling.grid(4).sigma, shift * t / (1 + (shift - 1) * t), rtol=1e-5)
    np.testing.assert_allclose(
        made.prediction(made.sampling.grid(4)).noise, 1000 * made.sampling.grid(4).sigma, rtol=1e-6
    )
    with pytest.raises(ValueError, match="tokens"):
        scheduler(config)


@pytest.mark.parametrize("kind", ["DEIS", "DPMSolver", "UniPC"])
def test_a_flow_with_a_table_is_shifted_by_the_number_of_tokens(kind):
    """Without one, UniPC is refused, and the others have `flow_shift`, as theirs without `mu`."""
    config = {"_class_name": f"{kind}MultistepScheduler", "use_flow_sigmas": True, "use_dynamic_shifting": True}
    second = lambda **more: scheduler(config | {"flow_shift": 2.0}, **more).sampling.grid(4).sigma[1]  # noqa: E731
    t = 0.75025 if kind == "UniPC" else 0.74925  # the second of 4 times from 1 or 0.999 on
    at = lambda shift: shift * t / (1 + (shift - 1) * t)  # noqa: E731
    np.testing.assert_allclose(second(tokens=4096), at(math.exp(1.15)), rtol=1e-5)
    if kind == "UniPC":
        with pytest.raises(ValueError, match="tokens"):
            second()
        return
    np.testing.assert_allclose(second(), at(2.0), rtol=1e-5)
    with pytest.raises(ValueError, match="time_shift_type must be 'exponential', got 'linear'"):
        scheduler(config | {"time_shift_type": "linear"}, tokens=4096)


def test_an_offset_ends_at_no_time_below_0_where_the_table_is_read():
    """DDIM's last level would be the table's, and Euler's is the first; without leading times nothing is added."""
    odd = {"timestep_spacing": "leading", "steps_offset": -1}
    for kind in ("DDIM", "DDIMInverse", "DDPM", "PNDM"):
        with pytest.raises(ValueError, match=f"{kind}Scheduler: steps_offset -1 .* must be at least 0"):
            scheduler({**odd, "_class_name": f"{kind}Scheduler"})
        if kind != "DDIMInverse":
            scheduler({**odd, "_class_name": f"{kind}Scheduler", "timestep_spacing": "trailing"}).sampling.grid(5)
    made = scheduler({**odd, "_class_name": "EulerDiscreteScheduler"})
    levels = made.sampling.grid(5)
    np.testing.assert_array_equal(made.prediction(levels).noise[:-1], [799, 599, 399, 199, -1])
    np.testing.assert_allclose(levels.sigma[-2], math.sqrt(1e-4 / (1 - 1e-4)), rtol=1e-5)


@pytest.mark.parametrize("curve", ["karras", pytest.param("beta", marks=pytest.mark.slow)])
def test_a_grid_is_a_constant_inside_of_jit(curve):
    made = scheduler({"_class_name": "DPMSolverMultistepScheduler", f"use_{curve}_sigmas": True, **SD})
    denoise = jd.denoiser(lambda params, x, noise, cond: 0.1 * x, None, made.prediction)
    x = jax.jit(lambda x, key: jd.sample(denoise, made.sampling.solver(4), made.sampling.grid(4), x, key))(
        jnp.ones((2, 3)), jax.random.key(0)
    )
    assert jnp.all(jnp.isfinite(x))


def test_a_field_of_other_versions_says_nothing_and_an_empty_one_what_it_says_in_theirs():
    """Empty, a flag is down; sigma_min, a class's name for nothing; and others are as if they weren't there."""
    plain = scheduler({"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False})
    other = {"tensor_format": "pt", "clip_sample": None, "set_alpha_to_one": None, "steps_offset": None}
    made = scheduler({"_class_name": "DDIMScheduler", "skip_prk_steps": True, "trained_betas": None, **other})
    x, key = jnp.full((2, 3), 0.3), jax.random.key(0)
    apply = lambda params, x, noise, cond: 0.5 * x + 0.001 * noise[:, None]  # noqa: E731
    answers = [
        jd.sample(
            made.sampling.clip(jd.denoiser(apply, None, made.prediction)),
            made.sampling.solver(3),
            made.sampling.grid(3),
            x,
            key,
        )
        for made in (plain, made)
    ]
    np.testing.assert_array_equal(*answers)
    assert float(made.sampling.grid(3).sigma[-1]) > 0


def test_ddim_goes_down_by_the_whole_part_of_T_over_N_wherever_its_list_goes():
    """3 steps of 10 times: 9, 4.5 rounded to 4, and 0; told of 4, x is where 9 - 3 led, and goes to 4 - 3."""
    betas = np.linspace(0.1, 0.5, 10)
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10, "trained_betas": list(betas)}
    made = scheduler({**config, "timestep_spacing": "linspace", "clip_sample": False, "prediction_type": "sample"})
    levels = made.sampling.grid(3)
    np.testing.assert_array_equal(made.prediction(levels).noise[:-1], [9, 4, 0])
    abar = np.cumprod(1 - betas)
    x, want = 0.3, 0.3
    for t, s in ((9, abar[6]), (4, abar[1]), (0, 1.0)):
        eps = (want - abar[t] ** 0.5 * 0.1 * t) / (1 - abar[t]) ** 0.5
        want = s**0.5 * 0.1 * t + (1 - s) ** 0.5 * eps
    apply = lambda params, x, noise, cond: jnp.broadcast_to(0.1 * noise[:, None], x.shape)  # noqa: E731
    denoise = jd.denoiser(apply, None, made.prediction)
    got = jax.jit(lambda x: jd.sample(denoise, made.sampling.solver(3), levels, x, jax.random.key(0)))(
        jnp.full((1, 1), x)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["DDIMInverseScheduler", "DPMSolverSDEScheduler", "IPNDMScheduler", "PNDMScheduler", "TCDScheduler"],
)
def test_a_program_in_float32_is_near_that_in_float64(kind):
    made = scheduler({"_class_name": kind})
    denoise = made.sampling.clip(
        jd.denoiser(lambda params, x, noise, cond: jnp.tanh(x) + 1e-4 * noise[:, None], None, made.prediction)
    )
    x = np.random.default_rng(0).normal(size=(2, 3))

    def draw(x):
        levels = made.sampling.grid(5)
        zero = lambda key, shape, dtype: jnp.zeros(shape, dtype)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jd.noise, "_normal", zero)  # a type's own numbers differ
            return jax.jit(lambda x: jd.sample(denoise, made.sampling.solver(5), levels, x, jax.random.key(0)))(
                x * made.sampling.init_noise_std(levels)
            )

    got = draw(jnp.asarray(x, jnp.float32))
    assert got.dtype == jnp.float32
    with jax.enable_x64():
        want = draw(jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_what_is_not_supported_is_named():
    for config, words in (
        ({"_class_name": "ScheduleScheduler"}, "PNDMScheduler"),
        ({"_class_name": "DDIMScheduler", "wobble": 2}, "wobble"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "prediction_type must be 'epsilon'"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, "beta_schedule"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "prediction_type"),
        ({"_class_name": "TCDScheduler", "original_inference_steps": 1001}, "number of steps"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, "variance_type"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True}, "one schedule"),
    ):
        with pytest.raises(ValueError, match=words):
            scheduler(config)
    for n in (0, 1001, 2.5):
        with pytest.raises(ValueError, match="number of steps"):
            scheduler({**PNDM, "_class_name": "DDIMScheduler"}).sampling.grid(n)
    with pytest.raises(ValueError, match="at least 4 steps"):
        scheduler({**PNDM, "skip_prk_steps": False}).sampling.grid(3)
    with pytest.raises(ValueError, match="does not exist"):
        scheduler("nowhere")


@pytest.mark.parametrize("network", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_a_networks_flow_is_not_sampled_as_something_else(network):
    def read(config, kind=None):
        return network_scheduler(config, {"_class_name": network}, (8, 8), kind)

    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    dpm = {"_class_name": "DPMSolverMultistepScheduler", **SD}
    flow_dpm = {**dpm, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for config, kind in ((flow, None), (flow, "FlowMatchHeunDiscreteScheduler"), (flow_dpm, None)):
        assert isinstance(read(config, kind).process, jd.processes.Flow)
    wrong = [
        (flow, "EulerDiscreteScheduler"), ({"_class_name": "DDIMScheduler"}, None), (dpm, None),
        ({**dpm, "prediction_type": "flow_prediction"}, None), ({**flow_dpm, "prediction_type": "epsilon"}, None),
        ({**flow_dpm, "prediction_type": "v_prediction"}, None),
    ]  # fmt: skip
    for config, kind in wrong:
        with pytest.raises(ValueError, match=r"predicts a flow's velocity: .*FlowMatchHeun.*use_flow_sigmas"):
            read(config, kind)
    plain = network_scheduler({"_class_name": "DDIMScheduler"}, {"_class_name": "UNet2DModel"}, (8, 8))
    assert isinstance(plain.process, jd.processes.Discrete)
