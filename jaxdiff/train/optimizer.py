"""The optimizers that diffusion models are usually trained with, put together from optax."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.train.muon import kinds, scale_by_muon

Schedule = Literal["constant", "cosine", "linear", "inverse_sqrt"]


def adamw(
    lr: float,
    *,
    warmup_steps: int = 0,
    steps: int | None = None,
    schedule: Schedule = "constant",
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Build AdamW with a linear warm-up, a schedule and clipping by the global norm.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), Algorithm 2.

    Args:
        lr: the highest learning rate.
        warmup_steps: steps in which the rate rises linearly from 0.
        steps: step at which "cosine" and "linear" reach 0, or after which "inverse_sqrt" falls; "constant" needs none.
        schedule: how the rate goes on after the warm-up; "inverse_sqrt" is lr / sqrt(max(step / steps, 1)), as in
            Karras et al. (2024), arXiv:2312.02696, equation 67.
        clip_norm: the largest global gradient norm; None is off.
        weight_decay: decay of all parameters per step, as a multiple of the learning rate.
        b1: decay of the gradient's average.
        b2: decay of the squared gradient's average, which is float32: it changes by less than bfloat16's last digit.
        mu_dtype: what the gradient's average is stored as, float32 or bfloat16; None: as the parameters are.

    Raises:
        ValueError: an unknown schedule, one that decays without `steps` beyond the warm-up, or another mu_dtype.
    """
    _check(mu_dtype)
    rate = _rate(lr, warmup_steps, steps, schedule)
    adam = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mu_dtype=mu_dtype)
    return optax.chain(_clipping(clip_norm), adam)


