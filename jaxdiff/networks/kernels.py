"""Attention kernels: blockwise attention, and the missing derivatives of fused kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxdiff.networks.layers import at_least_float32

__all__ = ["blockwise", "fused", "traceable"]

Kernel = Callable[..., Array]  # (q, k, v, *masks) -> y


def blockwise(q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, block: int) -> Array:
    """Compute attention with the logits of one block of keys at a time.

    Rabe and Staats 2021 (arXiv:2112.05682), sec. 3. Derivatives recompute each block's logits.

    Args:
        q: [B, N, H, D].
        k: [B, L, H, D].
        v: [B, L, H, D].
        mask: bool[B, L], True for visible keys; None: all are visible.
        scale: of the logits.
        block: number of keys in a block.

    Returns:
        [B, N, H, D]; zeros for a query with no visible key.
    """
    batch, length, num_heads, _ = k.shape
    pad = -length % block
    visible = jnp.ones((batch, length), bool) if mask is None else mask
    parts = tuple(
        jnp.moveaxis(
            jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2)).reshape(batch, -1, block, *a.shape[2:]), 1, 0
        )
        for a in (k, v, visible)
    )
    dtype = at_least_float32(q.dtype)
    lowest = jnp.finfo(dtype).min / 2  # finite, so that the difference of two is not NaN

    @jax.checkpoint
    def step(carry, part):
        top, total, y = carry
        k, v, visible = part
        logits = jnp.einsum("bnhd,blhd->bhnl", q, k, preferred_element_type=dtype) * scale
        logits = jnp.where(visible[:, None, None], logits, lowest)
        # Softmax does not depend on a shift of the logits, so the shift needs no derivative.
        higher = jnp.maximum(top, jax.lax.stop_gradient(logits).max(-1))
        decay = jnp.exp(top - higher)
        weights = jnp.where(visible[:, None, None], jnp.exp(logits - higher[..., None]), 0)
        part_of_y = jnp.einsum("bhnl,blhd->bhnd", weights.astype(v.dtype), v, preferred_element_type=dtype)
        return (higher, total * decay + weights.sum(-1), y * decay[..., None] + part_of_y), None

    start = (batch, num_heads, q.shape[1])
    zeros = jnp.zeros(start, dtype), jnp.zeros((*start, v.shape[-1]), dtype)
    (_, total, y), _ = jax.lax.scan(step, (jnp.full(start, lowest, dtype), *zeros), parts)
    y = y / jnp.where(total == 0, jnp.ones_like(total), total)[..., None]
    return jnp.swapaxes(y, 1, 2).astype(q.dtype)


def traceable(f: Callable[..., Any], *args: Any) -> bool:
    """Whether JAX has a function for arguments of these shapes and dtypes on the device that is traced for."""
    try:
        jax.eval_shape(f, *args)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def fused(kernel: Kernel, formula: Kernel) -> Kernel:
    """Add derivatives to a kernel that has only a reverse-mode one, by a formula for the same function.

    Reverse mode stores q, k and v only, and runs the kernel's forward pass again for its backward pass, or the
    formula's where the kernel has no backward pass for these shapes.

    Args:
        kernel: (q, k, v, *masks) -> y, with a reverse derivative; its arguments have a leading batch axis.
        formula: the same function, with all derivatives.

    Returns:
        the kernel with derivatives of all orders and modes in q, k and v.
    """

    @jax.custom_jvp
    def call(q, k, v, *masks):
        return kernel(q, k, v, *masks)

    @call.defjvp
    def _(primals, tangents):
        return call(*primals), _tangent.bind(*primals, *tangents[:3], kernel=kernel, formula=formula)

    return call


# The tangent of y: (q, k, v, *masks, dq, dk, dv) -> dy, linear in the last three.
_tangent = Primitive("attention_tangent")


@_tangent.def_impl
@partial(jax.jit, static_argnames=("kernel", "formula"))
def _by_formula(*args: Any, kernel: Kernel, formula: Kernel) -> Array:
    (q, k, v, *masks), tangents = args[:-3], args[-3:]
    return jax.jvp(lambda q, k, v: formula(q, k, v, *masks), (q, k, v), tangents)[1]


def _transpose(ct: Any, *args: Any, kernel: Kernel, formula: Kernel) -> list:
    (q, k, v, *masks), tangents = args[:-3], args[-3:]
    unknown = [ad.is_undefined_primal(x) for x in tangents]
    if type(ct) is ad.Zero:
        return [None] * len(args)

    def back_by(function):
        return jax.vjp(lambda q, k, v: function(q, k, v, *masks), q, k, v)[1](ct)

    # cuDNN's backward pass has conditions of its own, e.g. even numbers of tokens.
    back = back_by(kernel if traceable(lambda: back_by(kernel)) else formula)
    return [None] * (len(args) - 3) + [g if asked else None for g, asked in zip(back, unknown, strict=True)]


def _jvp(primals: Any, tangents: Any, **kernels: Kernel) -> tuple[Array, Array]:
    def by_formula(*moving):  # the masks, which are bool, don't move
        return _by_formula(*moving[:3], *primals[3:-3], *moving[3:], **kernels)

    pick = lambda xs: (*xs[:3], *xs[-3:])  # noqa: E731
    moves = [jnp.zeros_like(x) if type(t) is ad.Zero else t for x, t in zip(pick(primals), pick(tangents), strict=True)]
    _, move = jax.jvp(by_formula, pick(primals), tuple(moves))
    return _tangent.bind(*primals, **kernels), move


def _batch(args: Any, axes: Any, **kernels: Kernel) -> tuple[Array, int]:
    """Fold the new axis into the batch axis, over which attention is independent."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)

    def fold(x, axis):
        x = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return x.reshape(-1, *x.shape[2:])

    y = _tangent.bind(*map(fold, args, axes), **kernels)
    return y.reshape(size, -1, *y.shape[1:]), 0


_tangent.def_abstract_eval(lambda *args, **kernels: args[0])
ad.primitive_transposes[_tangent] = _transpose
ad.primitive_jvps[_tangent] = _jvp
batching.primitive_batchers[_tangent] = _batch
mlir.register_lowering(_tangent, mlir.lower_fun(_by_formula, multiple_results=False))
