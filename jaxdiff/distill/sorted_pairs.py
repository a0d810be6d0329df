"""Pairs of times: two draws, sorted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import TimePairs
from jaxdiff.types import TimeSampler

__all__ = ["sorted_pairs"]


@factory
def sorted_pairs(times: TimeSampler, equal: float = 0.75) -> TimePairs:
    """Two independent draws, the noisier one first, and s = t in a share of them (Geng et al. 2025, arXiv:2505.13447).

    The pairs with s = t train the velocity, of which all longer steps are made.

    Args:
        times: distribution of a time, in the process's time, e.g. `times.logit_normal(-0.4, 1.0)`.
        equal: probability of s = t, of each example on its own: 0.75 in MeanFlow's ablations, 0.5 in iMF.

    Returns:
        (key, B, step) -> (t, s, weight), the weight being the product of those of the draws.

    Raises:
        ValueError: equal is outside [0, 1].
    """
    check_function("times", times, "(key, batch) -> (t, weight)")
    check_number("equal", equal, low=0.0, high=1.0)

    def pairs(key: Array, batch: int, step: Array) -> tuple[Array, Array, Array]:
        first, second, share = jax.random.split(key, 3)
        (a, a_weight), (b, b_weight) = times(first, batch), times(second, batch)
        t = jnp.maximum(a, b)
        same = jax.random.bernoulli(share, equal, (batch,))
        return t, jnp.where(same, t, jnp.minimum(a, b)), a_weight * b_weight

    return pairs
