"""What the few-step losses share: what they see of the run, the teacher, and the student's boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_function, concrete, describe, factory, is_traced
from jaxdiff.levels import Level
from jaxdiff.parameterize import denoiser
from jaxdiff.processes.base import Process
from jaxdiff.sample import check_shape
from jaxdiff.types import Apply, Cond, Denoiser, Params, Prediction, Scalings

__all__ = [
    "Context",
    "Distance",
    "Guided",
    "Teacher",
    "TimePairs",
    "check_boundary",
    "check_first",
    "check_parts",
    "context",
    "denoiser_of",
    "like_null",
    "null_of",
    "split_inputs",
    "teacher",
]


class Context(NamedTuple):
    """What a few-step loss sees besides the parameters, the key and the batch.

    Attributes:
        step: int32 scalar, the number of updates so far, without skipped ones.
        ema: the parameters' average, or the tuple of averages; None where the loss needs none.
        frozen: arrays that nobody trains, e.g. {"teacher": params}.
    """

    step: Array
    ema: Any
    frozen: Any


class Teacher(Protocol):
    """A denoiser that is not trained, made of what a loss sees; see `teacher`."""

    def __call__(self, context: Context, cond: Cond, /) -> Denoiser:
        """The denoiser (x, level) -> x0_hat of a batch with this condition."""
        ...


class TimePairs(Protocol):
    """A distribution of the two times of a step, from t to the cleaner s."""

    def __call__(self, key: Array, batch: int, step: Array, /) -> tuple[Array, Array, Array]:
        """Draw times.

        Args:
            key: one key.
            batch: B, the number of pairs.
            step: int32 scalar, the number of updates so far, for schedules.

        Returns:
            (t [B], s [B], weight [B]): s <= t in noise, and a factor of each example's loss.
        """
        ...


class Distance(Protocol):
    """A distance between two batches of estimates of x_0, e.g. `distill.pseudo_huber()`."""

    def __call__(self, a: Array, b: Array, /) -> Array:
        """The distance of each example.

        Args:
            a: the student's, [B, ...]; receives the gradient.
            b: the target, like a.

        Returns:
            [B].
        """
        ...


Guided = Callable[[Denoiser, Denoiser], Denoiser]  # (conditional, unconditional) -> guided


def context(*, ema: bool = False) -> Callable[[Any, Any], Context]:
    """Make the argument `given` of `train.make_step` for the losses of this room.

    Args:
        ema: whether the loss uses the parameters' average, as a target or as the teacher of a stage.

    Returns:
        (state, frozen) -> Context.
    """
    return lambda state, frozen: Context(state.step - state.skipped, state.ema if ema else None, frozen)


def split_inputs(inputs: Any, kind: type = Context) -> tuple[Params, Context]:
    """The parameters and the context, the first argument of the losses of this room.

    Args:
        inputs: (params, Context).
        kind: of the context; `object` where a loss does not look at it.

    Raises:
        ValueError: there is no context.
    """
    if not (isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[1], kind)):
        raise ValueError(
            "a few-step loss is given (params, Context): use given=distill.context() in train.make_step, or in Training"
        )
    return inputs


@factory
def teacher(
    apply: Apply,
    prediction: Prediction,
    *,
    params: Callable[[Context], Params] | None = None,
    guide: Guided | None = None,
    null_cond: Any = None,
) -> Teacher:
    """Make a teacher of a network.

    Args:
        apply: the network, (params, x, noise[B], cond) -> F.
        prediction: what it predicts.
        params: context -> its parameters; `lambda context: context.ema` is the average, e.g. the student of the last
            stage (`train.ema.every`); None: frozen["teacher"].
        guide: (conditional, unconditional denoiser) -> denoiser, e.g. `lambda c, u: guidance.cfg(c, u, 2.0)`; None: no
            guidance.
        null_cond: the null condition, for `guide`: like the condition, with leading axis 1, or one per example; or
            context -> it.

    Returns:
        (context, cond) -> denoiser.

    Raises:
        ValueError: `guide` without `null_cond`, or a function of another signature.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    params = _frozen if params is None else params
    check_function("params", params, "(context) -> params")
    if guide is not None:
        if null_cond is None:
            raise ValueError("a guided teacher needs null_cond, the condition of its unconditional denoiser")
        check_function("guide", guide, "(cond, uncond) -> denoiser")

    def made(context: Context, cond: Cond) -> Denoiser:
        weights = params(context)
        if guide is None:
            return denoiser(apply, weights, prediction, cond)
        null = like_null(cond, null_of(null_cond, context))
        return guide(*(denoiser(apply, weights, prediction, c) for c in (cond, null)))

    made.prediction = prediction  # type: ignore[attr-defined]  # for `check_first`
    return made


