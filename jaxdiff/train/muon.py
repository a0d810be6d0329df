"""The Muon optimizer: momentum with orthogonalized matrices."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdiff import trees
from jaxdiff.types import Params

ROUNDS = 5
# Coefficients of a x + b x^3 + c x^5, with the largest slope at 0 for which five rounds end near 1.
A, B, C = 3.4445, -4.7750, 2.0315
# An orthogonal matrix times RMS sqrt(longer side) has entries as large as AdamW's updates.
RMS = 0.2


class MuonState(NamedTuple):
    """The state of Muon."""

    momentum: Any  # like the kernels


def orthogonalize(x: Array) -> Array:
    """Move the singular values of matrices near 1, and preserve their singular vectors.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): five Newton-Schulz rounds of
    X <- a X + b X (X^T X) + c X (X^T X)^2. Each round multiplies X by a polynomial of the first Gram matrix. The
    product of these polynomials, a matrix of the size of the shorter side, is computed first, and multiplied by X at
    the end.

    Args:
        x: [..., M, N].

    Returns:
        matrices like x. Singular values of at least 0.01 of the Frobenius norm end between 0.67 and 1.21; a matrix of
        zeros stays zero.
    """
    if x.shape[-2] < x.shape[-1]:
        return jnp.swapaxes(orthogonalize(jnp.swapaxes(x, -1, -2)), -1, -2)
    if jnp.finfo(x.dtype).bits < 32:
        x = x.astype(jnp.float32)

    def dot(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision="highest")  # a Gram matrix squares the condition number

    gram = dot(jnp.swapaxes(x, -1, -2), x)
    square = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]  # squared Frobenius norm
    square = jnp.maximum(square, jnp.finfo(x.dtype).tiny)
    gram, identity = gram / square, jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)
    product = identity
    for i in range(ROUNDS):
        factor = A * identity + B * gram + C * dot(gram, gram)
        product = dot(product, factor) if i > 0 else factor
        gram = dot(factor, dot(gram, factor))
    return dot(x, product) * jax.lax.rsqrt(square)


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Convert gradients to orthogonalized Nesterov momentum, scaled to the size of AdamW's updates.

    Kernels [*size, in, out] are matrices [prod(size) in, out], or stacks of these for axes of equal layers, whose names
    end in ".*" (`jaxdiff.sharding`). The scale follows Liu et al., "Muon is Scalable for LLM Training" (2025), eq. 4.

    Args:
        momentum: decay of the sum of gradients.
    """

    def init(params: Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: MuonState, params: Params = None) -> tuple[Any, MuonState]:
        total = jax.tree.map(lambda old, g: momentum * old + g, state.momentum, grads)
        ahead = jax.tree.map(lambda new, g: momentum * new + g, total, grads)
        return jax.tree.map_with_path(_scaled, ahead), MuonState(total)

    return optax.GradientTransformation(init, update)


def kinds(params: Params) -> Any:
    """Label each array of a tree by its optimizer, "muon" or "adamw".

    Raises:
        ValueError: there is no kernel in the tree.
    """
    rules = jax.tree.map_with_path(lambda path, x: "muon" if _is_kernel(path, x) else "adamw", params)
    if "muon" not in jax.tree.leaves(rules):
        names = list(trees.flatten(params))[:20]
        raise ValueError(f"muon trains arrays named 'kernel', of two axes or more, and found none; got {names}")
    return rules


def _scaled(path: tuple[Any, ...], x: Array) -> Array:
    stacks = trees.stack_axes(trees.keys(path))
    matrices = x.reshape(*x.shape[:stacks], math.prod(x.shape[stacks:-1]), x.shape[-1])
    scale = RMS * math.sqrt(max(matrices.shape[-2:]))
    return (scale * orthogonalize(matrices)).reshape(x.shape).astype(x.dtype)


def _is_kernel(path: tuple[Any, ...], x: Any) -> bool:
    names = trees.keys(path)
    return names[-1:] == ("kernel",) and x.ndim - trees.stack_axes(names) > 1
