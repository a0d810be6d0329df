"""The options of diffusers' exponential integrators, and walks over their product."""

import numpy as np

STEPS = (1, 2, 3, 5, 10, 14, 15, 20)
BETAS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": list(np.linspace(1e-3, 0.05, 200)), "num_train_timesteps": 200},
]
CURVES = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
FLOW = [{"use_flow_sigmas": True}, {"use_flow_sigmas": True, "flow_shift": 3.0}]
DYNAMIC = {"use_flow_sigmas": True, "use_dynamic_shifting": True}  # and of another class's fields, for pipelines
SHIFTED = [*FLOW, DYNAMIC, {**DYNAMIC, "base_shift": 0.3, "max_image_seq_len": 2000}]
SPACINGS = [
    {}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "leading", "steps_offset": -20},
]  # fmt: skip
LIMITS = [{}, {}, {}, {"thresholding": True, "sample_max_value": 1.3, "dynamic_thresholding_ratio": 0.8}]
LEAST = [{}, {}, {"lambda_min_clipped": -5.1}]
# Fields that some classes have, of which the others read the ends of curves alone.
OTHERS = [
    LEAST, [{}, {}, {"sigma_min": 0.05, "sigma_max": 10.0}],
    [{}, {}, {"variance_type": "fixed_small"}, {"variance_type": "fixed_large"}],
]  # fmt: skip


def field(name, *values):
    return [{name: value} for value in values]


PREDICTIONS = field("prediction_type", "epsilon", "v_prediction", "sample", "flow_prediction")
LOWER = field("lower_order_final", True, False)
ENDS = field("final_sigmas_type", "zero", "sigma_min")
LU = [{}, {}, {"use_lu_lambdas": True}]
ALL = [BETAS, PREDICTIONS, LIMITS, *OTHERS]
DPM = [
    field("solver_order", 1, 2, 3), field("solver_type", "midpoint", "heun", "logrho"), LOWER,
    field("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "dpmsolver"),
]  # fmt: skip
OPTIONS = {
    "DPMSolverMultistepScheduler": [
        *ALL, *DPM, [{}, {}, {"algorithm_type": "sde-dpmsolver"}], field("euler_at_final", False, True), ENDS, SPACINGS,
        [*CURVES, *SHIFTED, LU[-1]], [{}, {}, {"rescale_betas_zero_snr": True}],
    ],
    "DPMSolverSinglestepScheduler": [*ALL, *DPM, LU, ENDS, [*CURVES, *SHIFTED]],
    "DPMSolverMultistepInverseScheduler": [
        *ALL, *DPM, LU, [{}, {}, {"algorithm_type": "sde-dpmsolver"}], field("euler_at_final", False, True), SPACINGS,
        [*CURVES, *FLOW],
    ],
    "DEISMultistepScheduler": [*ALL, LU, field("solver_order", 1, 2, 3), LOWER, SPACINGS, [*CURVES, *SHIFTED]],
    "UniPCMultistepScheduler": [
        *ALL, LU, field("solver_order", 1, 2, 3, 4), field("solver_type", "bh2", "bh1", "midpoint"), LOWER, ENDS,
        SPACINGS, field("predict_x0", True, True, False), field("disable_corrector", [], [], [0], [1, 3]),
        [*CURVES, *SHIFTED, DYNAMIC | {"time_shift_type": "linear"}, {"use_dynamic_shifting": True},
         {"use_flow_sigmas": True, "use_karras_sigmas": True},
         {"use_flow_sigmas": True, "shift_terminal": 0.1}],
        [{}, {}, {"rescale_betas_zero_snr": True}],
    ],
    "SASolverScheduler": [
        *ALL, LU, field("predictor_order", 1, 2, 3, 4), field("corrector_order", 1, 2, 3, 4), LOWER, SPACINGS,
        field("algorithm_type", "data_prediction", "noise_prediction"), [*CURVES, *FLOW],
    ],
    "EDMDPMSolverMultistepScheduler": [
        PREDICTIONS[:2], LIMITS, *DPM[:3], field("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "deis"), ENDS,
        field("euler_at_final", False, True), field("sigma_schedule", "karras", "exponential"),
        field("sigma_data", 0.5, 1.0),
    ],
}  # fmt: skip


def walk(kind, count, seed=0):
    """(config, number of steps), drawn from the product of a class's options."""
    rng, options = np.random.default_rng([seed, *map(ord, kind)]), OPTIONS[kind]
    for _ in range(count):
        config = {}
        for choices in options:
            config |= choices[rng.integers(len(choices))]
        yield config, int(rng.choice(STEPS))


def _is(config, *names):
    return any(config.get(name) for name in names)


def _algorithm(config):
    return config.get("algorithm_type", "")


def _rests(kind, config):
    """Whether the last step goes from a level to itself."""
    if config.get("final_sigmas_type", "sigma_min") == "zero":
        return False
    repeats = kind[:3] in ("DEI", "SAS", "Uni") or "Inverse" in kind
    rises = "Inverse" in kind and config.get("timestep_spacing") == "trailing"  # up to the last of the table
    return kind[:3] == "EDM" or _is(config, *CURVED) or (repeats and _is(config, "use_flow_sigmas")) or rises


CURVED = [f"use_{name}" for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")]
THIRD = {"DPMSolverMultistepInverseScheduler": "sde", "EDMDPMSolverMultistepScheduler": "sde"}  # else "sde-dpmsolver"

# Why a reference's answer may be NaN, or an error that is not meant: (class, config, its times) -> bool.
BROKEN = {
    "a flow's sigma is not below 1 on most curves": lambda kind, config, times: (
        _is(config, "use_flow_sigmas") and _is(config, *CURVED) and not (kind[:3] == "Uni" and _is(config, CURVED[0]))
    ),
    "noise is drawn where levels rise": lambda kind, config, times: (
        "Inverse" in kind and "sde" in _algorithm(config) and not _is(config, "use_flow_sigmas")
    ),
    "there is no order 3": lambda kind, config, times: (
        config.get("solver_order") == 3
        and (_algorithm(config) == "sde-dpmsolver" or THIRD.get(kind, "none") in _algorithm(config))
    ),
    "limits of the noise are looked up without a time": lambda kind, config, times: (
        _is(config, "thresholding")
        and (kind[:2] == "SA" or "Singlestep" in kind)
        and _algorithm(config) in ("noise_prediction", "dpmsolver")
    ),
    "clean data is reached by bh2 of order 1 on x_0 alone": lambda kind, config, times: (
        kind[:3] == "Uni"
        and config["final_sigmas_type"] == "zero"
        and (not config["predict_x0"] or config["solver_type"] == "bh1" or not config["lower_order_final"])
    ),
    "a step from a level to itself divides by 0, or takes a root of less than 0": lambda kind, config, times: (
        _rests(kind, config)
        and (config.get("solver_order", 0) > 2 or config.get("solver_type") == "heun" or "sde" in _algorithm(config))
    ),
    "the first time is there twice, and it begins at the second": lambda kind, config, times: (
        len(times) > 1 and times[0] == times[1]
    ),
}
