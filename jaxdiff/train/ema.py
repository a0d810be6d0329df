"""Exponential moving averages of parameters. A decay is any function of the number of updates so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Decay = Callable[[jax.Array], jax.Array]  # int32 step, 0 at the first update -> float32 decay
Decays = Decay | tuple[Decay, ...]  # a tuple: one average for each


def constant(decay: float) -> Decay:
    """Use the same decay at every update.

    Args:
        decay: weight of the old average, in [0, 1).

    Raises:
        ValueError: decay is outside [0, 1).
    """
    _check(decay)
    return lambda step: jnp.full((), decay, jnp.float32)


def warmup(max_decay: float, offset: float = 10.0) -> Decay:
    """Start with a short memory that grows with training: min(max_decay, (1 + step) / (offset + step)).

    Args:
        max_decay: the final decay, in [0, 1).
        offset: a larger offset gives a shorter memory at first; greater than 1.

    Raises:
        ValueError: max_decay is outside [0, 1), or offset is not greater than 1.
    """
    _check(max_decay)
    if not offset > 1:
        raise ValueError(f"offset must be greater than 1, got {offset}")

    def decay(step: jax.Array) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        return jnp.minimum(max_decay, (1.0 + count) / (offset + count))

    return decay


def half_life(updates: float, ramp_up: float | None = 0.05) -> Decay:
    """Halve the weight of the past in a number of updates, at first in a share of the training so far.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), arXiv:2206.00364, and the
    authors' code: the decay is 2^(-1 / h) with h = min(updates, ramp_up * step). The paper counts images: divide its
    numbers by the batch size.

    Args:
        updates: half-life in updates; greater than 0.
        ramp_up: upper bound of the half-life, as a share of the updates so far; greater than 0, None is off.

    Raises:
        ValueError: updates or ramp_up is not greater than 0.
    """
    for name, value in (("updates", updates), ("ramp_up", ramp_up)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} of a half-life must be greater than 0, got {value}")

    def decay(step: jax.Array) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        length = updates if ramp_up is None else jnp.minimum(updates, ramp_up * count)
        # The first update has no past to keep: 2^-inf.
        return jnp.exp2(-1.0 / jnp.asarray(length, jnp.float32))

    return decay


def every(updates: int) -> Decay:
    """Replace the average by the parameters at the end of each stage, and keep it in between: a teacher by stages.

    The student becomes the teacher of the next stage (Salimans and Ho, "Progressive Distillation for Fast Sampling of
    Diffusion Models" (2022), arXiv:2202.00512, algorithm 2). The teacher of the first stage is the initial parameters.

    Args:
        updates: number of updates in a stage, at least 1.

    Raises:
        ValueError: updates is less than 1.
    """
    if updates < 1:
        raise ValueError(f"a stage must have at least 1 update, got {updates}")
    return lambda step: jnp.where((step + 1) % updates == 0, 0.0, 1.0).astype(jnp.float32)


@dataclass(frozen=True)
class Power:
    """The decay (1 - 1/t)^(gamma + 1) of the t-th update; see `power`."""

    gamma: float

    def __call__(self, step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) + 1.0
        return jnp.exp((self.gamma + 1.0) * jnp.log1p(-1.0 / t))


def power(std: float) -> Power:
    """Let the memory grow with training: after t updates, parameters of step tau <= t have weight ~ tau^gamma.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), arXiv:2312.02696, sec.
    3.1 and algorithm 2. Averages of other lengths can be reconstructed afterwards; see `posthoc`.

    Args:
        std: the weights' standard deviation relative to the length of the training, sigma_rel in the paper, e.g. 0.05
            or 0.1; between 0 and 0.2886, the value of a plain mean.

    Raises:
        ValueError: std is out of range.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"an average's std must be between 0 and 0.2886, got {std}")
    # std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) decreases for gamma > 0, from 1/12.
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return Power(float(roots.real.max()))


