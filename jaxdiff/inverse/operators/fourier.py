"""Magnetic resonance imaging: some Fourier coefficients of a picture, seen by one coil or several."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import describe
from jaxdiff.inverse.operators.base import (
    Operator,
    Spectrum,
    check_binary,
    check_count,
    conjugate_residuals,
    reciprocal,
    times,
)

__all__ = ["fourier"]


def fourier(mask: Array, maps: Array | None = None, *, real: bool = False, iterations: int = 50) -> Operator:
    """The sampled part of the centred, orthonormal Fourier transform of each coil's picture, M F S x (SENSE).

    Pruessmann et al. 1999. The zero frequency and the middle of the picture lie at index n // 2.

    Args:
        mask: 1 where a coefficient is sampled, else 0: [H, W], or [B, H, W]; may be traced.
        maps: complex sensitivities of the coils, [coils, H, W] or [B, coils, H, W]; None is one coil with 1 everywhere.
        real: pictures are real, [B, H, W, 1]; else their real and imaginary parts are channels, [B, H, W, 2].
        iterations: of conjugate residuals, as for `linear`: of solves with several coils or real pictures; the others
            are closed.

    Returns:
        the operator, to complex [B, H, W], or [B, coils, H, W] with maps; 0 where nothing is sampled.

    Raises:
        ValueError: a mask of another shape or with values other than 0 and 1, maps of another shape or not complex, or
            iterations < 1; from the operator, pictures of another shape.
    """
    check_binary("mask", mask)
    check_count("iterations", iterations)
    mask = jnp.asarray(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must have shape [H, W] or [B, H, W], got {list(mask.shape)}")
    if maps is not None and (
        maps.ndim not in (3, 4) or not jnp.iscomplexobj(maps) or maps.shape[-2:] != mask.shape[-2:]
    ):
        raise ValueError(f"maps must be complex, [coils, H, W] or [B, coils, H, W], as the mask, got {describe(maps)}")
    channels = 1 if real else 2
    sampled = mask if mask.ndim == 3 else mask[None]
    sampled = sampled if maps is None else sampled[:, None]
    coils = None if maps is None else maps if maps.ndim == 4 else maps[None]

    def apply(x: Array) -> Array:
        if x.ndim != 4 or x.shape[1:] != (*mask.shape[-2:], channels):
            raise ValueError(
                f"pictures must have shape [B, {mask.shape[-2]}, {mask.shape[-1]}, {channels}], got {x.shape}"
            )
        z = jax.lax.complex(x[..., 0], jnp.zeros_like(x[..., 0]) if real else x[..., 1])
        z = z if coils is None else coils.astype(z.dtype) * z[:, None]
        return times(sampled, _transform(z, jnp.fft.fft2))

    def adjoint(v: Array) -> Array:
        z = _transform(times(sampled, v), jnp.fft.ifft2)
        z = z if coils is None else jnp.sum(jnp.conj(coils).astype(z.dtype) * z, axis=1)
        return z.real[..., None] if real else jnp.stack([z.real, z.imag], axis=-1)

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        if coils is None and not real:
            return times(reciprocal(c * sampled.astype(v.real.dtype) + d), v)
        return conjugate_residuals(lambda u: times(c, apply(adjoint(u))) + times(d, u), v, iterations)

    def spectral(f: Spectrum, x: Array) -> Array:
        unseen, seen = (f(jnp.full((1,) * x.ndim, s, x.dtype)) for s in (0, 1))
        return unseen * x + (seen - unseen) * adjoint(apply(x))

    return Operator(apply, adjoint, solve, spectral if coils is None and not real else None, sampled)


def _transform(z: Array, f) -> Array:
    # ifftshift moves index n // 2 to 0 and fftshift back; for odd n they differ.
    axes = (-2, -1)
    return jnp.fft.fftshift(f(jnp.fft.ifftshift(z, axes), norm="ortho"), axes)
