"""Parameters cast before a loop: which, and that no number changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.casts import cast_once


def _half(x):
    return x.astype(jnp.bfloat16)


def _scanned(params):
    return jax.lax.scan(lambda y, w: (y @ _half(w), None), jnp.ones((2, 3), jnp.bfloat16), params["stack"])[0]


@pytest.mark.parametrize(
    ("f", "cast"),
    [
        (lambda p: _half(p["a"]) + _half(p["b"]), {"a", "b"}),
        (lambda p: (_half(p["a"]), p["a"].sum()), set()),  # also used as it is
        (lambda p: (_half(p["a"]), p["a"].astype(jnp.float16)), set()),  # in two precisions
        (lambda p: (_half(p["a"]), p["a"]), set()),  # returned
        (lambda p: jax.jit(lambda a: _half(a))(p["b"]), {"b"}),
        (lambda p: jax.checkpoint(lambda a, b: _half(b) * 2)(p["a"], p["b"]), {"b"}),
        (_scanned, {"stack"}),
        (lambda p: jax.lax.scan(lambda y, _: (_half(y).astype(y.dtype), None), p["a"], None, length=2)[0], set()),
        (lambda p: p["integers"].astype(jnp.bfloat16), set()),
        (lambda p: p["half"].astype(jnp.float32), set()),  # no less precision
    ],
)
def test_what_is_used_after_one_cast_alone(f, cast):
    params = {
        "a": jnp.ones(3), "b": jnp.full(3, 0.1), "stack": jnp.full((2, 3, 3), 0.1),
        "integers": jnp.arange(3), "half": jnp.ones(3, jnp.bfloat16),
    }  # fmt: skip
    made = cast_once(f, params)
    assert {name for name in params if made[name].dtype != params[name].dtype} == cast
    assert all(made[name].dtype == jnp.bfloat16 for name in cast)
    jax.tree.map(np.testing.assert_array_equal, f(made), f(params))


@pytest.mark.slow
def test_a_network_gives_the_same_numbers_and_keeps_what_it_uses_in_float32():
    network = networks.DiT(width=16, layers=2, num_heads=2, patch_size=2, dtype=jnp.bfloat16, remat="dots")
    x, time = jnp.ones((1, 4, 4, 2)), jnp.ones(1)
    params = networks.init(network, jax.random.key(0), x)
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), params)
    apply = networks.as_apply(network)
    cast = cast_once(lambda params: apply(params, x, time), params)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(cast)}
    assert dtypes == {"bfloat16", "float32"}
    np.testing.assert_array_equal(apply(cast, x, time), apply(params, x, time))
    blocks = next(value for name, value in cast.items() if name.endswith(".*"))
    queries = [leaf for path, leaf in jax.tree.leaves_with_path(blocks) if "to_q" in str(path) and leaf.ndim > 2]
    assert queries and all(leaf.dtype == jnp.bfloat16 for leaf in queries)
