"""The types that pass between modules, as protocols for your own functions.

B is the number of examples; [B, ...] is an array with any further axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array

from jaxdiff.levels import Level

__all__ = [
    "Apply",
    "Batch",
    "Cond",
    "Denoiser",
    "FlowMap",
    "Loss",
    "Metrics",
    "NoiseSampler",
    "Params",
    "Prediction",
    "Scalings",
    "SolverInit",
    "SolverStep",
    "TimeSampler",
    "Weight",
]

Params = Any  # a pytree of arrays
Cond = Any  # a pytree of arrays with leading axis B; {} for none
Batch = dict[str, Array]  # "x", the clean data [B, ...]; every other entry is the condition
Metrics = dict[str, Array]  # scalars by name


class Scalings(NamedTuple):
    """x0_hat = skip x + out F(inp x, noise).

    Attributes:
        skip, out, inp: scales, with the shape of the level's fields, or plain numbers.
        noise: input of the network's time embedding, EDM's c_noise.
    """

    skip: Array
    out: Array
    inp: Array
    noise: Array


class Prediction(Protocol):
    """The kind of a network's output, as the scales that turn it into x0_hat, e.g. `parameterize.eps`."""

    def __call__(self, level: Level, /) -> Scalings:
        """The scales at a level.

        Args:
            level: its fields broadcast against x.

        Returns:
            the scales, with the shape of the level's fields.
        """
        ...


class Apply(Protocol):
    """A network as a pure function."""

    def __call__(self, params: Params, x: Array, noise: Array, cond: Cond, /) -> Any:
        """The network's output, F.

        Args:
            params: parameters.
            x: scaled input, inp x_t, [B, ...].
            noise: [B], input of the time embedding.
            cond: the condition, {} for none. Networks with dropout also take `key=`, a random key, which losses pass if
                made with dropout=True.

        Returns:
            F, like x; or (F, frac) with a learned variance.
        """
        ...


class Denoiser(Protocol):
    """E[x_0 | x_t]: made from a network by `denoiser`, changed by guidance, called by solvers."""

    def __call__(self, x: Array, level: Level, /) -> Any:
        """x0_hat.

        Args:
            x: x_t, [B, ...].
            level: scalar, or one level per example ([B]).

        Returns:
            x0_hat, like x; for solvers with `learned_variance`, (x0_hat, frac).
        """
        ...


class FlowMap(Protocol):
    """A denoiser that is also given the level at which the step ends, for `solvers.flow_map`."""

    def __call__(self, x: Array, cur: Level, nxt: Level, /) -> Any:
        """The x0_hat whose exact step from `cur` ends where the probability flow is at `nxt`.

        Args:
            x: x at the level `cur`, [B, ...].
            cur: scalar, or one level per example ([B]).
            nxt: a level with less noise, like `cur`.

        Returns:
            x0_hat, like x.
        """
        ...


class SolverInit(Protocol):
    """Makes the initial state of a solver."""

    def __call__(self, x: Array, /) -> Any:
        """The initial state, e.g. an empty history.

        Args:
            x: x_T, [B, ...].

        Returns:
            a pytree of fixed shapes; () for none.
        """
        ...


class SolverStep(Protocol):
    """One step of a solver."""

    def __call__(self, denoise: Any, key: Array, x: Array, state: Any, cur: Level, nxt: Level, /) -> tuple[Array, Any]:
        """Step from one level to the next.

        Args:
            denoise: (x, level) -> x0_hat, or a `FlowMap` for solvers with `next_level`.
            key: the step's key, or [B] keys.
            x: x at the level `cur`, [B, ...].
            state: from `init` or the previous step.
            cur: scalar level, cur.sigma > 0.
            nxt: scalar level with less noise; nxt.sigma may be 0.

        Returns:
            (x at the level `nxt`, state).
        """
        ...


class NoiseSampler(Protocol):
    """The noise of a solver's steps: `noise.white`, `noise.brownian(key)`."""

    def __call__(self, key: Array, x: Array, cur: Level, nxt: Level, /) -> Array:
        """Standard normal noise.

        Args:
            key: the step's key, or [B] keys.
            x: gives shape and dtype, [B, ...].
            cur, nxt: the levels of the step.

        Returns:
            noise, like x.
        """
        ...


class TimeSampler(Protocol):
    """A distribution of training times, e.g. `times.uniform()`."""

    def __call__(self, key: Array, batch: int, /) -> tuple[Array, Array]:
        """Draw times.

        Args:
            key: one key.
            batch: B, the number of times.

        Returns:
            (t [B], weight [B]): times, and a factor of each example's loss, 1 unless t are importance samples.
        """
        ...


class Weight(Protocol):
    """A weight of the loss by level, e.g. `weights.min_snr(5.0)`."""

    def __call__(self, level: Level, /) -> Array:
        """The factor of the squared error of x_0.

        Args:
            level: fields [B].

        Returns:
            [B].
        """
        ...


class Loss(Protocol):
    """A loss of one batch, made by `losses` and minimized by `train.make_step`."""

    def __call__(self, params: Params, key: Array, batch: Batch, /) -> tuple[Array, Metrics]:
        """The loss.

        Args:
            params: parameters to differentiate.
            key: the step's key.
            batch: "x" and the condition, leading axis B.

        Returns:
            (scalar loss, metrics).
        """
        ...
