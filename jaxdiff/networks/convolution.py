"""Convolution, with gradients that are fast on a CPU.

XLA's CPU compiler transposes a convolution to the order of axes that its fast kernel needs, but only outside of loops
and conditionals: in the loop of a sampler or of microbatches, or in the turn of a critic, the gradient of a convolution
would take some fifty times as long. So this module writes gradients, and their gradients, in that order. The gradient
of a kernel sums over bands of rows that fit into a core's cache, which is up to 2.5 times as fast.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
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
    y = partial(_convolve, stride=stride, pad=pad)
    # A kernel's gradient within `shard_map` is a sum over devices, which JAX adds to its own primitives alone.
    if platform() != "cpu" or jax.sharding.get_abstract_mesh().manual_axes:
        return y(x, kernel)
    return _y.bind(x, kernel, stride=stride, pad=pad, shape=jax.eval_shape(y, x, kernel).shape)


def _convolve(
    x: Array, kernel: Array, stride: int, pad: tuple[int, int], layout: tuple[str, str, str] = ("NsC", "sIO", "NsC")
) -> Array:
    """Cross-correlate arrays whose axes are named; `s` stands for the spatial ones."""
    dims = x.ndim - 2
    a, b, y = (names.replace("s", "DHW"[3 - dims :]) for names in layout)
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * dims, [pad] * dims, dimension_numbers=(a, b, y))


# <y, convolution of x with k> is linear in y, x and k, and its derivative by each is a function of the other two.
# Each is a primitive whose transposes are the other two, so that derivatives of any order are these. A transpose in JAX
# swaps the names of two axes in each array; here they are swapped first.
@partial(jax.jit, static_argnames=("stride", "pad", "shape"))
def _to_y(x: Array, kernel: Array, *, stride: int, pad: tuple[int, int], shape: tuple[int, ...]) -> Array:
    return _convolve(x, kernel, stride, pad)


@partial(jax.jit, static_argnames=("stride", "pad", "shape"))
def _to_x(y: Array, kernel: Array, *, stride: int, pad: tuple[int, int], shape: tuple[int, ...]) -> Array:
    swapped = jnp.swapaxes(kernel, -1, -2)
    forward = lambda x: _convolve(x, swapped, stride, pad, ("NsC", "sOI", "NsC"))  # noqa: E731
    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


@partial(jax.jit, static_argnames=("stride", "pad", "shape"))
def _to_kernel(y: Array, x: Array, *, stride: int, pad: tuple[int, int], shape: tuple[int, ...]) -> Array:
    # Padded explicitly, so that each band of rows is a separate convolution.
    swapped = jnp.pad(jnp.swapaxes(x, 0, -1), [(0, 0), *[pad] * (x.ndim - 2), (0, 0)])
    count = _rows_of_a_band(x.size, y.shape)

    def band(start: Array | int) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(swapped, start * stride, (count - 1) * stride + shape[0], 1)

        def forward(kernel):
            y = _convolve(rows, jnp.moveaxis(kernel, -2, 0), stride, (0, 0), ("CsN", "IsO", "sNC"))
            return jnp.moveaxis(y, -2, 0)

        transposed = jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, y.dtype))
        return transposed(jax.lax.dynamic_slice_in_dim(y, start, count, 1))[0]

    if count == y.shape[1]:
        return band(0)
    total = jnp.zeros(shape, np.promote_types(y.dtype, np.float32))
    add = lambda total, start: (total + band(start).astype(total.dtype), None)  # noqa: E731
    return jax.lax.scan(add, total, jnp.arange(0, y.shape[1], count))[0].astype(y.dtype)


def _rows_of_a_band(size: int, shape: tuple[int, ...]) -> int:
    """The number of rows of [B, rows, ...] in a band, given the number of elements of the input."""
    rows, others = shape[1], math.prod(shape[:-1]) // shape[1]
    # With several devices, every iteration of the loop would sum over the devices.
    if size <= CACHE or jax.sharding.get_abstract_mesh().size > 1:
        return rows
    return max(count for count in range(1, rows + 1) if rows % count == 0 and (count == 1 or count * others <= BAND))


def _batch(primitive: Primitive, run: Callable[..., Array], args, axes, *, shape: tuple[int, ...], **options):
    if axes[1] is not None or run is _to_kernel:
        return jax.vmap(partial(run, shape=shape, **options), axes)(*args), 0
    a = jnp.moveaxis(args[0], axes[0], 0)
    many = a.shape[:1]
    y = primitive.bind(a.reshape(-1, *a.shape[2:]), args[1], shape=(many[0] * shape[0], *shape[1:]), **options)
    return y.reshape(*many, *shape), 0


def _primitive(name: str, run: Callable[..., Array]) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(run)
    primitive.def_abstract_eval(lambda a, b, *, shape, **_: a.update(shape=shape))
    batching.primitive_batchers[primitive] = partial(_batch, primitive, run)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    return primitive


_y = _primitive("convolution", _to_y)
_x = _primitive("convolution_to_x", _to_x)
_kernel = _primitive("convolution_to_kernel", _to_kernel)


def _transposes(of_first: Callable[..., Array], of_second: Callable[..., Array]) -> tuple[Callable, Callable]:
    """The rules of a transpose, of functions (cotangent, the other argument, the shape of what is asked for)."""
    first = lambda ct, a, b, *, shape, **options: of_first(ct, b, shape=a.aval.shape, **options)  # noqa: E731
    second = lambda ct, a, b, *, shape, **options: of_second(ct, a, shape=b.aval.shape, **options)  # noqa: E731
    return first, second


def _swapped(primitive: Primitive) -> Callable[..., Array]:
    return lambda a, b, **options: primitive.bind(b, a, **options)


ad.defbilinear(_y, *_transposes(_x.bind, _kernel.bind))
ad.defbilinear(_x, *_transposes(_y.bind, _swapped(_kernel)))
ad.defbilinear(_kernel, *_transposes(_swapped(_y), _swapped(_x)))
