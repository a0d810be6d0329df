"""The usual optimizers of diffusion models, composed from optax."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import trees
from jaxdiff.train import packing
from jaxdiff.train.muon import kinds, scale_by_muon
from jaxdiff.types import Params

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

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.

    Args:
        lr: the highest learning rate.
        warmup_steps: number of steps in which the rate increases linearly from 0.
        steps: step at which "cosine" and "linear" reach 0, or after which "inverse_sqrt" decreases; unused by
            "constant".
        schedule: learning rate after the warm-up; "inverse_sqrt" is lr / sqrt(max(step / steps, 1)), as in Karras et
            al. (2024), arXiv:2312.02696, eq. 67.
        clip_norm: the largest global gradient norm; None is off.
        weight_decay: decay of all parameters per step, as a multiple of the learning rate.
        b1: decay of the gradient's average.
        b2: decay of the squared gradient's average, which is float32: its changes are below bfloat16's precision.
        mu_dtype: dtype of the gradient's average, float32 or bfloat16; None: that of the parameters.

    Raises:
        ValueError: the schedule is unknown or lacks `steps` beyond the warm-up, or mu_dtype is another one.
    """
    _check(mu_dtype)
    rate = _rate(lr, warmup_steps, steps, schedule)
    adam = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mu_dtype=mu_dtype)
    optimizer = packing.packed(optax.chain(_clipping(clip_norm), adam))
    bounded = _cannot_overflow(lr, clip_norm, weight_decay, b1, b2)
    return packing.Bounded(*optimizer) if bounded else optimizer


def _cannot_overflow(lr: float, clip_norm: float | None, weight_decay: float, b1: float, b2: float) -> bool:
    """Whether AdamW's updates are at most some multiple of its rate, and decay takes no parameter beyond zero.

    The gradients' average is at most (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) times the root of that of their squares.
    """
    clip = 1.0 if clip_norm is None else clip_norm
    if not all(isinstance(x, (int, float)) for x in (lr, clip, weight_decay, b1, b2)):
        return False  # a traced rate, say
    averages = 0 <= b1 < 1 - 1e-6 and 1.0001 * b1**2 <= b2 < 1 - 1e-6
    return averages and 0 <= weight_decay <= 1 and 0 <= lr < 1e6 and lr * weight_decay <= 1 and 0 < clip < 1e30


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
    """Build Adafactor as a replacement of AdamW, with mean squared gradients per row and per column of a matrix.

    Shazeer and Stern, "Adafactor" (2018), algorithm 4, without its relative step sizes; with momentum in half precision
    and a bound on the second decay, as in Zhai et al., "Scaling Vision Transformers" (2022), sec. 3.4.

    Args:
        lr, warmup_steps, steps, schedule, clip_norm, weight_decay: as for `adamw`.
        b1: decay of the updates' average; None: no average, which saves memory.
        b2: upper bound of the squared gradients' decay, which is 1 - t^-0.8 at update t.
        mu_dtype: dtype of the updates' average, float32 or bfloat16; None: that of the parameters.

    Raises:
        ValueError: the schedule is unknown or lacks `steps` beyond the warm-up, or mu_dtype is another one.
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

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), scaled as in Liu et al., "Muon is
    Scalable for LLM Training" (2025), eq. 4, so that both use the same learning rate. A kernel is an array named
    "kernel" with at least two axes; the kernel of a convolution is one matrix [all inputs, outputs].

    Args:
        lr: the highest learning rate, as for AdamW, or up to three times as large in short trainings.
        warmup_steps, steps, schedule, clip_norm, weight_decay: as for `adamw`.
        momentum: decay of the sum of the kernels' gradients.
        b1: decay of the average of the other gradients.
        b2: decay of the average of their squares.

    Raises:
        ValueError: the schedule is unknown or lacks `steps` beyond the warm-up, or (in the optimizer's init) the
            parameters have no kernel.
    """
    rate = _rate(lr, warmup_steps, steps, schedule)
    orthogonal = optax.chain(
        scale_by_muon(momentum), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate)
    )
    adam = packing.packed(optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))
    return optax.chain(_clipping(clip_norm), optax.partition({"muon": orthogonal, "adamw": adam}, kinds))


def _rate(lr: float, warmup_steps: int, steps: int | None, schedule: Schedule) -> optax.Schedule:
    if schedule not in ("constant", "cosine", "linear", "inverse_sqrt"):
        raise ValueError(f"schedule must be constant, cosine, linear or inverse_sqrt, got {schedule!r}")
    if schedule != "constant" and (steps is None or steps <= warmup_steps):
        raise ValueError(f"schedule {schedule!r} needs steps greater than warmup_steps={warmup_steps}, got {steps}")
    rate: optax.Schedule
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(lr, steps - warmup_steps)  # type: ignore[operator]
    elif schedule == "linear":
        rate = optax.linear_schedule(lr, 0.0, steps - warmup_steps)  # type: ignore[operator]
    elif schedule == "inverse_sqrt":
        # Counted from the end of the warm-up, like the others.
        rate = lambda count: lr / jnp.sqrt(jnp.maximum((count + warmup_steps) / steps, 1.0))  # noqa: E731
    else:
        rate = optax.constant_schedule(lr)
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), rate], [warmup_steps])
    return rate


