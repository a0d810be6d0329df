"""The options of diffusers' schedulers that are no exponential integrators, and walks over their product."""

import numpy as np

STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 29)  # of 100 times or 200, theirs lists 30 for 29 with trailing spacing
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BETAS = [
    {}, SD, {"beta_schedule": "squaredcos_cap_v2"}, {"num_train_timesteps": 100, "beta_end": 0.15},
    {"trained_betas": list(np.linspace(1e-3, 0.05, 200)), "num_train_timesteps": 200, "beta_schedule": "any"},
]  # fmt: skip


def field(name, *values):
    return [{name: value} for value in values]


WHOLE = [
    *field("timestep_spacing", "trailing", "leading"),
    *({"timestep_spacing": "leading", "steps_offset": offset} for offset in (1, -1)),
]
SPACINGS = [*WHOLE, {"timestep_spacing": "linspace"}, {"timestep_spacing": "linspace", "steps_offset": -1}]
PREDICTIONS = field("prediction_type", "epsilon", "v_prediction", "sample")
CURVES = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
ENDS = [{}, {"sigma_min": 0.05, "sigma_max": 9.0}]
CLIPS = [{"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 0.7}, {"clip_sample": True}]
LIMITS = [*CLIPS, {"thresholding": True, "sample_max_value": 1.3, "dynamic_thresholding_ratio": 0.8}]
ZERO, ONE = field("rescale_betas_zero_snr", False, True), field("set_alpha_to_one", False, True)
TWO = [*PREDICTIONS[:2], *PREDICTIONS[:2], *PREDICTIONS]  # where the third is refused
SIGMAS = [SPACINGS, PREDICTIONS, CURVES, ENDS]
STAGES = [BETAS, SPACINGS, TWO, CURVES, ENDS]
LEARNED = [BETAS, PREDICTIONS, LIMITS, ZERO, ONE, field("original_inference_steps", 50, 30)]
SHIFTS = [
    field("shift", 1.0, 3.0),
    field("invert_sigmas", False, True),
    field("shift_terminal", None, 0.1),
    CURVES,
    [
        {},
        {"use_dynamic_shifting": True},
        {
            "use_dynamic_shifting": True,
            "base_shift": 0.3,
            "max_shift": 1.4,
            "base_image_seq_len": 100,
            "max_image_seq_len": 2000,
        },
    ],
    field("time_shift_type", "exponential", "linear"),
    field("num_train_timesteps", 1000, 100),
    field("uniform_steps", False, True),
]
OPTIONS = {
    "CMStochasticIterativeScheduler": [
        field("num_train_timesteps", 40, 20), field("clip_denoised", True, False), field("s_noise", 1.0, 0.9),
        field("rho", 7.0, 3.0), field("sigma_data", 0.5, 1.0), [{}, {"sigma_min": 0.01, "sigma_max": 20.0}],
    ],
    "DDIMScheduler": [BETAS, SPACINGS, PREDICTIONS, LIMITS, ZERO, ONE],
    "DDIMInverseScheduler": [BETAS, WHOLE, PREDICTIONS, CLIPS, ZERO, ONE],
    "DDPMScheduler": [
        [*BETAS, *field("beta_schedule", "sigmoid", "laplace")], SPACINGS, PREDICTIONS, LIMITS, ZERO,
        field("variance_type", "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned",
              "learned_range"),
    ],
    "PNDMScheduler": [BETAS, SPACINGS, TWO, ONE, field("skip_prk_steps", False, True)],
    "IPNDMScheduler": [[{}, {"num_train_timesteps": 100}, {"trained_betas": list(np.linspace(0.9, 0, 13))}]],
    "LMSDiscreteScheduler": [BETAS, *SIGMAS],
    "EulerDiscreteScheduler": [
        BETAS, SPACINGS, [*PREDICTIONS, *field("prediction_type", "original_sample")], CURVES, ENDS, ZERO,
        field("interpolation_type", "linear", "log_linear"), field("timestep_type", "discrete", "continuous"),
        field("final_sigmas_type", "zero", "sigma_min"),
    ],
    "EulerAncestralDiscreteScheduler": [BETAS, SPACINGS, TWO, ZERO],
    "HeunDiscreteScheduler": [[*BETAS, {"beta_schedule": "exp"}], *SIGMAS, CLIPS],
    "KDPM2DiscreteScheduler": STAGES,
    "KDPM2AncestralDiscreteScheduler": STAGES,
    "DPMSolverSDEScheduler": STAGES,
    "EDMEulerScheduler": [
        TWO, field("sigma_schedule", "karras", "exponential"), field("final_sigmas_type", "zero", "sigma_min"),
        field("sigma_data", 0.5, 1.0), field("rho", 7.0, 3.0), [{}, {"sigma_min": 0.01, "sigma_max": 20.0}],
    ],
    "FlowMatchEulerDiscreteScheduler": [*SHIFTS, field("stochastic_sampling", False, True)],
    "FlowMapEulerDiscreteScheduler": [field("shift", 1.0, 3.0, 0.5, 12.0), field("num_train_timesteps", 1000, 100)],
    "FlowMatchLCMScheduler": [*SHIFTS, field("upscale_mode", "bicubic", "nearest"), [{}, {}, {"scale_factors": []}]],
    "FlowMatchHeunDiscreteScheduler": [field("shift", 1.0, 3.0, 0.5), field("num_train_timesteps", 1000, 100)],
    "LCMScheduler": [*LEARNED, field("timestep_scaling", 10.0, 5.0)],
    "SCMScheduler": [
        field("num_train_timesteps", 1000, 20), field("sigma_data", 0.5, 1.0),
        field("prediction_type", "trigflow", "trigflow", "trigflow", "epsilon"),
    ],
    "TCDScheduler": LEARNED,
}  # fmt: skip

SDXL = {
    **SD, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
TRAILING = SDXL | {"timestep_spacing": "trailing"}
FEW_STEPS = {  # of distilled networks, as published
    "sd-turbo": ("EulerDiscreteScheduler", TRAILING),
    "sdxl-turbo": ("EulerAncestralDiscreteScheduler", TRAILING),
    "sdxl-lightning": ("EulerDiscreteScheduler", TRAILING),
    "sdxl-lightning, 1 step": ("EulerDiscreteScheduler", TRAILING | {"prediction_type": "sample"}),
    "hyper-sd": ("DDIMScheduler", TRAILING),
    "hyper-sd, any steps": ("TCDScheduler", SDXL | {"timestep_spacing": "leading"}),
    "lcm-lora": ("LCMScheduler", SDXL | {"timestep_spacing": "leading"}),
}


def nan(kind, config):
    """Why the reference answers NaN or infinity, or worse than that, if it may."""
    predicted = config.get("prediction_type", "epsilon")
    if config.get("variance_type") == "fixed_large_log":
        return "the square root of a variance's logarithm"
    if config.get("rescale_betas_zero_snr") and predicted == "epsilon" and not kind.startswith("Euler"):
        return "x_0 from a predicted eps where there is nothing but noise"
    if kind == "DDIMInverseScheduler" and predicted == "sample":
        return "eps from a predicted x_0 where there is no noise"
    return None


def walk(kind, count, seed=0):
    """(config, number of steps, how many of them are left out at the beginning), drawn from the product."""
    rng, options = np.random.default_rng([seed, *map(ord, kind)]), OPTIONS[kind]
    for i in range(count):
        config = {}
        for choices in options:
            config |= choices[rng.integers(len(choices))]
        n = int(rng.choice(STEPS))
        yield config, n, i % 3 * n // 4
