"""Reconstructions without a network, which the others are compared with: total variation, SIRT, back projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.inverse import Operator
from jaxdiff.inverse.operators.base import times


def gradient(x: Array) -> Array:
    """Differences to the pixel below and to the right, 0 at the border: [B, H, W, C] -> [B, H, W, C, 2]."""
    down = jnp.diff(x, axis=1, append=x[:, -1:])
    return jnp.stack([down, jnp.diff(x, axis=2, append=x[:, :, -1:])], axis=-1)


def squared_norm(operator: Operator, shape: tuple[int, ...], steps: int = 30) -> Array:
    """The largest eigenvalue of A^T A, by power iteration.

    Args:
        operator: A.
        shape: of x, [B, H, W, C].
        steps: of the iteration.
    """

    def body(x: Array, _: None) -> tuple[Array, Array]:
        x = operator.adjoint(operator.apply(x))
        norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))
        return x / norm, jnp.max(norm)

    start = jax.random.normal(jax.random.key(0), shape)
    start /= jnp.sqrt(jnp.sum(jnp.square(start), axis=(1, 2, 3), keepdims=True))
    return jax.lax.scan(body, start, length=steps)[1][-1]


def total_variation(operator: Operator, y: Array, weight: float | Array, *, steps: int = 500) -> Array:
    """argmin |A x - y|^2 / 2 + weight |A|^2 |grad x|_1, isotropic, by Chambolle and Pock 2011, algorithm 1.

    Args:
        operator: A.
        y: measurements, [B, *measured].
        weight: of the total variation, in units of the squared norm of A, so that those of different A are alike.
        steps: of the method.

    Returns:
        x, [B, H, W, C].
    """
    back = operator.adjoint(y)
    scale = 1 / jnp.sqrt(squared_norm(operator, back.shape))
    # The largest steps for the operator divided by its norm, and the gradient, whose squared norm is at most 8: their
    # product is 1 / 9. The dual variable, below the weight, is small against pictures, and so is its step.
    y, sigma, tau = times(scale, y), 0.99 / 30, 0.99 / 0.3
    divergence = jax.linear_transpose(gradient, back)

    def body(carry: tuple[Array, Array, Array, Array], _: None):
        x, ahead, p, q = carry
        p = p + sigma * gradient(ahead)
        p = p / jnp.maximum(1, jnp.sqrt(jnp.sum(jnp.square(p), axis=-1, keepdims=True)) / weight)
        q = (q + sigma * (times(scale, operator.apply(ahead)) - y)) / (1 + sigma)
        new = x - tau * (divergence(p)[0] + scale * operator.adjoint(q))
        return (new, 2 * new - x, p, q), None

    x = jnp.square(scale) * back
    start = (x, x, jnp.zeros_like(gradient(x)), jnp.zeros_like(y))
    return jax.lax.scan(body, start, length=steps)[0][0]


def sirt(operator: Operator, y: Array, iterations: int | Array) -> Array:
    """Simultaneous iterative reconstruction, x + C A^T R (y - A x), kept at 0 and above (Gilbert 1972).

    R and C are the inverses of A's sums over its columns and its rows.

    Args:
        operator: A, without negative entries.
        y: measurements, [B, *measured].
        iterations: how many; more of them fit the noise. May be traced.

    Returns:
        x, [B, H, W, C].
    """
    x = jnp.zeros_like(operator.adjoint(y))
    inverse = lambda v: jnp.where(v > 1e-3, 1 / jnp.maximum(v, 1e-3), 0)  # noqa: E731
    rays, pixels = inverse(operator.apply(jnp.ones_like(x))), inverse(operator.adjoint(jnp.ones_like(y)))

    def body(_: Array, x: Array) -> Array:
        return jnp.maximum(x + pixels * operator.adjoint(rays * (y - operator.apply(x))), 0)

    return jax.lax.fori_loop(0, iterations, body, x)


def filtered_back_projection(operator: Operator, sinogram: Array) -> Array:
    """The ramp filter along the detectors, then the adjoint (Kak and Slaney 1988, sec. 3.3).

    Args:
        operator: a Radon transform of parallel rays, of angles that are equally spaced over 180 degrees.
        sinogram: [B, detectors, angles, C], with detectors at distances of a pixel.

    Returns:
        x, [B, H, W, C].
    """
    detectors, angles = sinogram.shape[1:3]
    length = 2 * detectors
    # The ramp is sampled in space, where it is band-limited: sampled in frequency, it would lose the mean.
    n = jnp.minimum(jnp.arange(length), length - jnp.arange(length)).astype(float)
    kernel = jnp.where(n % 2 == 1, -1 / jnp.square(jnp.pi * jnp.maximum(n, 1)), 0).at[0].set(0.25)
    ramp = jnp.fft.rfft(kernel).real[None, :, None, None]
    filtered = jnp.fft.irfft(times(ramp, jnp.fft.rfft(sinogram, length, axis=1)), length, axis=1)[:, :detectors]
    return jnp.pi / angles * operator.adjoint(filtered)
