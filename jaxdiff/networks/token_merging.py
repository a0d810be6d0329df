"""Token merging: self-attention among fewer tokens, of which the most alike are one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.attention import Control

__all__ = ["merged_tokens"]


def merged_tokens(ratio: float, *, stride: int = 4, least: int = 256) -> Control:
    """Self-attention whose most similar tokens are merged before it, and get one result (Bolya and Hoffman 2023).

    arXiv:2303.17604, with the matching of Bolya et al. 2022 (arXiv:2210.09461, sec. 3): every `stride`-th token stays,
    and of the others the share whose keys are nearest to the key of one that stays is averaged with it. The number of
    tokens is fixed, so that unlike ones are merged where few are alike; an example's depend on the example alone.

    Args:
        ratio: share of all tokens that are merged, in [0, 1 - 1 / stride]; the time of attention falls with its square.
        stride: distance of the tokens that stay, in the order of rows.
        least: attention among fewer tokens is left as it is.

    Returns:
        the control, for `control_attention`.

    Raises:
        ValueError: a stride below 2, or a ratio outside its range.
    """
    if stride < 2:
        raise ValueError(f"stride must be at least 2, got {stride}")
    if not 0 <= ratio <= 1 - 1 / stride:
        raise ValueError(f"ratio must lie between 0 and {1 - 1 / stride:.3g}, with a stride of {stride}, got {ratio}")

    def control(attend: Any, q: Array, k: Array, v: Array, mask: Array | None, cross: bool) -> Array:
        count = q.shape[1]
        merged = int(ratio * count)
        if cross or mask is not None or k.shape[1] != count or count < least or not merged:
            return attend(q, k, v, mask=mask)
        stay = np.arange(0, count, stride)
        others = np.setdiff1d(np.arange(count), stay)
        merged = min(merged, len(others))
        keys = k.reshape(*k.shape[:2], -1)
        keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), jnp.finfo(k.dtype).tiny)
        alike = jnp.einsum("bnc,bmc->bnm", keys[:, others], keys[:, stay])
        order = jnp.argsort(-alike.max(-1), axis=1)  # of the others, the most alike first
        into = jnp.take_along_axis(alike.argmax(-1), order, axis=1)[:, :merged]
        one_hot = jax.nn.one_hot(into, len(stay), dtype=q.dtype)
        size = 1 + one_hot.sum(1)[..., None, None]

        def reduce(a: Array) -> Array:
            moved = _take(a[:, others], order)
            means = (a[:, stay] + jnp.einsum("bnm,bnhd->bmhd", one_hot, moved[:, :merged])) / size
            return jnp.concatenate([means, moved[:, merged:]], axis=1)

        y = attend(reduce(q), reduce(k), reduce(v), mask=None)
        kept, alone = y[:, : len(stay)], y[:, len(stay) :]
        back = _take(jnp.concatenate([_take(kept, into), alone], axis=1), jnp.argsort(order, axis=1))
        return jnp.zeros_like(v).at[:, stay].set(kept).at[:, others].set(back)

    return control


def _take(a: Array, index: Array) -> Array:
    """a[b, index[b]] of [B, N, H, D]."""
    return jnp.take_along_axis(a, index[:, :, None, None], axis=1)
