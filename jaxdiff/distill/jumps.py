"""What the losses of two-time students share: what is drawn for a step, the step itself, and the flow's velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number
from jaxdiff.distill.base import Context, TimePairs, check_parts
from jaxdiff.levels import Level, append_axes, from_x0, q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import check_key
from jaxdiff.parameterize import check_network_time, denoiser
from jaxdiff.processes.base import Process, check_process, to_float
from jaxdiff.solvers.base import Solver, check_solver
from jaxdiff.types import Apply, Batch, Cond, Denoiser, FlowMap, Params, Prediction

__all__ = [
    "Step",
    "average",
    "between",
    "check",
    "check_difference",
    "derivative",
    "draw",
    "flow_step",
    "jump",
    "two_jumps",
    "two_time_denoiser",
    "upward",
    "velocity",
]


class Step(NamedTuple):
    """The examples of a batch at the start of a step from t to s.

    Attributes:
        x0, eps: data and noise, [B, ...].
        cond: the condition.
        t, s: the times, [B].
        weight: factor of each example's loss, [B].
        cur, nxt: the levels of t and s.
        x: x_t, like x0.
        key: a key for the network's dropout.
        more: a key for what else a loss draws.
    """

    x0: Array
    eps: Array
    cond: Cond
    t: Array
    s: Array
    weight: Array
    cur: Level
    nxt: Level
    x: Array
    key: Array
    more: Array


def check(
    apply: Apply,
    process: Process,
    prediction: Prediction,
    pairs: TimePairs,
    *,
    jvp_apply: Apply | None = None,
    **parts: Any,
) -> None:
    """Raise ValueError unless these are a network, a process, a prediction, a distribution of two times, and parts.

    Args:
        apply, process, prediction, pairs, jvp_apply: of a loss.
        parts: those of `check_parts`.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    if jvp_apply is not None:
        check_function("jvp_apply", jvp_apply, "(params, x, noise, cond) -> F")
    check_process(process)
    check_function("prediction", prediction, "(level) -> Scalings")
    check_network_time(apply, process, prediction)
    check_function("pairs", pairs, "(key, batch, step) -> (t, s, weight)")
    check_parts(**parts)


def draw(process: Process, pairs: TimePairs, step: Array, key: Array, batch: Batch) -> Step:
    """Draw the times and the noise of a batch."""
    check_key(key)
    t_key, eps_key, key, more = jax.random.split(key, 4)
    x0, eps, cond = split_batch(batch, eps_key)
    t, s, weight = pairs(t_key, x0.shape[0], step)
    t, s = to_float(t), to_float(s)  # those of a table may be integers, which have nothing between and no derivative
    cur = process(t)
    return Step(x0, eps, cond, t, s, weight, cur, process(s), q_sample(x0, eps, cur), key, more)


def two_time_denoiser(apply: Apply, params: Params, prediction: Prediction, step: Step, *, dropout: bool) -> FlowMap:
    """The network as a denoiser of both ends, with the dropout mask of the step."""
    return denoiser(apply, params, prediction, step.cond, key=step.key if dropout else None)  # type: ignore[return-value]


def between(key: Array, t: Array, s: Array) -> Array:
    """A time strictly between t and s, uniform in the process's time."""
    share = jax.random.uniform(key, t.shape, t.dtype, minval=1e-3, maxval=1 - 1e-3)
    return s + share * (t - s)


def jump(x: Array, x0: Array, cur: Level, nxt: Level) -> Array:
    """The exact step of a constant x0_hat.

    It equals `solvers.base.exponential_step`, whose derivatives with respect to the levels lose a term at the ends of a
    process, since they pass through the infinite lam there.
    """
    return q_sample(*from_x0(x0, x, cur), nxt)


def two_jumps(denoise: FlowMap, x: Array, cur: Level, mid: Level, nxt: Level) -> Array:
    """The x0_hat whose jump from `cur` to `nxt` ends where a jump to `mid` and one from there end.

    It is a weighted mean of the two x0_hat, which loses no digits for close levels, as the inverse of a step would. Of
    velocities in two equal steps on `Flow` it is half the sum. NaN if `cur` equals `nxt`.

    Args:
        denoise: (x, cur, nxt) -> x0_hat.
        x: x at `cur`, [B, ...].
        cur, mid, nxt: levels of falling noise.
    """
    first = denoise(x, cur, mid)
    second = denoise(jump(x, first, cur, mid), mid, nxt)
    cur, mid, nxt = (level.expand_to(x) for level in (cur, mid, nxt))
    # A jump is (sigma_s / sigma_t) x + c x0_hat; the second one scales the c of the first by sigma_s / sigma_m.
    c_first, c_both = (-level.alpha * jnp.expm1(cur.lam - level.lam) for level in (mid, nxt))
    return second + nxt.sigma / mid.sigma * (c_first / c_both) * (first - second)


