"""Kernels against the plain formula: values, both modes of derivatives, second ones, `vmap`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.kernels import blockwise, fused

SCALE = 0.4


def plain(q, k, v, where=None):
    logits = SCALE * jnp.einsum("bnhd,blhd->bhnl", q, k)
    logits = logits if where is None else jnp.where(where, logits, -1e9)
    return jnp.einsum("bhnl,blhd->bnhd", jax.nn.softmax(logits), v)


@jax.custom_vjp
def reverse_only(q, k, v, *masks):
    """Like cuDNN's kernel: it has a backward pass of its own, and no forward mode."""
    return plain(q, k, v, *masks)


reverse_only.defvjp(
    lambda q, k, v, *masks: (plain(q, k, v, *masks), (q, k, v, masks)),
    lambda seen, ct: (*jax.vjp(lambda *qkv: plain(*qkv, *seen[3]), *seen[:3])[1](ct), *(None for _ in seen[3])),
)


def inputs(lead=()):
    rng = np.random.default_rng(0)
    qkv = tuple(jnp.asarray(rng.standard_normal((*lead, 2, n, 3, 4))) for n in (5, 7, 7))
    return qkv, jnp.asarray(np.arange(7) < np.array([[7], [4]]))


def derivatives(f, qkv):
    """Value, gradient, forward derivative, and the gradient of a forward derivative."""
    move = tuple(jnp.cos(x) for x in qkv)
    total = lambda *qkv: jnp.sin(f(*qkv)).sum()  # noqa: E731
    forward = lambda *qkv: jax.jvp(total, qkv, move)[1]  # noqa: E731
    return f(*qkv), jax.grad(total, (0, 1, 2))(*qkv), forward(*qkv), jax.grad(forward, (0, 1, 2))(*qkv)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


CASES = {
    "blockwise": lambda *args, mask: blockwise(*args, mask, scale=SCALE, block=3),
    "fused": lambda *args, mask: fused(reverse_only, plain)(*args, *(() if mask is None else (mask[:, None, None],))),
}


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_and_all_their_derivatives_are_the_formula_s(name, masked, x64):
    qkv, mask = inputs()
    mask = mask if masked else None
    where = None if mask is None else mask[:, None, None]
    got = jax.jit(partial(derivatives, partial(CASES[name], mask=mask)))(qkv)
    close(got, jax.jit(partial(derivatives, partial(plain, where=where)))(qkv))


def test_per_example_gradients_of_a_fused_kernel(x64):
    qkv, _ = inputs((6,))
    gradient = lambda f: jax.vmap(jax.grad(lambda q, k, v: jnp.sin(f(q, k, v)).sum(), (0, 2)), (0, None, 0))  # noqa: E731
    args = qkv[0], qkv[1][0], qkv[2]
    close(jax.jit(gradient(fused(reverse_only, plain)))(*args), jax.jit(gradient(plain))(*args))


def test_a_fused_kernel_runs_its_own_backward_pass():
    qkv, _ = inputs()
    wrong = jax.custom_vjp(lambda q, k, v: plain(q, k, v))
    wrong.defvjp(lambda q, k, v: (plain(q, k, v), None), lambda _, ct: (jnp.full_like(qkv[0], 7), None, None))
    grad = jax.grad(lambda q: fused(wrong, plain)(q, *qkv[1:]).sum())(qkv[0])
    np.testing.assert_array_equal(grad, 7)


def test_blockwise_never_holds_all_logits_and_hides_what_is_masked():
    q, k, v = (jnp.ones((1, n, 1, 8), jnp.bfloat16) for n in (64, 4096, 4096))
    run = jax.jit(jax.grad(lambda q, k, v: blockwise(q, k, v, None, scale=1.0, block=128).astype(jnp.float32).sum()))
    assert run.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes < 64 * 4096 * 4
    hidden = jnp.zeros((1, 4096), bool)
    np.testing.assert_array_equal(blockwise(q, k, v, hidden, scale=1.0, block=128).astype(jnp.float32), 0)
    last = hidden.at[0, -1].set(True)
    y = blockwise(q, k, v.at[0, -1].set(3), last, scale=1.0, block=128)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), 3)
