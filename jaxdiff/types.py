"""The types that pass between rooms, and what a function of your own takes and returns to be one of them.

Shapes: B is the number of examples, [B, ...] an array with any further axes.
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
        skip, out, inp: scales, with the shape of the level's fields; plain numbers will do.
        noise: what the network's time embedding receives.
    """

    skip: Array
    out: Array
    inp: Array
    noise: Array


class Prediction(Protocol):
    """What a network predicts, as the scales between its output and x0_hat: `parameterize.eps`, `edm(0.5)`, ..."""

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
        """What the network predicts, F.

        Args:
            params: its parameters.
            x: scaled input, inp x_t, [B, ...].
            noise: [B], what the prediction tells it of the level.
            cond: the condition, {} for none. A network with dropout also takes `key=`, a random key, which losses pass
                where they are made with dropout=True.

        Returns:
            F, like x; with a learned variance (F, frac).
        """
        ...


class Denoiser(Protocol):
    """E[x_0 | x_t]: what networks become by `denoiser`, and what guidance changes and solvers call."""

    def __call__(self, x: Array, level: Level, /) -> Any:
        """x0_hat.

        Args:
            x: x_t, [B, ...].
            level: scalar, or one level per example ([B]).

        Returns:
            x0_hat, like x; for solvers with `learned_variance`, (x0_hat, frac).
        """
        ...


class SolverInit(Protocol):
    """The start of a solver's memory."""

    def __call__(self, x: Array, /) -> Any:
        """What a multistep method remembers.

        Args:
            x: x_T, [B, ...].

        Returns:
            any pytree of fixed shapes; () for none.
        """
        ...


class SolverStep(Protocol):
    """A step of a solver."""

    def __call__(
        self, denoise: Denoiser, key: Array, x: Array, state: Any, cur: Level, nxt: Level, /
    ) -> tuple[Array, Any]:
        """Go from one level to the next.

        Args:
            denoise: (x, level) -> x0_hat.
            key: the step's own, one key or [B] keys.
            x: at the level `cur`, [B, ...].
            state: what `init` or the step before returned.
            cur: scalar level of x, cur.sigma > 0.
            nxt: scalar level to go to, cleaner; nxt.sigma may be 0.

        Returns:
            (x at the level `nxt`, state).
        """
        ...


class NoiseSampler(Protocol):
    """The noise of a solver's steps: `noise.white`, `noise.brownian(key)`."""

    def __call__(self, key: Array, x: Array, cur: Level, nxt: Level, /) -> Array:
        """Standard normal noise.

        Args:
            key: the step's own, one key or [B] keys.
            x: what the noise is like, [B, ...].
            cur, nxt: the levels of the step.

        Returns:
            like x.
        """
        ...


class TimeSampler(Protocol):
    """A distribution of training times: `times.uniform()`, ..."""

    def __call__(self, key: Array, batch: int, /) -> tuple[Array, Array]:
        """Draw times.

        Args:
            key: one key.
            batch: B, how many.

        Returns:
            (t [B], weight [B]): what each example's loss is multiplied by is its weight, 1 where t has the density that
            the loss is meant for.
        """
        ...


class Weight(Protocol):
    """A weight of the loss: `weights.simple`, `weights.min_snr(5.0)`, ..."""

    def __call__(self, level: Level, /) -> Array:
        """How much a squared error of x_0 counts.

        Args:
            level: fields [B].

        Returns:
            [B].
        """
        ...


class Loss(Protocol):
    """A loss of one batch, as `losses` make them and `train.make_step` takes them."""

    def __call__(self, params: Params, key: Array, batch: Batch, /) -> tuple[Array, Metrics]:
        """The loss.

        Args:
            params: what the gradient is taken of.
            key: the step's own.
            batch: "x" and the condition, leading axis B.

        Returns:
            (scalar loss, metrics).
        """
        ...
