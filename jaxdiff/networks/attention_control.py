"""Attention control: a picture is edited by attention maps or tokens of its source, drawn beside it in one batch.

A network's Apply becomes one in which the second half of the batch attends as the first half does. The maps themselves
are never needed: a map that is applied to other values is attention with the queries and keys of that map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.attention import Control, with_control

__all__ = ["control_attention", "prompt_to_prompt", "shared_attention"]

Active = bool | Array


def control_attention(apply: Callable[..., Any], control: Control) -> Callable[..., Any]:
    """A network whose attention is computed by `control`, with the same parameters.

    Args:
        apply: the network, (params, x, noise, cond) -> F. For `prompt_to_prompt` and `shared_attention` x, noise and
            cond are [2B, ...]: B sources, then what is made of each.
        control: (attend, q, k, v, mask, cross) -> [B, N, H, D] in place of each attend(q, k, v, mask=mask), with q
            [B, N, H, D], k and v [B, L, H, D], mask bool [B, L] or None, and `cross` True where k and v are of the
            condition's tokens. It may hold traced arrays, such as a switch that depends on the noise level.

    Returns:
        the network, like `apply`, which must not be compiled by itself.
    """

    def controlled(*args: Any, **options: Any) -> Any:
        with with_control(control):
            return apply(*args, **options)

    return controlled


def shared_attention(names: str = "kv", *, self_attention: Active = True, cross_attention: Active = False) -> Control:
    """Attention of the second half of the batch with queries, keys or values of the first.

    Of self-attention "kv" is mutual self-attention, by which a picture looks up its textures in the source (MasaCtrl,
    Cao et al. 2023, arXiv:2304.08465), and "qk" keeps the source's layout (Plug-and-Play, Tumanyan et al. 2023,
    arXiv:2211.12572). With "qkv" of both attentions the text changes nothing.

    Args:
        names: those of q, k and v that are the source's.
        self_attention: whether it is so in self-attention, and in joint attention of pictures and tokens; may be
            traced.
        cross_attention: whether it is so in cross-attention; may be traced.

    Returns:
        the control, for `control_attention`.

    Raises:
        ValueError: other names.
    """
    if not names or set(names) - set("qkv"):
        raise ValueError(f'names are some of "qkv", got {names!r}')

    def control(attend: Any, q: Array, k: Array, v: Array, mask: Array | None, cross: bool) -> Array:
        active = cross_attention if cross else self_attention
        q, k, v = (_of_source(a, active) if n in names else a for a, n in zip((q, k, v), "qkv", strict=True))
        if mask is not None and "k" in names:
            mask = _of_source(mask, active)
        return attend(q, k, v, mask=mask)

    return control


def prompt_to_prompt(
    *,
    self_attention: Active = True,
    cross_attention: Active = True,
    align: Array | None = None,
    weights: Array | None = None,
) -> Control:
    """Prompt-to-prompt: the second half of the batch has the attention maps of the first (Hertz et al. 2022).

    arXiv:2208.01626, sec. 3.2: replaced words share maps, new words have their own, and a word's map is scaled. The
    authors replace self-attention's maps in the first 40 % of the steps and cross-attention's in the first 80 %. The
    joint attention of text and picture in MMDiT, Flux and U-ViT counts as self-attention: no words are aligned there.

    Args:
        self_attention: whether the maps are the source's in self-attention; may be traced, for it depends on the level.
        cross_attention: likewise in cross-attention.
        align: int [L] or [B, L], which of the source's tokens each token has its map from; -1 for a token that keeps
            its own. None: token i from token i.
        weights: [L] or [B, L], factors of the tokens' maps in cross-attention; None is 1.

    Returns:
        the control, for `control_attention`.
    """
    of_self = shared_attention("qk", self_attention=self_attention)

    def control(attend: Any, q: Array, k: Array, v: Array, mask: Array | None, cross: bool) -> Array:
        if not cross:
            return of_self(attend, q, k, v, mask, cross)
        half, length = q.shape[0] // 2, k.shape[1]
        (q0, q1), (k0, k1), (v0, v1) = (jnp.split(a, 2) for a in (q, k, v))
        m0, m1 = (None, None) if mask is None else jnp.split(mask, 2)
        if weights is not None:
            v1 = v1 * _per_example(weights, half, length)[..., None, None].astype(v.dtype)
        places = jnp.arange(length) if align is None else align
        # Values at the source's tokens, and those of tokens with maps of their own.
        chosen = jax.nn.one_hot(_per_example(places, half, length), length, dtype=v.dtype)
        taken = jnp.einsum("bjl,bjhd->blhd", chosen, v1)
        own = v1 * (1 - chosen.sum(-1))[..., None, None]
        taken, own = jnp.where(cross_attention, taken, 0), jnp.where(cross_attention, own, v1)
        stack = lambda *parts: jnp.concatenate(parts)  # noqa: E731
        masks = None if m0 is None or m1 is None else stack(m0, m0, m1)
        source, taken, own = jnp.split(
            attend(stack(q0, q0, q1), stack(k0, k0, k1), stack(v0, taken, own), mask=masks), 3
        )
        return stack(source, taken + own)

    return control


def _of_source(a: Array, active: Active) -> Array:
    source, own = jnp.split(a, 2)
    return jnp.concatenate([source, jnp.where(active, source, own)])


def _per_example(numbers: Array, batch: int, length: int) -> Array:
    return jnp.broadcast_to(jnp.asarray(numbers), (batch, length))
