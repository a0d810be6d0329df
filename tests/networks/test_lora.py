"""Adapters on hand-made trees: the sum, its shapes, and what is differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import trees
from jaxdiff.networks import lora

KEY = jax.random.key(0)


def random(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tree():
    return {
        "blocks.*": {"to_q": {"kernel": random((3, 4, 6), 0), "bias": random((3, 6), 1)}},
        "conv": {"kernel": random((3, 3, 4, 5), 2)},
        "stack.*": {"conv": {"kernel": random((2, 3, 3, 4, 5), 3)}},
        "to_v": {"kernel": random((4, 6), 4)},
        "norm": {"scale": random((4,), 5)},
    }


def drawn(params, rank=2, targets="."):
    """Adapters with random numbers in both halves."""
    adapters = lora.init(KEY, params, rank, targets=targets)
    leaves, structure = jax.tree.flatten(adapters)
    return structure.unflatten([random(x.shape, 10 + i) for i, x in enumerate(leaves)])


@pytest.mark.slow
def test_start_changes_nothing_and_is_gaussian():
    params = {"to_q": {"kernel": jnp.ones((400, 30))}, "out": {"kernel": jnp.ones((3, 4))}}
    adapters = lora.init(KEY, params, 50)
    assert list(adapters) == ["to_q"]
    pair = adapters["to_q"]["kernel"]
    assert pair["down"].shape == (400, 50) and pair["up"].shape == (50, 30) and not pair["up"].any()
    # 20,000 numbers: their mean is known to 0.7 %, their deviation to 0.5 % of 400^-0.5.
    assert abs(pair["down"].mean() * 20) < 0.03 and abs(pair["down"].std() * 20 - 1) < 0.03
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters, 3.0), params)


def test_targets_are_patterns_or_predicates():
    shapes = jax.eval_shape(tree)
    assert {path for path, _ in lora.pairs(lora.init(KEY, shapes, 1))} == {
        ("blocks.*", "to_q", "kernel"),
        ("to_v", "kernel"),
    }
    only = lora.init(KEY, shapes, 1, targets=lambda module: module == "stack.*.conv")
    assert {path for path, _ in lora.pairs(only)} == {("stack.*", "conv", "kernel")}


@pytest.mark.slow
def test_merge_is_the_sum_of_outer_products():
    params = tree()
    adapters = drawn(params)
    merged = lora.merge(params, adapters, 0.5)
    f64 = {path: {k: np.asarray(v, np.float64) for k, v in pair.items()} for path, pair in lora.pairs(adapters)}
    pair = f64["conv", "kernel"]
    want = np.zeros((3, 3, 4, 5))
    for r in range(2):
        want += 0.5 * pair["down"][..., r, None] * pair["up"][r]
    np.testing.assert_allclose(merged["conv"]["kernel"] - params["conv"]["kernel"], want, atol=1e-6)
    for path in (("blocks.*", "to_q"), ("stack.*", "conv")):
        pair = f64[(*path, "kernel")]
        old, new = (t[path[0]][path[1]]["kernel"] for t in (params, merged))
        for layer in range(len(old)):
            want = 0.5 * pair["down"][layer] @ pair["up"][layer]
            np.testing.assert_allclose(new[layer] - old[layer], want, atol=1e-6)
    for path in (("blocks.*", "to_q", "bias"), ("norm", "scale")):
        old, new = params, merged
        for segment in path:
            old, new = old[segment], new[segment]
        assert new is old
    back = lora.unmerge(merged, adapters, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)


@pytest.mark.slow
def test_dtypes():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree())
    merged = lora.merge(params, drawn(params))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    # The network itself is given the sum unrounded: a small adapter would be lost in bfloat16.
    pair = {"down": jnp.full((1, 1), 1e-3), "up": jnp.ones((1, 1))}
    one = {"to_q": {"kernel": jnp.ones((1, 1), jnp.bfloat16)}}
    got = lora.adapted(lambda p: p["to_q"]["kernel"])(({"to_q": {"kernel": pair}}, one))
    np.testing.assert_allclose(got, 1.001, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_are_of_the_adapters_alone():
    params = {"to_q": {"kernel": random((4, 3), 0)}}
    adapters = drawn(params, rank=1)
    x = random((5, 4), 1)
    loss = lambda trained: jnp.sum(lora.adapted(lambda p: x @ p["to_q"]["kernel"], 2.0)(trained) ** 2)  # noqa: E731
    ours, base = jax.grad(loss)((adapters, params))
    assert not base["to_q"]["kernel"].any()
    pair = adapters["to_q"]["kernel"]
    y = x @ (params["to_q"]["kernel"] + 2.0 * pair["down"] @ pair["up"])
    whole = x.T @ (2 * y)  # the gradient by the kernel
    np.testing.assert_allclose(ours["to_q"]["kernel"]["down"], 2.0 * whole @ pair["up"].T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours["to_q"]["kernel"]["up"], 2.0 * pair["down"].T @ whole, rtol=1e-4, atol=1e-4)


def test_refusals():
    params = tree()
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lora.init(KEY, params, 0)
    with pytest.raises(ValueError, match="none of the 4 kernels"):
        lora.init(KEY, params, 1, targets="nothing")
    pair = {"down": jnp.ones((4, 1)), "up": jnp.ones((1, 6))}
    with pytest.raises(ValueError, match="not there: to_k/kernel"):
        lora.merge(params, {"to_k": {"kernel": pair}})
    with pytest.raises(ValueError, match=r"is \(4, 6\), not \(3, 3, 4, 5\)"):
        lora.merge(params, {"conv": {"kernel": pair}})


@pytest.mark.slow
def test_a_change_of_any_rank():
    params = tree()
    change = {path: random(leaf.shape, 30 + i) for i, (path, leaf) in enumerate(kernels(params))}
    adapters: dict = {}
    for path, value in change.items():
        trees.put(adapters, path, {"delta": value})
    merged, beside = lora.merge(params, adapters, 0.5), lora.adapted(lambda p: p, 0.5)((adapters, params))
    for path, leaf in kernels(params):
        for got in (merged, beside):
            np.testing.assert_allclose(dict(kernels(got))[path], leaf + 0.5 * change[path], atol=1e-6)
    back = lora.unmerge(merged, adapters, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)
    with pytest.raises(ValueError, match=r"is \(4, 5\), not \(4, 6\)"):
        lora.merge(params, {"to_v": {"kernel": {"delta": jnp.zeros((4, 5))}}})
    with pytest.raises(ValueError, match="nor a 'delta'"):
        lora.merge(params, {"to_v": {"kernel": jnp.zeros((4, 6))}})
    missing = {f"m{i:02}": {"kernel": {"delta": jnp.zeros(1)}} for i in range(23)}
    with pytest.raises(ValueError, match=r"not there: m00/kernel, .*, m19/kernel and 3 more \(23 in all\)"):
        lora.merge(params, missing)


def kernels(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]
    return [(path, leaf) for path, leaf in found if path[-1] == "kernel"]
