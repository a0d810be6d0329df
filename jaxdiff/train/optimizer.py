"""The optimizer that diffusion models are usually trained with, put together from optax."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax


def adamw(
    lr: float,
    *,
    warmup: int = 0,
    steps: int | None = None,
    schedule: Literal["constant", "cosine", "linear"] = "constant",
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Build AdamW with a linear warm-up, a schedule and clipping by the global norm.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), Algorithm 2.

    Args:
        lr: the highest learning rate.
        warmup: steps in which the rate rises linearly from 0.
        steps: step at which "cosine" and "linear" reach 0; not needed by "constant".
        schedule: how the rate goes on after the warm-up.
        clip: the largest global gradient norm; None is off.
        weight_decay: decay of all parameters per step, as a multiple of the learning rate.
        b1: decay of the gradient's average.
        b2: decay of the squared gradient's average.

    Raises:
        ValueError: an unknown schedule, or one that decays without `steps` beyond the warm-up.
    """
    if schedule not in ("constant", "cosine", "linear"):
        raise ValueError(f"schedule must be constant, cosine or linear, got {schedule!r}")
    if schedule != "constant" and (steps is None or steps <= warmup):
        raise ValueError(f"schedule {schedule!r} needs steps greater than warmup={warmup}, got {steps}")
    rate: optax.Schedule
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(lr, steps - warmup)  # type: ignore[operator]
    elif schedule == "linear":
        rate = optax.linear_schedule(lr, 0.0, steps - warmup)  # type: ignore[operator]
    else:
        rate = optax.constant_schedule(lr)
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), rate], [warmup])
    clipping = optax.clip_by_global_norm(clip) if clip is not None else optax.identity()
    return optax.chain(clipping, optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))


def projected(optimizer: optax.GradientTransformation, project: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Bring the parameters back to a set after each update, as EDM2's kernels to unit magnitude.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), section 2.3.

    Args:
        optimizer: an optax optimizer.
        project: parameters -> parameters, such as `networks.force_weight_norm`.

    Returns:
        An optimizer whose updated parameters are the projection of the other's.
    """

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        moved = project(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, moved, params), state

    return optax.GradientTransformation(optimizer.init, update)