def posthoc(stored: Sequence[tuple[int, Power]], target: tuple[int, Power]) -> tuple[np.ndarray, float]:
    """Compute weights of stored averages whose sum best approximates an average that was not tracked.

    Karras et al. 2024, sec. 3.2 and algorithm 3: least squares between the averages' profiles, i.e. their weights of
    the parameters over time. As in the authors' code, the weights are then normalized to sum to 1, so that constant
    parameters are preserved.

    Args:
        stored: (updates so far, decay) of each stored average.
        target: (updates so far, decay) of the average to reconstruct.

    Returns:
        (weights, float64 [len(stored)], and the distance of the two profiles relative to the norm of the target: 0 is
        exact).

    Raises:
        ValueError: nothing is stored.
    """
    if not stored:
        raise ValueError("an average is reconstructed from stored ones, and none is stored")
    t, gamma = (np.array(column, np.float64) for column in zip(*((t, p.gamma) for t, p in stored), strict=True))
    end, target_gamma = target[0], target[1].gamma
    inner = _inner(t[:, None], gamma[:, None], t[None], gamma[None])
    outer = _inner(t, gamma, end, target_gamma)
    scale = np.diag(inner) ** -0.5  # profiles of norm 1, for better conditioning
    weights = scale * np.linalg.lstsq(inner * scale * scale[:, None], outer * scale, rcond=None)[0]
    weights = weights / np.sum(weights)
    norm = _inner(end, target_gamma, end, target_gamma)
    left = norm - 2 * weights @ outer + weights @ inner @ weights
    return weights, math.sqrt(max(left, 0.0) / norm)


def _inner(t: Any, gamma: Any, s: Any, delta: Any) -> Any:
    """Inner product of two profiles, each (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    log = (gamma + delta + 1) * np.log(np.minimum(t, s)) - (gamma + 1) * np.log(t) - (delta + 1) * np.log(s)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * np.exp(log)


def init(params: Any, decays: Decays) -> Any:
    """Copy the parameters as the initial average, in float32; a tuple of copies for a tuple of decays."""
    # Copies: averages and parameters are donated separately, so that they must not share a buffer.
    copy = lambda: jax.tree.map(lambda x: jnp.copy(x).astype(jnp.float32), params)  # noqa: E731
    return tuple(copy() for _ in decays) if isinstance(decays, tuple) else copy()


def update(average: Any, params: Any, decay: jax.Array) -> Any:
    """Move the average towards the parameters: decay * average + (1 - decay) * params, in float32.

    Args:
        average: tree of float32 arrays.
        params: a tree like `average`.
        decay: float32 scalar.

    Returns:
        the new average, float32.
    """

    # average + (1 - decay) * difference is exact where both agree, unlike decay * average + ...
    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        old = old.astype(jnp.float32)
        return old + (1.0 - decay) * (new.astype(jnp.float32) - old)

    return jax.tree.map(move, average, params)


def update_all(average: Any, params: Any, decays: Decays, step: jax.Array, move: Callable[..., Any] = update) -> Any:
    """Update one average, or each of a tuple of averages, after update number `step`, counted from 0.

    Args:
        average: float32 tree like `params`; a tuple of such trees for a tuple of decays.
        params: parameters after the update.
        decays: from this module.
        step: int32 scalar.
        move: function that updates one average, like `update`.

    Raises:
        ValueError: the number of decays is not the number of averages.
    """
    if not isinstance(decays, tuple):
        return move(average, params, decays(step))
    if not isinstance(average, tuple) or len(average) != len(decays):
        got = len(average) if isinstance(average, tuple) else "a single average"
        raise ValueError(f"the step tracks a tuple of {len(decays)} averages, but the state holds {got}")
    return tuple(move(tree, params, decay(step)) for tree, decay in zip(average, decays, strict=True))


def _check(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"an average's decay must be in [0, 1), got {decay}")
