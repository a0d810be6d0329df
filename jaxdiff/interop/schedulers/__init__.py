"""diffusers' scheduler configs as a process, a prediction, levels and a solver.

Results equal those of diffusers up to rounding: the same times, levels, orders and noise in every step, for every
config. Where diffusers differs from the method of a paper, `solvers` has the method. Configs that diffusers rejects, or
fails for, raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxdiff import parameterize
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import adams, consistency, discrete, dpm, flow, k_diffusion, pndm
from jaxdiff.interop.schedulers.config import FLOW, FLOW_LCM, Scheduler
from jaxdiff.levels import Level
from jaxdiff.processes import Flow
from jaxdiff.schema import WORD, each, look_up
from jaxdiff.storage import read_json

__all__ = ["FLOW_NETWORKS", "Scheduler", "network_scheduler", "scheduler"]

FLOW_NETWORKS = ("FluxTransformer2DModel", "SD3Transformer2DModel")

KINDS: dict[str, Callable[..., Scheduler]] = {
    "CMStochasticIterativeScheduler": consistency.iterative,
    "DDIMInverseScheduler": discrete.ddim_inverse,
    "DDIMParallelScheduler": discrete.ddim,
    "DDIMScheduler": discrete.ddim,
    "DDPMParallelScheduler": discrete.ddpm,
    "DDPMScheduler": discrete.ddpm,
    "DEISMultistepScheduler": adams.deis,
    "DPMSolverMultistepInverseScheduler": dpm.dpm_inverse,
    "DPMSolverMultistepScheduler": dpm.dpm_multistep,
    "DPMSolverSDEScheduler": k_diffusion.dpm_sde,
    "DPMSolverSinglestepScheduler": dpm.dpm_singlestep,
    "EDMDPMSolverMultistepScheduler": dpm.edm_dpm,
    "EDMEulerScheduler": flow.edm_euler,
    "EulerAncestralDiscreteScheduler": k_diffusion.euler_ancestral,
    "EulerDiscreteScheduler": k_diffusion.euler,
    "FlowMapEulerDiscreteScheduler": flow.flow_map,
    FLOW: flow.flow_euler,
    "FlowMatchHeunDiscreteScheduler": flow.flow_heun,
    FLOW_LCM: flow.flow_lcm,
    "HeunDiscreteScheduler": k_diffusion.heun,
    "IPNDMScheduler": pndm.ipndm,
    "KDPM2AncestralDiscreteScheduler": k_diffusion.dpm_2_ancestral,
    "KDPM2DiscreteScheduler": k_diffusion.dpm_2,
    "LCMScheduler": consistency.lcm,
    "LMSDiscreteScheduler": k_diffusion.lms,
    "PNDMScheduler": pndm.pndm,
    "SASolverScheduler": adams.sa_solver,
    "SCMScheduler": consistency.scm,
    "TCDScheduler": consistency.tcd,
    "UniPCMultistepScheduler": adams.unipc,
}

# Schedulers with a table that may be a flow's, whose shift may depend on the number of tokens.
SHIFTED = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip

# All fields of diffusers' schedulers. Fields of other classes are ignored, as in the reference, since many configs
# contain some; unknown fields are an error.
FIELDS = [
    "algorithm_type", "base_image_seq_len", "base_shift", "beta_end", "beta_schedule", "beta_start", "clip_denoised",
    "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio",
    "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "invert_sigmas", "lambda_min_clipped",
    "lower_order_final", "max_image_seq_len", "max_shift", "noise_sampler_seed", "num_train_timesteps",
    "original_inference_steps", "predict_x0", "prediction_type", "predictor_order", "rescale_betas_zero_snr", "rho",
    "s_noise", "sample_max_value", "scale_factors", "set_alpha_to_one", "set_alpha_to_zero", "shift",
    "shift_terminal", "sigma_data",
    "sigma_max", "sigma_min", "sigma_schedule", "skip_prk_steps", "solver_order", "solver_p", "solver_type",
    "steps_offset", "stochastic_sampling", "tau_func", "tensor_format", "thresholding", "time_shift_type",
    "timestep_scaling", "timestep_spacing", "timestep_type", "trained_betas", "upscale_mode", "use_beta_sigmas",
    "use_dynamic_shifting", "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas", "use_lu_lambdas",
    "variance_type",
]  # fmt: skip

UP = ("clip_sample", "lower_order_final", "predict_x0", "set_alpha_to_one")  # flags that are True by default


def scheduler(
    config: str | Path | Mapping[str, Any],
    kind: str | None = None,
    *,
    tokens: int | None = None,
    uniform_steps: bool = False,
) -> Scheduler:
    """Read the config of a diffusers scheduler.

    Args:
        config: its fields, or a directory with scheduler_config.json.
        kind: another class to read the config with, as by its `from_config`; None: the class in the config.
        tokens: number of tokens of an image, on which the shift of a flow depends with `use_dynamic_shifting`; None:
            DEIS and the DPM-Solvers keep `flow_shift`, as in the reference, and others raise.
        uniform_steps: for FlowMatchEulerDiscreteScheduler and FlowMatchLCMScheduler, equal steps to clean data before
            the shift, as in Flux's pipeline; False: equal steps to the network's last time.

    Returns:
        the process, the prediction, and the sampling: levels, solver, clipping, initial noise.

    Raises:
        ValueError: the class is unknown, a field is not supported, or tokens is missing.
    """
    if not isinstance(config, Mapping):
        config = read_json(Path(config) / "scheduler_config.json")
    # Defaults of the class in the config, which another class replaces by its own.
    defaulted = each(WORD, 1000, 0).check("_use_default_values", config.get("_use_default_values") or ())
    kind = str(config.get("_class_name") if kind is None else kind)
    make = look_up(KINDS, kind, "scheduler")
    # As in diffusers, a null flag is False; other null fields have the class's default.
    fields = {k: False if v is None and k in UP else v for k, v in config.items() if k not in defaulted}
    c = Fields({k: v for k, v in fields.items() if v is not None}, kind)
    c.ignore(*FIELDS)
    if kind in (FLOW, FLOW_LCM):
        result = make(c, tokens, uniform_steps)
    else:
        result = make(c, tokens) if kind in SHIFTED else make(c)
    c.check_all_read()
    return result


def network_scheduler(
    config: str | Path | Mapping[str, Any], network: Mapping[str, Any], size: tuple[int, ...], kind: str | None = None
) -> Scheduler:
    """Read the config of a network's scheduler, with the changes that the class of the network implies.

    Args:
        config: see `scheduler`.
        network: fields of the network's config, with the class in `_class_name`.
        size: (height, width) of the network's input.
        kind: see `scheduler`.

    Returns:
        the process, the prediction, and the sampling: levels, solver, clipping, initial noise.

    Raises:
        ValueError: see `scheduler`; or the network predicts a flow's velocity, and the scheduler is of another kind.
    """
    flux = network["_class_name"] == "FluxTransformer2DModel"
    patch = 2 if flux else network.get("patch_size", 1)
    result = scheduler(config, kind, tokens=(size[0] // patch) * (size[1] // patch), uniform_steps=flux)
    middle = Level(*map(jnp.float32, (0.75, 0.25, 0.75)))  # where no other prediction has the skip of a velocity
    flow = isinstance(result.process, Flow) and result.prediction(middle).skip == 1
    if network["_class_name"] in FLOW_NETWORKS and not flow:
        kinds = ", ".join(name for name in KINDS if name.startswith("Flow"))
        raise ValueError(
            f"this network predicts a flow's velocity: its scheduler must be one of {kinds}, or have use_flow_sigmas "
            "and the prediction_type flow_prediction"
        )
    # The noise input of Flux's network is the flow's time, not multiplied by 1000.
    return result._replace(prediction=parameterize.velocity) if flux else result
