"""diffusers' scheduler configs as a process, what the network predicts, levels and a solver.

The numbers are theirs, to rounding: the same times, levels, orders and noise in every step, whatever the config has.
Where that is not what a paper's method would do, `solvers` has the method. What theirs refuses, or fails at, is a
ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff import parameterize
from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.schedulers import adams, consistency, discrete, dpm, flow, k_diffusion, pndm
from jaxdiff.interop.schedulers.config import FLOW, Scheduler
from jaxdiff.schema import WORD, each, look_up
from jaxdiff.storage import read_json

__all__ = ["Scheduler", "network_scheduler", "scheduler"]

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
    FLOW: flow.flow_euler,
    "FlowMatchHeunDiscreteScheduler": flow.flow_heun,
    "HeunDiscreteScheduler": k_diffusion.heun,
    "IPNDMScheduler": pndm.ipndm,
    "KDPM2AncestralDiscreteScheduler": k_diffusion.dpm_2_ancestral,
    "KDPM2DiscreteScheduler": k_diffusion.dpm_2,
    "LCMScheduler": consistency.lcm,
    "LMSDiscreteScheduler": k_diffusion.lms,
    "PNDMScheduler": pndm.pndm,
    "SASolverScheduler": adams.sa_solver,
    "TCDScheduler": consistency.tcd,
    "UniPCMultistepScheduler": adams.unipc,
}

# Every field that some scheduler of diffusers has. One that a class does not have is ignored, as in the
# reference, and many configs carry some; one that none has is an error.
FIELDS = [
    "algorithm_type", "base_image_seq_len", "base_shift", "beta_end", "beta_schedule", "beta_start", "clip_denoised",
    "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio",
    "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "invert_sigmas", "lambda_min_clipped",
    "lower_order_final", "max_image_seq_len", "max_shift", "noise_sampler_seed", "num_train_timesteps",
    "original_inference_steps", "predict_x0", "prediction_type", "predictor_order", "rescale_betas_zero_snr", "rho",
    "s_noise", "sample_max_value", "set_alpha_to_one", "set_alpha_to_zero", "shift", "shift_terminal", "sigma_data",
    "sigma_max", "sigma_min", "sigma_schedule", "skip_prk_steps", "solver_order", "solver_p", "solver_type",
    "steps_offset", "stochastic_sampling", "tau_func", "tensor_format", "thresholding", "time_shift_type",
    "timestep_scaling", "timestep_spacing", "timestep_type", "trained_betas", "use_beta_sigmas",
    "use_dynamic_shifting", "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas", "use_lu_lambdas",
    "variance_type",
]  # fmt: skip

UP = ("clip_sample", "lower_order_final", "predict_x0", "set_alpha_to_one")  # flags that are up by default


def scheduler(
    config: str | Path | Mapping[str, Any], kind: str | None = None, *, tokens: int | None = None, even: bool = False
) -> Scheduler:
    """Read the config of a diffusers scheduler.

    Args:
        config: its fields, or a directory with scheduler_config.json.
        kind: another class that the fields are given to, as its `from_config` does.
        tokens: number of an image's tokens, for a flow that is shifted by it (`use_dynamic_shifting`).
        even: for FlowMatchEulerDiscreteScheduler, equal steps to clean data before the shift, as Flux's pipeline asks
            for; otherwise the network's last time comes before clean data.

    Returns:
        The process, the prediction, and how to sample: levels, solver, clipping, initial noise.

    Raises:
        ValueError: a class that is not known, a field that is not supported, or tokens missing.
    """
    if not isinstance(config, Mapping):
        config = read_json(Path(config) / "scheduler_config.json")
    # The written class's defaults, which another class replaces.
    defaulted = each(WORD, 1000, 0).check("_use_default_values", config.get("_use_default_values") or ())
    kind = str(config.get("_class_name") if kind is None else kind)
    make = look_up(KINDS, kind, "scheduler")
    # Empty, a flag is down, as theirs is, and another field is the class's default.
    fields = {k: False if v is None and k in UP else v for k, v in config.items() if k not in defaulted}
    c = Fields({k: v for k, v in fields.items() if v is not None}, kind)
    c.skip(*FIELDS)
    result = flow.flow_euler(c, tokens, even) if kind == FLOW else make(c)
    c.done()
    return result


def network_scheduler(
    config: str | Path | Mapping[str, Any], network: Mapping[str, Any], size: tuple[int, ...], kind: str | None = None
) -> Scheduler:
    """Read the config of a network's scheduler, with what the network's class adds to it.

    Args:
        config: see `scheduler`.
        network: fields of the network's config, its class in `_class_name`.
        size: (height, width) of what it denoises.
        kind: see `scheduler`.

    Returns:
        The process, the prediction, and how to sample: levels, solver, clipping, initial noise.

    Raises:
        ValueError: see `scheduler`.
    """
    flux = network["_class_name"] == "FluxTransformer2DModel"
    patch = 2 if flux else network.get("patch_size", 1)
    result = scheduler(config, kind, tokens=(size[0] // patch) * (size[1] // patch), even=flux)
    # Flux's network gets the time of the flow as it is, not in thousandths.
    return result._replace(prediction=parameterize.velocity) if flux else result