def adafactor(
    lr: float,
    *,
    warmup_steps: int = 0,
    steps: int | None = None,
    schedule: Schedule = "constant",
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float | None = 0.9,
    b2: float = 0.999,
    mu_dtype: Any = jnp.bfloat16,
) -> optax.GradientTransformation:
    """Build Adafactor as it takes AdamW's place: a matrix has a mean squared gradient for each row and each column.

    Shazeer and Stern, "Adafactor" (2018), Algorithm 4, without its relative step sizes; with a momentum in half
    precision and a bound on the second decay, as in Zhai et al., "Scaling Vision Transformers" (2022), section 3.4.

    Args:
        lr: the highest learning rate; AdamW's suits.
        warmup_steps: steps in which the rate rises linearly from 0.
        steps: as for `adamw`.
        schedule: as for `adamw`.
        clip_norm: the largest global gradient norm; None is off.
        weight_decay: decay of all parameters per step, as a multiple of the learning rate.
        b1: decay of the updates' average; None keeps none, and least memory.
        b2: the squared gradients' decay is 1 - t^-0.8 at update t, and at most this.
        mu_dtype: what the updates' average is stored as, float32 or bfloat16; None: as the parameters are.

    Raises:
        ValueError: an unknown schedule, one that decays without `steps` beyond the warm-up, or another mu_dtype.
    """
    _check(mu_dtype)
    decay = lambda step, power: jnp.minimum(1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -power, b2)  # noqa: E731
    return optax.chain(
        _clipping(clip_norm),
        optax.scale_by_factored_rms(decay_rate_fn=decay),
        optax.clip_by_block_rms(1.0),
        optax.identity() if b1 is None else optax.ema(b1, accumulator_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(_rate(lr, warmup_steps, steps, schedule)),
    )


def muon(
    lr: float,
    *,
    warmup_steps: int = 0,
    steps: int | None = None,
    schedule: Schedule = "constant",
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Build Muon for the kernels and AdamW for the rest: biases, norms, embeddings.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), scaled as by Liu et al., "Muon is
    Scalable for LLM Training" (2025), eq. 4, so that one learning rate serves both. A kernel is an array named "kernel"
    with two axes or more; that of a convolution is one matrix of its outputs by all its inputs.

    Args:
        lr: the highest learning rate; AdamW's suits, and in short trainings up to three times as much.
        warmup_steps: steps in which the rate rises linearly from 0.
        steps: step at which "cosine" and "linear" reach 0; not needed by "constant".
        schedule: how the rate goes on after the warm-up.
        clip_norm: the largest global gradient norm; None is off.
        weight_decay: decay of all parameters per step, as a multiple of the learning rate.
        momentum: decay of the sum of the kernels' gradients.
        b1: decay of the average of the other gradients.
        b2: decay of the average of their squares.

    Raises:
        ValueError: an unknown schedule, or one that decays without `steps` beyond the warm-up; from the optimizer's
            init, parameters without a kernel.
    """
    rate = _rate(lr, warmup_steps, steps, schedule)
    orthogonal = optax.chain(
        scale_by_muon(momentum), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate)
    )
    adam = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay)
    return optax.chain(_clipping(clip_norm), optax.partition({"muon": orthogonal, "adamw": adam}, kinds))


def _rate(lr: float, warmup_steps: int, steps: int | None, schedule: Schedule) -> optax.Schedule:
    if schedule not in ("constant", "cosine", "linear", "inverse_sqrt"):
        raise ValueError(f"schedule must be constant, cosine, linear or inverse_sqrt, got {schedule!r}")
    if schedule != "constant" and (steps is None or steps <= warmup_steps):
        raise ValueError(f"schedule {schedule!r} needs steps greater than warmup={warmup_steps}, got {steps}")
    rate: optax.Schedule
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(lr, steps - warmup_steps)  # type: ignore[operator]
    elif schedule == "linear":
        rate = optax.linear_schedule(lr, 0.0, steps - warmup_steps)  # type: ignore[operator]
    elif schedule == "inverse_sqrt":
        # Counted from the end of the warm-up, as the others are.
        rate = lambda count: lr / jnp.sqrt(jnp.maximum((count + warmup_steps) / steps, 1.0))  # noqa: E731
    else:
        rate = optax.constant_schedule(lr)
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), rate], [warmup_steps])
    return rate


def _clipping(clip_norm: float | None) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity()


def _check(mu_dtype: Any) -> None:
    if mu_dtype not in (None, jnp.float32, jnp.bfloat16):
        raise ValueError(f"mu_dtype must be float32, bfloat16 or None, got {mu_dtype}")


def with_projection(
    optimizer: optax.GradientTransformation, project: Callable[[Any], Any]
) -> optax.GradientTransformation:
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


class Spikes(NamedTuple):
    """What `skip_spikes` keeps."""

    made: jax.Array  # int32 scalar: updates made
    norm: jax.Array  # float32 scalar: running average of their gradients' norms
    inner: Any


def skip_spikes(optimizer: optax.GradientTransformation, times: float) -> optax.GradientTransformation:
    """Refuse an update whose gradient is far longer than those before: the updated parameters are NaN, and `make_step`
    makes no such update.

    What is compared is the global norm, before the optimizer clips it, with an average over the last hundred updates
    that were made; the first update has nothing to be compared with.

    Args:
        optimizer: an optax optimizer.
        times: how many times the average a norm may be, greater than 1.

    Raises:
        ValueError: times is not greater than 1.
    """
    if not times > 1:
        raise ValueError(f"skip_spikes needs a number of times greater than 1, got {times}")

    def init(params: Any) -> Spikes:
        return Spikes(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), optimizer.init(params))

    def update(grads: Any, state: Spikes, params: Any = None) -> tuple[Any, Spikes]:
        norm = optax.tree.norm(grads).astype(jnp.float32)
        spike = (state.made > 0) & (norm > times * state.norm)
        updates, inner = optimizer.update(grads, state.inner, params)
        updates = jax.tree.map(lambda x: jnp.where(spike, jnp.nan, x), updates)
        # A plain mean at first, so that the average owes nothing to where it begins.
        weight = jnp.maximum(0.01, 1.0 / (state.made + 1.0))
        return updates, Spikes(state.made + 1, state.norm + weight * (norm - state.norm), inner)

    return optax.GradientTransformation(init, update)


class Restarts(NamedTuple):
    """What `restarting` keeps."""

    made: jax.Array  # int32 scalar: updates made
    inner: Any


def restarting(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """Start an optimizer anew every so many updates: its moments are zero again, its schedule is at its beginning.

    As each stage of progressive distillation does (Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2); see
    `ema.every`. Updates that `make_step` did not make are not counted.

    Args:
        optimizer: an optax optimizer.
        every: updates in a stage, at least 1.

    Raises:
        ValueError: every is less than 1.
    """
    if every < 1:
        raise ValueError(f"an optimizer restarts after at least 1 update, got every={every}")

    def init(params: Any) -> Restarts:
        return Restarts(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(grads: Any, state: Restarts, params: Any = None) -> tuple[Any, Restarts]:
        first = state.made % every == 0
        inner = jax.tree.map(lambda new, old: jnp.where(first, new, old), optimizer.init(params), state.inner)
        updates, inner = optimizer.update(grads, inner, params)
        return updates, Restarts(state.made + 1, inner)

    return optax.GradientTransformation(init, update)
