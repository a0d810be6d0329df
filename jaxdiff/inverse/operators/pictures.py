"""What is left of a picture: some pixels, averages of blocks, a blurred one."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.inverse.operators.base import Operator, Spectrum, check_binary, check_count, reciprocal, times

__all__ = ["average", "blur", "mask"]


def mask(known: Array) -> Operator:
    """The known entries of x; the others of a measurement are 0 (inpainting).

    Args:
        known: 1 where x is known, else 0, or booleans: like an example, or like x for one mask an example; axes may
            be 1, such as [H, W, 1]. May be traced.

    Returns:
        the operator, to the shape of x: A A^T is the mask.

    Raises:
        ValueError: a value other than 0 and 1; from the operator, a shape that is not that of x.
    """
    check_binary("known", known)
    known = jnp.asarray(known)

    def at(x: Array) -> Array:
        m = known if known.ndim == x.ndim else known[None]
        if m.ndim != x.ndim or any(k not in (1, n) for k, n in zip(m.shape, x.shape, strict=True)):
            raise ValueError(
                f"a mask has the shape of an example, {list(x.shape[1:])}, or of the batch, {list(x.shape)}, with axes "
                f"that may be 1, got {list(known.shape)}"
            )
        return m.astype(x.dtype)

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        return reciprocal(c * at(v) + d) * v

    keep = lambda x: at(x) * x  # noqa: E731
    return Operator(keep, keep, solve, lambda f, x: f(at(x)) * x, known)


def average(factor: int) -> Operator:
    """Means of blocks of factor x factor pixels (superresolution).

    Args:
        factor: of height and width.

    Returns:
        the operator, [B, H, W, C] -> [B, H / factor, W / factor, C]: A A^T is I / factor^2.

    Raises:
        ValueError: factor < 1; from the operator, a height or width that it does not divide.
    """
    check_count("factor", factor)
    each = 1 / factor**2

    def apply(x: Array) -> Array:
        b, h, w, c = x.shape
        if h % factor or w % factor:
            raise ValueError(f"a picture of {h} x {w} is not divided into blocks of {factor} x {factor}")
        return jnp.mean(x.reshape(b, h // factor, factor, w // factor, factor, c), axis=(2, 4))

    def adjoint(v: Array) -> Array:
        return each * jnp.repeat(jnp.repeat(v, factor, axis=1), factor, axis=2)

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        return reciprocal(c * each + d) * v

    def spectral(f: Spectrum, x: Array) -> Array:
        unseen, seen = (f(jnp.full((1,) * x.ndim, s, x.dtype)) for s in (0, 1 / factor))
        return unseen * x + (seen - unseen) * adjoint(apply(x)) * factor**2

    return Operator(apply, adjoint, solve, spectral)


def blur(kernel: Array) -> Operator:
    """Convolution with a kernel, periodic at the edges, which the Fourier transform makes diagonal.

    Args:
        kernel: [h, w] with odd sides, whose middle is the weight of the pixel itself; may be traced.

    Returns:
        the operator, [B, H, W, C] -> the same shape.

    Raises:
        ValueError: a kernel with an even side; from the operator, a picture that is smaller than it.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 2 or not all(n % 2 for n in kernel.shape):
        raise ValueError(f"kernel must be [h, w] with odd sides, got shape {list(kernel.shape)}")
    h, w = kernel.shape

    def transfer(x: Array) -> Array:
        if h > x.shape[1] or w > x.shape[2]:
            raise ValueError(f"a kernel of {h} x {w} is larger than a picture of {x.shape[1]} x {x.shape[2]}")
        padded = jnp.pad(kernel.astype(x.dtype), ((0, x.shape[1] - h), (0, x.shape[2] - w)))
        k = jnp.fft.rfft2(jnp.roll(padded, (-(h // 2), -(w // 2)), (0, 1)))[None, :, :, None]
        # What rounding leaves of a singular value 0 is none, as in `matrix`.
        least = jnp.max(jnp.abs(k)) * (max(x.shape[1:3]) * jnp.finfo(x.dtype).eps)
        return jnp.where(jnp.abs(k) > least, k, 0)

    def filtered(x: Array, factor: Array) -> Array:
        z = times(factor, jnp.fft.rfft2(x, axes=(1, 2)))
        return jnp.fft.irfft2(z, s=x.shape[1:3], axes=(1, 2))

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        return filtered(v, reciprocal(c * jnp.square(jnp.abs(transfer(v))) + d))

    def inverse(v: Array) -> Array:
        return filtered(v, reciprocal(transfer(v)))

    return Operator(
        lambda x: filtered(x, transfer(x)),
        lambda v: filtered(v, jnp.conj(transfer(v))),
        solve,
        lambda f, x: filtered(x, f(jnp.abs(transfer(x)))),
        inverse=inverse,
    )
