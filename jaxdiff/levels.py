"""Noise levels, and the distributions q of the forward process between two of them.

Notation in all of jaxdiff:

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I)             a noised example
    lam_t = log(alpha_t / sigma_t)                               half the log-SNR
    SNR_t = alpha_t^2 / sigma_t^2 = exp(2 lam_t)
    eps = (x_t - alpha_t x_0) / sigma_t
    v = alpha_t eps - sigma_t x_0                                (Salimans and Ho 2022, arXiv:2202.00512)
    u = eps - x_0                                                velocity of the straight path (flow matching)
    score = grad log q(x_t | x_0) = -eps / sigma_t               (Tweedie)

`cur` is the current level, `nxt` the next one. A `Level` whose fields have leading axes (one level per example) aligns
with the leading axes of the data: `level.expand_to(x)` appends the missing ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import concrete, describe

__all__ = [
    "Ends",
    "Level",
    "added_variance",
    "append_axes",
    "append_clean",
    "check_grid",
    "check_variance",
    "clean_level",
    "from_x0",
    "posterior",
    "q_mean_std",
    "q_sample",
    "q_transition",
    "safe_log",
    "safe_sqrt",
    "score",
    "time_type",
    "typed_levels",
    "velocity",
    "with_learned_variance",
]


class Level(NamedTuple):
    """A noise level: x_t = alpha x_0 + sigma eps.

    Attributes:
        t: the process's own time (integers 1..T for a beta table, [0, 1] for VP or flow, sigma for EDM).
        alpha: scale of the data.
        sigma: standard deviation of the noise.
    """

    t: Array
    alpha: Array
    sigma: Array

    @property
    def lam(self) -> Array:
        """log(alpha / sigma), half the log-SNR: +inf at sigma = 0, -inf at alpha = 0."""
        return safe_log(self.alpha) - safe_log(self.sigma)

    @property
    def snr(self) -> Array:
        """alpha^2 / sigma^2."""
        return jnp.exp(2 * self.lam)

    @property
    def log_snr(self) -> Array:
        """log(alpha^2 / sigma^2)."""
        return 2 * self.lam

    def expand_to(self, x: Array) -> Level:
        """Append axes to the fields until they broadcast against x of shape [*level, ...]."""
        return _align(self, x.ndim)

    @concrete
    def at(self, index: Any) -> Level:
        """Return one level of a grid, or a part of the grid, by indexing every field.

        A `Level` is a named tuple, so that `levels[0]` is its first field, t.

        Args:
            index: an integer, which may be traced, a slice or an array of integers: `levels.at(0)` is the noisiest
                level, `levels.at(slice(None, -1))` is the grid without its last level.

        Returns:
            the level or levels.

        Raises:
            ValueError: a plain integer outside the grid.
        """
        size = np.shape(self.sigma)[0] if np.ndim(self.sigma) else 0
        if isinstance(index, int | np.integer) and not -size <= index < size:
            raise ValueError(f"a grid of {size} levels has no level {index}")
        return Level(*(jnp.asarray(field)[index] for field in self))


class Ends(NamedTuple):
    """The data x_0 and the noise eps of x_t = alpha x_0 + sigma eps; each prediction is a combination of them."""

    x0: Array
    eps: Array


@concrete
def clean_level(like: Level) -> Level:
    """The level of clean data, (t, alpha, sigma) = (0, 1, 0), with the shape and type of `like`'s fields."""
    return Level(jnp.zeros_like(like.t), jnp.ones_like(like.alpha), jnp.zeros_like(like.sigma))


@concrete
def append_clean(levels: Level) -> Level:
    """Append the level of clean data to a grid of levels.

    Args:
        levels: fields of shape [N].

    Returns:
        fields of shape [N + 1], the last of which is (t, alpha, sigma) = (0, 1, 0).
    """
    last = clean_level(levels.at(slice(-1, None)))
    return Level(*(jnp.concatenate(pair) for pair in zip(levels, last, strict=True)))


def q_mean_std(x0: Array, level: Level) -> tuple[Array, Array]:
    """Mean and standard deviation of q(x_t | x_0) = N(alpha x_0, sigma^2 I).

    Args:
        x0: clean data, [B, ...] (any shape).
        level: scalar, or one level per example ([B]).

    Returns:
        (mean, like x0; std, which broadcasts against it).
    """
    level = level.expand_to(x0)
    return level.alpha * x0, level.sigma


def q_sample(x0: Array, eps: Array, level: Level) -> Array:
    """x_t = alpha x_0 + sigma eps (Ho et al. 2020, arXiv:2006.11239, eq. 4, for any process).

    Args:
        x0: clean data, [B, ...].
        eps: standard normal noise, like x0.
        level: scalar, or one level per example ([B]).

    Returns:
        x_t, like x0.
    """
    mean, std = q_mean_std(x0, level)
    return mean + std * eps


def q_transition(x: Array, cur: Level, nxt: Level) -> tuple[Array, Array]:
    """Mean and standard deviation of q(x_t | x_s), from the level `cur` = s to the noisier level `nxt` = t.

    Kingma et al. 2021 (arXiv:2107.00630), eq. 20-22; for adjacent levels of a beta table this is q(x_t | x_{t-1}) =
    N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (Ho et al. 2020, eq. 2).

    Args:
        x: x_s, [B, ...].
        cur: the level s of x.
        nxt: the level t, with lam_t <= lam_s.

    Returns:
        (mean, like x; std, which broadcasts against it).
    """
    cur, nxt = cur.expand_to(x), nxt.expand_to(x)
    return nxt.alpha / cur.alpha * x, nxt.sigma * jnp.sqrt(added_variance(nxt, cur))