def denoiser_of(teacher: Teacher, context: Context, cond: Cond) -> Denoiser:
    """The teacher's denoiser, which raises ValueError where its x0_hat is not like x."""
    denoise = teacher(context, cond)
    return lambda x, level: check_shape(denoise(x, level), x)


def null_of(null_cond: Any, context: Context) -> Cond:
    """The null condition, which may be a function of the context, e.g. where frozen arrays encode it."""
    return null_cond(context) if callable(null_cond) else null_cond


def like_null(cond: Cond, null_cond: Cond) -> Cond:
    """The null condition for a batch: like `cond`, given `null_cond` with leading axis 1, or one per example.

    Raises:
        ValueError: they have other entries.
    """
    if sorted(cond) != sorted(null_cond):
        wanted, got = (", ".join(sorted(each)) or "none" for each in (cond, null_cond))
        raise ValueError(f"null_cond must have the condition's entries, {wanted}, got {got}")
    return jax.tree.map(lambda c, n: jnp.broadcast_to(n, c.shape).astype(c.dtype), cond, null_cond)


def _frozen(context: Context) -> Params:
    if not isinstance(context.frozen, Mapping) or "teacher" not in context.frozen:
        raise ValueError(
            'a teacher takes its parameters from frozen["teacher"]: use frozen={"teacher": params} in train.make_step, '
            "or in Training, or give distill.teacher(..., params=)"
        )
    return context.frozen["teacher"]


def check_parts(teacher: Any = None, distance: Any = None, weight: Any = None) -> None:
    """Raise ValueError unless each part that is given is a function of its signature."""
    for name, value, signature in (
        ("teacher", teacher, "(context, cond) -> denoiser"),
        ("distance", distance, "(a, b) -> [B]"),
        ("weight", weight, "(level) -> [B]"),
    ):
        if value is not None:
            check_function(name, value, signature)


@concrete
def check_first(level: Level | None, prediction: Prediction, teacher: Teacher | None = None) -> None:
    """Raise ValueError if a grid starts at pure noise, where the student's or the teacher's prediction is undefined.

    With alpha below 1e-6 sigma, as tables have it for 0, x0_hat has no digits either.

    Args:
        level: the first of the grid, scalar; None: unknown.
        prediction: the student's.
        teacher: its prediction is known if it was made by `teacher`.
    """
    if level is None or is_traced(level):
        return
    alpha = jnp.where(level.alpha < 1e-6 * level.sigma, 0, level.alpha)
    for each in (prediction, getattr(teacher, "prediction", None)):
        if each is not None:
            each(level._replace(alpha=alpha))


def check_boundary(process: Process, prediction: Prediction) -> None:
    """Raise ValueError unless the prediction makes f(x, clean) = x for any network: skip = 1 and out = 0 there."""
    s = _at_clean(prediction)
    if is_traced(s):
        return
    skip, out = (float(np.asarray(field)) for field in (s.skip, s.out))
    if abs(skip - 1) > 1e-6 or abs(out) > 1e-6:
        raise ValueError(
            f"with {describe(prediction)} a network does not meet f(x, 0) = x, since skip = {skip:g} and out = {out:g} "
            "at the clean level: use velocity, v, eps or edm"
        )


@concrete
def _at_clean(prediction: Prediction) -> Scalings:
    return prediction(Level(jnp.zeros(()), jnp.ones(()), jnp.zeros(())))
