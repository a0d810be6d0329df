"""The convolution whose gradients a CPU is quick at, against XLA's own derivatives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxdiff.networks import convolution
from jaxdiff.networks.convolution import convolve
from jaxdiff.networks.video import TemporalConv

CASES = {"same": (2, 3, 1, (1, 1)), "down": (2, 3, 2, (0, 1)), "torch": (1, 3, 2, (1, 1)), "video": (3, 2, 1, (1, 0))}


def theirs(x, kernel, *, stride, pad):
    dims = x.ndim - 2
    letters = "DHW"[3 - dims :]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * dims, [pad] * dims, dimension_numbers=names)


def arrays(dims, size):
    draw = np.random.default_rng(0).normal
    return draw(size=(2, *(5, 6, 4)[:dims], 3)), draw(size=(*(size,) * dims, 3, 4))


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name != "torch")) for name in CASES])
def test_derivatives_of_both_modes_and_second_order(case, x64):
    dims, size, stride, pad = CASES[case]
    x, kernel = arrays(dims, size)

    def derivatives(conv):
        run = lambda x, kernel: conv(x, kernel, stride=stride, pad=pad)  # noqa: E731
        loss = lambda x, kernel: jnp.sum(jnp.sin(run(x, kernel)))  # noqa: E731
        slope = lambda x, kernel: jnp.sum(jnp.sin(jax.grad(loss, argnums=1)(x, kernel)))  # noqa: E731
        return (
            run(x, kernel),
            jax.grad(loss, argnums=(0, 1))(x, kernel),
            jax.jvp(run, (x, kernel), (jnp.cos(x), jnp.sin(kernel))),
            jax.jvp(lambda x: run(x, kernel), (x,), (jnp.cos(x),)),
            jax.grad(slope, argnums=(0, 1))(x, kernel),
            jax.jvp(jax.grad(loss), (x, kernel), (jnp.cos(x), jnp.sin(kernel))),
        )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), derivatives(convolve), derivatives(theirs))


def test_derivatives_under_vmap(x64):
    x, kernel = arrays(2, 3)
    directions = np.random.default_rng(1).normal(size=(3, *x.shape))

    def along(conv):
        move = jax.linearize(lambda x: conv(x, kernel, stride=1, pad=(1, 1)), x)[1]
        turn = lambda v: jax.jvp(lambda k: conv(x, k, stride=1, pad=(1, 1)), (kernel,), (kernel * v,))[1]  # noqa: E731
        return jax.vmap(move)(directions), jax.vmap(turn)(np.arange(3.0))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), along(convolve), along(theirs))


def test_within_shard_map_a_kernel_s_gradient_is_the_sum_over_devices(x64):
    x, kernel = arrays(2, 3)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    loss = lambda kernel, x: jnp.sum(jnp.sin(convolve(x, kernel, pad=(1, 1))))  # noqa: E731
    slope = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    np.testing.assert_allclose(jax.jit(slope)(kernel, x), jax.grad(loss)(kernel, x), atol=1e-12)


FAST = "b01f_01io->b01f"


def orders_of(function, *arguments):
    """The orders of axes of a compiled program's convolutions."""
    return set(re.findall(r"dim_labels=(\S+?)[,\s]", jax.jit(function).lower(*arguments).compile().as_text()))


def split(monkeypatch, cache):
    """Sum gradients by single rows in what is traced from now on."""
    monkeypatch.setattr(convolution, "CACHE", cache)
    monkeypatch.setattr(convolution, "BAND", 1)
    convolution._to_kernel.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_large_input_s_gradient_is_summed_by_bands_of_rows(case, x64, monkeypatch):
    dims, size, stride, pad = CASES[case]
    x, kernel = arrays(dims, size)
    split(monkeypatch, x.size - 1)

    def slope(conv):
        loss = lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, stride=stride, pad=pad)))  # noqa: E731
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(jax.grad(loss, argnums=1)(x, kernel))), argnums=(0, 1))

    assert "stablehlo.while" in jax.jit(slope(convolve)).lower(x, kernel).as_text()
    ours, reference = slope(convolve)(x, kernel), slope(theirs)(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), ours, reference)


@pytest.mark.slow
def test_bands_of_rows_sum_in_float32(monkeypatch):
    x = jnp.ones((1, 1024, 1, 1), jnp.bfloat16)
    split(monkeypatch, 1)
    slope = jax.grad(lambda kernel: convolve(x, kernel, stride=1, pad=(0, 0)).sum())(jnp.ones((1, 1, 1, 1), x.dtype))
    assert float(slope[0, 0, 0, 0]) == 1024  # bfloat16 counts to 256


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_loops_all_convolutions_are_in_the_order_of_the_fast_kernel(dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in arrays(2, 3))

    def orders(conv):
        """With a penalty of the gradient, and its own gradient: by both arguments, of both of the convolution's."""

        def body(total, x):
            run = lambda x, kernel, stride=1: jnp.sin(conv(x, kernel, stride=stride, pad=(1, 1)))  # noqa: E731
            slope = jax.grad(lambda x, kernel: run(jnp.tanh(x), kernel, 2).sum(), argnums=(0, 1))
            penalty = lambda *at: sum(jnp.sum(jnp.square(g)) for g in slope(*at))  # noqa: E731
            new = (
                slope(x, kernel),
                jax.jvp(partial(run, kernel=kernel), (x,), (x,)),
                jax.grad(penalty, (0, 1))(x, kernel),
            )
            return jax.tree.map(jnp.add, total, new), None

        both = jnp.zeros_like(x), jnp.zeros_like(kernel)
        zero = both, (jnp.zeros((2, 5, 6, 4), dtype),) * 2, both
        return orders_of(lambda xs: jax.lax.scan(body, zero, xs)[0], x[None])

    assert orders(convolve) == {FAST} < orders(theirs)


@pytest.mark.slow
def test_in_loops_gradients_of_layers_along_time_are_in_the_order_of_the_fast_kernel():
    layer, x = TemporalConv(groups=1), jnp.ones((1, 4, 2, 3, 5))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def slopes(params, xs):
        slope = jax.grad(lambda params, x: jnp.sum(layer.apply(params, x)), argnums=(0, 1))
        return jax.lax.map(lambda x: slope(params, x), xs)

    assert orders_of(slopes, params, x[None]) == {FAST}