def posterior(x0: Array, x: Array, cur: Level, nxt: Level) -> tuple[Array, Array]:
    """Mean and standard deviation of q(x_s | x_t, x_0), from the level `cur` = t to the cleaner level `nxt` = s.

    Kingma et al. 2021 (arXiv:2107.00630), eq. 25-28; for adjacent levels of a beta table, Ho et al. 2020, eq. 6-7.
    Finite at sigma_s = 0 and at alpha_t = 0.

    Args:
        x0: clean data or its estimate, [B, ...].
        x: x_t, like x0.
        cur: the level t.
        nxt: the level s, with lam_s >= lam_t.

    Returns:
        (mean, like x; std, which broadcasts against it).
    """
    cur, nxt = cur.expand_to(x), nxt.expand_to(x)
    gain = added_variance(cur, nxt)
    keep = (cur.alpha / nxt.alpha) * jnp.square(nxt.sigma / cur.sigma)
    return keep * x + nxt.alpha * gain * x0, nxt.sigma * jnp.sqrt(gain)


def added_variance(cur: Level, nxt: Level) -> Array:
    """1 - SNR_t / SNR_s: the share of the variance at t (`cur`) that is added after s (`nxt`), computed by expm1."""
    # With s clean, or t pure noise, the difference of lam is -inf and the share is 1.
    return -jnp.expm1(2 * (cur.lam - nxt.lam))


def typed_levels(levels: Level, x: Array) -> Level:
    """A grid in the dtype of x, in which solvers compute; its time may be an integer index, and stays one."""
    levels = Level(*(jnp.asarray(field) for field in levels))
    return levels._replace(alpha=levels.alpha.astype(x.dtype), sigma=levels.sigma.astype(x.dtype))


def time_type(level: Level, other: Level) -> Any:
    """The dtype of the times of two levels in one: the first one's, or the other's if only that has fractions."""
    mine, others = (jnp.asarray(t).dtype for t in (level.t, other.t))
    return others if jnp.issubdtype(mine, jnp.integer) else mine


def check_grid(levels: Any) -> None:
    """Raise ValueError unless `levels` is a grid: a Level whose fields all have shape [N + 1], N >= 1."""
    if not isinstance(levels, Level):
        part = "; a part of a grid is levels.at(slice(0, 4))" if isinstance(levels, tuple) else ""
        raise ValueError(f"levels must be a grid, a Level as jaxdiff.grids make it, got {describe(levels)}{part}")
    shapes = {np.shape(field) for field in levels}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes))[0] < 2:
        raise ValueError(f"a grid is a Level whose fields all have shape [N + 1], N >= 1, got shapes {shapes}")


def steps_of(levels: Level) -> Array:
    """The number of steps of a grid, which may repeat its last level: N, or where the number is traced, at most N."""
    lam = Level(*(jnp.asarray(field) for field in levels)).lam
    return jnp.argmax(lam == lam[-1])


def check_variance(variance: str) -> None:
    """Raise ValueError unless `variance`, of p(x_s | x_t), is "small" (the posterior's), "large" or "learned"."""
    allowed = ("small", "large", "learned")
    if variance not in allowed:
        raise ValueError(f"variance must be one of {', '.join(allowed)}, got {variance!r}")


def with_learned_variance(output: Any) -> tuple[Array, Array]:
    """(x0_hat, frac) of a denoiser, or (F, frac) of a network.

    Raises:
        ValueError: it is one array, which would be unpacked along its batch if that has two examples.
    """
    if not isinstance(output, tuple) or len(output) != 2:
        raise ValueError("a learned variance needs a network that returns (F, frac), got one output")
    return output


def from_x0(x0: Array, x: Array, level: Level) -> Ends:
    """x_0 and eps from x_0; needs sigma > 0."""
    level = level.expand_to(x)
    return Ends(x0, (x - level.alpha * x0) / level.sigma)


def velocity(ends: Ends) -> Array:
    """u = eps - x_0, dx/dt of the straight path x_t = (1 - t) x_0 + t eps (Lipman et al. 2022; Liu et al. 2022)."""
    return ends.eps - ends.x0


def score(ends: Ends, level: Level) -> Array:
    """grad_x log q(x_t) = -E[eps | x_t] / sigma (Tweedie; Song et al. 2020, arXiv:2011.13456)."""
    return -ends.eps / level.expand_to(ends.eps).sigma


def safe_log(x: Array) -> Array:
    """log x, with log 0 = -inf and gradient 0 at 0, where a NaN hidden by `where` would reach the gradient."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1, x)))


def safe_sqrt(x: Array) -> Array:
    """sqrt x, with gradient 0 at 0, where an infinite one times zero would be NaN."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def append_axes(a: Array, ndim: int) -> Array:
    """Append axes of size 1 until there are `ndim`, so that values per example broadcast; a scalar stays a scalar."""
    return a.reshape(a.shape + (1,) * (ndim - a.ndim)) if a.ndim else a


@concrete
def _align(level: Level, ndim: int) -> Level:
    fields = (jnp.asarray(field) for field in level)
    return Level(*(append_axes(f, ndim) for f in fields))