def _clipping(clip_norm: float | None) -> optax.GradientTransformation:
    return packing.clip_by_norm(clip_norm) if clip_norm is not None else optax.identity()


def _check(mu_dtype: Any) -> None:
    if mu_dtype not in (None, jnp.float32, jnp.bfloat16):
        raise ValueError(f"mu_dtype must be float32, bfloat16 or None, got {mu_dtype}")


def with_projection(
    optimizer: optax.GradientTransformation, project: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Project the parameters after each update, e.g. EDM2's kernels to unit magnitude.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), sec. 2.3.

    Args:
        optimizer: an optax optimizer.
        project: parameters -> parameters, e.g. `networks.force_weight_norm`.

    Returns:
        an optimizer that projects the updated parameters of `optimizer`.
    """

    def update(grads: Any, state: Any, params: Params) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        moved = project(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, moved, params), state

    return optax.GradientTransformation(optimizer.init, update)


class Spikes(NamedTuple):
    """The state of `skip_spikes`."""

    made: jax.Array  # int32 scalar: number of updates so far
    norm: jax.Array  # float32 scalar: running average of the gradient norms
    inner: Any


def skip_spikes(optimizer: optax.GradientTransformation, times: float) -> optax.GradientTransformation:
    """Reject updates with very large gradients: the updated parameters become NaN, so that `make_step` skips them.

    The global norm, before clipping, is compared with its average over about the last hundred updates; the first update
    always passes. Skipped updates do not count.

    Args:
        optimizer: an optax optimizer.
        times: largest ratio of a norm to the average, greater than 1.

    Raises:
        ValueError: times is not greater than 1.
    """
    if not times > 1:
        raise ValueError(f"skip_spikes needs a number of times greater than 1, got {times}")

    def init(params: Params) -> Spikes:
        return Spikes(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), optimizer.init(params))

    def update(grads: Any, state: Spikes, params: Params = None) -> tuple[Any, Spikes]:
        norm = packing.norm(grads).astype(jnp.float32)
        spike = (state.made > 0) & (norm > times * state.norm)
        updates, inner = optimizer.update(grads, state.inner, params)
        updates = jax.tree.map(lambda x: jnp.where(spike, jnp.nan, x), updates)
        # A plain mean at first, so that the average is independent of its initial value.
        weight = jnp.maximum(0.01, 1.0 / (state.made + 1.0))
        return updates, Spikes(state.made + 1, state.norm + weight * (norm - state.norm), inner)

    return optax.GradientTransformation(init, update)


class Restarts(NamedTuple):
    """The state of `restarting`."""

    made: jax.Array  # int32 scalar: number of updates so far
    inner: Any


def by_part(optimizers: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Train each part of the parameters by an optimizer of its own, e.g. a network and its text encoder.

    Args:
        optimizers: name at the top of the parameters' tree -> an optax optimizer.

    Raises:
        ValueError: (in the optimizer's init) the parameters have other parts.
    """

    def labels(params: Params) -> Any:
        if sorted(params) != sorted(optimizers):
            raise ValueError(f"the optimizers are of {sorted(optimizers)}, and the parameters have {sorted(params)}")
        return jax.tree.map_with_path(lambda path, _: trees.keys(path)[0], params)

    return optax.partition(dict(optimizers), labels)


def restarting(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """Reset the state of an optimizer, i.e. its moments and its schedule, at the beginning of each stage.

    For progressive distillation (Salimans and Ho 2022, arXiv:2202.00512, algorithm 2); see `ema.every`. Updates that
    `make_step` skipped do not count.

    Args:
        optimizer: an optax optimizer.
        every: number of updates in a stage, at least 1.

    Raises:
        ValueError: every is less than 1.
    """
    if every < 1:
        raise ValueError(f"an optimizer restarts after at least 1 update, got every={every}")

    def init(params: Params) -> Restarts:
        return Restarts(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(grads: Any, state: Restarts, params: Params = None) -> tuple[Any, Restarts]:
        first = state.made % every == 0
        inner = jax.tree.map(lambda new, old: jnp.where(first, new, old), optimizer.init(params), state.inner)
        updates, inner = optimizer.update(grads, inner, params)
        return updates, Restarts(state.made + 1, inner)

    return optax.GradientTransformation(init, update)