def flow_step(solver: Solver) -> Callable[[Denoiser, Array, Level, Level], Array]:
    """Make one step of the probability flow, (denoise, x, cur, nxt) -> x, at one level per example.

    Args:
        solver: deterministic, with a fixed number of evaluations.

    Raises:
        ValueError: it draws noise, adapts its step, or needs another denoiser.
    """
    check_solver(solver)
    if solver.stochastic or solver.nfe is None or solver.learned_variance or solver.next_level:
        raise ValueError(
            f"the teacher's step must follow its probability flow by a fixed number of evaluations, got {solver}: use "
            "e.g. solvers.heun() or solvers.ddim()"
        )

    def step(denoise: Denoiser, x: Array, cur: Level, nxt: Level) -> Array:
        def at(x: Array, level: Level) -> Any:
            return denoise(x, Level(*(field.reshape(-1) for field in level)))

        unused = jax.random.key(0)  # a deterministic solver draws nothing
        return solver.step(at, unused, x, solver.init(x), cur.expand_to(x), nxt.expand_to(x))[0]

    return step


def velocity(process: Process, x: Array, x0: Array, t: Array) -> Array:
    """dx/dt of the probability flow, alpha' x0_hat + sigma' eps_hat, in the process's time.

    Args:
        process: t -> level, differentiable at t.
        x: x_t, [B, ...].
        x0: x0_hat, like x.
        t: [B], sigma > 0.
    """
    level, slope = jax.jvp(process, (t,), (jnp.ones_like(t),))
    return q_sample(*from_x0(x0, x, level), slope)


def check_difference(difference: float | None) -> None:
    """Raise ValueError unless a difference is None or a positive number."""
    if difference is not None:
        check_number("difference", difference, low=1e-6)


def derivative(
    f: Callable[..., Any],
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
    difference: float | None,
    *,
    up: Array | None = None,
    exact: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
    """f and its derivative along tangents, `jax.jvp`, or the central difference of +- `difference` along them.

    The difference costs two evaluations, and is wrong by O(difference^2); no gradient should pass through it.

    Args:
        f: the function.
        primals, tangents: where and along what.
        difference: None is the derivative itself.
        up: what it is upwards, [B], as `upward` makes it; None: the same.
        exact: f in more digits, of which the derivative is taken, without a gradient; None: f.
    """
    if exact is not None:
        return f(*primals), jax.lax.stop_gradient(derivative(exact, primals, tangents, difference, up=up)[1])
    if difference is None:
        return jax.jvp(f, primals, tangents)
    high, low = jnp.asarray(difference if up is None else up), jnp.asarray(-difference)
    at = lambda h: f(*(p + append_axes(h, p.ndim).astype(p.dtype) * t for p, t in zip(primals, tangents, strict=True)))  # noqa: E731
    slope = jax.tree.map(lambda a, b: (a - b) / append_axes(high - low, a.ndim).astype(a.dtype), at(high), at(low))
    return f(*primals), jax.lax.stop_gradient(slope)


def upward(process: Process, t: Array, difference: float | None) -> Array | None:
    """`difference`, or half of what is left up to the process's noisiest time, [B]; None where that has no end.

    Beyond it alpha may be negative, and at it, 0, where some predictions are undefined.
    """
    end = getattr(process, "t_max", None)
    return None if end is None or difference is None else jnp.minimum(difference, (end - t) / 2)


def average(context: Context) -> Params:
    """The average of the parameters, as a target.

    Raises:
        ValueError: the context has no average, or several.
    """
    ema: Any = context.ema
    if ema is None or isinstance(ema, tuple):
        got = "none" if ema is None else f"{len(ema)}"
        raise ValueError(
            f"this loss needs the parameters' average: make the step with given=distill.context(ema=True) and a single "
            f"decay; got {got}"
        )
    return ema
