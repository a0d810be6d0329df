"""Operations counted by hand: products, convolutions with padding, strides and holes, loops."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.networks.convolution import convolve
from jaxdiff.plan import flops, hlo


def _both(function, *shapes):
    """The counts of the traced and of the compiled program."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = flops.of_jaxpr(jax.make_jaxpr(function)(*arguments))
    return traced, flops.count_flops(hlo.parse(jax.jit(function).lower(*arguments).compile().as_text()))


def test_matrix_product():
    assert _both(lambda a, b: a @ b, (7, 300), (300, 50)) == (2 * 7 * 300 * 50,) * 2


def test_batched_product():
    product = lambda a, b: jnp.einsum("bij,bkj->bik", a, b)  # noqa: E731
    assert _both(product, (3, 5, 64), (3, 9, 64)) == (2 * 3 * 5 * 9 * 64,) * 2


def _taps(size, kernel, stride, low, high, base, dilation):
    """Pairs of output and kernel positions that meet data, one by one."""
    data = [base * i for i in range(size)]
    span = base * (size - 1) + 1 + low + high
    outs = (span - dilation * (kernel - 1) - 1) // stride + 1
    return sum(stride * o + dilation * k - low in data for o, k in itertools.product(range(outs), range(kernel)))


@pytest.mark.parametrize(
    ("strides", "padding", "base", "dilation"),
    [
        ((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
        ((2, 2), ((1, 1), (0, 1)), (1, 1), (1, 1)),
        ((1, 1), ((2, 2), (1, 2)), (2, 2), (1, 1)),
        ((1, 2), ((2, 2), (0, 0)), (1, 1), (2, 1)),
    ],
)
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(strides, padding, base, dilation, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation=base, rhs_dilation=dilation, feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    axes = zip((9, 8), (3, 3), strides, padding, base, dilation, strict=True)
    resample_filter = math.prod(_taps(n, k, s, *pad, b, d) for n, k, s, pad, b, d in axes)
    counts = _both(convolve, (2, 9, 8, 8), (3, 3, 8 // groups, 12))
    assert counts == (2 * 2 * 12 * (8 // groups) * resample_filter,) * 2


def test_gradient_of_a_convolution_costs_twice_as_much_again():
    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.sin(y))

    forward = _both(loss, (2, 8, 8, 4), (3, 3, 4, 4))
    both = _both(jax.value_and_grad(loss, (0, 1)), (2, 8, 8, 4), (3, 3, 4, 4))
    assert both == tuple(3 * count for count in forward)


def test_the_networks_convolution_counts_as_xla_s():
    dimensions = ("NHWC", "HWIO", "NHWC")
    theirs = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)  # noqa: E731
    ours = lambda x, kernel: convolve(x, kernel, pad=(0, 0))  # noqa: E731

    def count(conv):
        gradient = jax.grad(lambda *at: jnp.sum(jnp.square(conv(*at))), argnums=(0, 1))
        return flops.of_jaxpr(jax.make_jaxpr(gradient)(jnp.ones((2, 9, 8, 3)), jnp.ones((3, 3, 3, 4))))

    assert count(ours) == count(theirs) == 3 * 2 * 2 * 7 * 6 * 4 * 3 * 9


def test_a_scan_counts_its_length_and_a_checkpoint_its_second_pass():
    def layers(w, x, remat):
        block = lambda x, w: (jnp.sin(jnp.sin(x @ w) @ w), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(jax.checkpoint(block) if remat else block, x, w)[0])

    one = 2 * 8 * 32 * 32
    assert _both(lambda w, x: layers(w, x, False), (6, 32, 32), (8, 32)) == (6 * 2 * one,) * 2
    plain = _both(jax.grad(lambda w, x: layers(w, x, False)), (6, 32, 32), (8, 32))
    again = _both(jax.grad(lambda w, x: layers(w, x, True)), (6, 32, 32), (8, 32))
    assert plain == (6 * 6 * one,) * 2
    assert again == (6 * 8 * one,) * 2


def test_a_branch_counts_the_dearer_one():
    def branch(w, x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert flops.of_jaxpr(jax.make_jaxpr(branch)(jnp.ones((4, 4)), jnp.ones((2, 4)))) == 2 * 2 * 2 * 4 * 4


# A batched product as TPUs write it: a convolution along the batch whose input has holes, and one without any window.
TPU = """HloModule tpu

ENTRY %main (a: bf16[6,5,64], b: bf16[6,9,64]) -> bf16[6,5,9] {
  %a = bf16[6,5,64]{2,1,0} parameter(0)
  %b = bf16[6,9,64]{2,1,0} parameter(1)
  %c = bf16[5,64]{1,0} parameter(2)
  %d = bf16[64,3]{1,0} parameter(3)
  %e = bf16[5,3]{1,0} convolution(%c, %d), dim_labels=bf_io->bf
  ROOT %f = bf16[6,5,9]{2,1,0} convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0oi->0bf
}
"""


def test_products_written_as_convolutions():
    assert flops.count_flops(hlo.parse(TPU)) == 2 * 5 * 64 * 3 + 2 * 6 * 5 * 9 * 64
