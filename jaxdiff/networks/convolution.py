"""Convolution, with gradients that are fast on a CPU.

XLA's CPU compiler transposes a convolution to the order of axes that its fast kernel needs, but only outside of loops:
in the loop of a sampler or of microbatches, the gradient of a convolution would take some fifty times as long. So this
module writes gradients in that order. The gradient of a kernel sums over bands of rows that fit into a core's cache,
which is up to 2.5 times as fast.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxdiff.sharding import platform

# How many numbers fit into a core's cache; for larger inputs a kernel's gradient sums BAND positions at a time.
CACHE, BAND = 2**19, 2048


@partial(jax.jit, static_argnames=("stride", "pad"))
def convolve(x: Array, kernel: Array, *, stride: int = 1, pad: tuple[int, int]) -> Array:
    """Cross-correlate x with a kernel over all spatial axes.

    Args:
        x: [B, *spatial, C].
        kernel: [*size, C, features], of the type of x.
        stride: along each axis.
        pad: zeros before and after each axis.

    Returns:
        [B, *spatial', features].
    """
    return (_for_cpu if platform() == "cpu" else _convolve)(x, kernel, stride, pad)


def _convolve(
    x: Array, kernel: Array, stride: int, pad: tuple[int, int], layout: tuple[str, str, str] = ("NsC", "sIO", "NsC")
) -> Array:
    """Cross-correlate arrays whose axes are named; `s` stands for the spatial ones."""
    dims = x.ndim - 2
    a, b, y = (names.replace("s", "DHW"[3 - dims :]) for names in layout)
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * dims, [pad] * dims, dimension_numbers=(a, b, y))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _for_cpu(x: Array, kernel: Array, stride: int, pad: tuple[int, int]) -> Array:
    return _convolve(x, kernel, stride, pad)


@partial(_for_cpu.defjvp, symbolic_zeros=True)
def _(stride, pad, primals, tangents):
    (x, kernel), (dx, dk) = primals, tangents
    moves = [(dx, kernel)] * (type(dx) is not SymbolicZero) + [(x, dk)] * (type(dk) is not SymbolicZero)
    # The plain primitive: rematerialization selects what to keep by the primitive's name.
    tangent, *other = (_moved.bind(*pair, stride=stride, pad=pad) for pair in moves)
    return _convolve(x, kernel, stride, pad), tangent + other[0] if other else tangent


# The same convolution within a tangent, linear in the argument that is differentiated.
_moved = Primitive("moved_convolution")


@_moved.def_impl
@partial(jax.jit, static_argnames=("stride", "pad"))
def _of_tangent(x: Array, kernel: Array, *, stride: int, pad: tuple[int, int]) -> Array:
    return _convolve(x, kernel, stride, pad)


# A transpose swaps the names of two axes in each array. Here they are swapped first, so that the results are in order.
def _to_x(ct, x, kernel, *, stride: int, pad: tuple[int, int]) -> Array:
    swapped = jnp.swapaxes(kernel, -1, -2)
    forward = lambda x: _convolve(x, swapped, stride, pad, ("NsC", "sOI", "NsC"))  # noqa: E731
    return jax.linear_transpose(forward, x.aval)(ct)[0]


def _to_kernel(ct, x, kernel, *, stride: int, pad: tuple[int, int]) -> Array:
    # Padded explicitly, so that each band of rows is a separate convolution.
    swapped = jnp.pad(jnp.swapaxes(x, 0, -1), [(0, 0), *[pad] * (x.ndim - 2), (0, 0)])
    count = _rows_of_a_band(x.size, ct.shape)

    def band(start: Array | int) -> Array:
        num_rows = (count - 1) * stride + kernel.aval.shape[0]
        rows = jax.lax.dynamic_slice_in_dim(swapped, start * stride, num_rows, 1)

        def forward(kernel):
            y = _convolve(rows, jnp.moveaxis(kernel, -2, 0), stride, (0, 0), ("CsN", "IsO", "sNC"))
            return jnp.moveaxis(y, -2, 0)

        return jax.linear_transpose(forward, kernel.aval)(jax.lax.dynamic_slice_in_dim(ct, start, count, 1))[0]

    if count == ct.shape[1]:
        return band(0)
    total = jnp.zeros(kernel.aval.shape, np.promote_types(ct.dtype, np.float32))
    add = lambda total, start: (total + band(start).astype(total.dtype), None)  # noqa: E731
    return jax.lax.scan(add, total, jnp.arange(0, ct.shape[1], count))[0].astype(ct.dtype)


def _rows_of_a_band(size: int, shape: tuple[int, ...]) -> int:
    """The number of rows of [B, rows, ...] in a band, given the number of elements of the input."""
    rows, others = shape[1], math.prod(shape[:-1]) // shape[1]
    # With several devices, every iteration of the loop would sum over the devices.
    if size <= CACHE or jax.sharding.get_abstract_mesh().size > 1:
        return rows
    return max(count for count in range(1, rows + 1) if rows % count == 0 and (count == 1 or count * others <= BAND))


def _batch(args, axes, *, stride: int, pad: tuple[int, int]) -> tuple[Array, int]:
    if axes[1] is not None:
        return jax.vmap(partial(_of_tangent, stride=stride, pad=pad), axes)(*args), 0
    x = jnp.moveaxis(args[0], axes[0], 0)
    y = _moved.bind(x.reshape(-1, *x.shape[2:]), args[1], stride=stride, pad=pad)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


@_moved.def_abstract_eval
def _(x, kernel, **options):
    return x.update(shape=jax.eval_shape(partial(_of_tangent, **options), x, kernel).shape)


ad.defbilinear(_moved, _to_x, _to_kernel)
batching.primitive_batchers[_moved] = _batch
mlir.register_lowering(_moved, mlir.lower_fun(_of_tangent, multiple_results=False))
