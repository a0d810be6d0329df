"""Merged tokens: copies are merged without an error, and the matching is that of a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks.attention import attend

RNG = np.random.default_rng(0)


def merged(q, k, v, **options):
    control = networks.merged_tokens(**options)
    return jax.jit(lambda q, k, v: control(lambda *a, mask: attend(*a, mask=mask), q, k, v, None, False))(q, k, v)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_copies_of_tokens_are_merged_without_an_error():
    """Each token four times, in any place: softmax has the same weights among those that are left."""
    q, k, v = (jnp.asarray(np.repeat(RNG.normal(size=(2, 6, 2, 5)), 4, axis=1)) for _ in range(3))
    np.testing.assert_allclose(merged(q, k, v, ratio=0.75, least=1), attend(q, k, v), atol=1e-12)
    apart = merged(q.at[:, 0].add(1.0), k.at[:, 0].add(1.0), v, ratio=0.75, least=1)
    assert np.abs(apart - attend(q.at[:, 0].add(1.0), k.at[:, 0].add(1.0), v)).max() > 1e-3
    # Too few tokens, or a ratio of 0, are attention itself.
    for options in ({"ratio": 0.75}, {"ratio": 0.0, "least": 1}):
        np.testing.assert_array_equal(merged(q, k, v, **options), jax.jit(attend)(q, k, v))


@pytest.mark.usefixtures("x64")
def test_the_matching_is_that_of_a_loop():
    q, k, v = RNG.normal(size=(3, 2, 10, 2, 3))
    y = merged(*map(jnp.asarray, (q, k, v)), ratio=0.3, stride=3, least=1)
    for b in range(2):
        stay, others = [0, 3, 6, 9], [1, 2, 4, 5, 7, 8]
        flat = k[b].reshape(10, -1) / np.linalg.norm(k[b].reshape(10, -1), axis=1, keepdims=True)
        near = [(max(flat[i] @ flat[j] for j in stay), i) for i in others]
        gone = {i: max(stay, key=lambda j: flat[i] @ flat[j]) for _, i in sorted(near, reverse=True)[:3]}
        groups = [[j, *(i for i in gone if gone[i] == j)] for j in stay] + [[i] for i in others if i not in gone]
        means = [np.stack([a[b][g].mean(0) for g in groups]) for a in (q, k, v)]
        short = attend(*(jnp.asarray(m)[None] for m in means))[0]
        for place, g in enumerate(groups):
            for i in g:
                np.testing.assert_allclose(y[b, i], short[place], atol=1e-12)


def test_mistakes():
    with pytest.raises(ValueError, match=r"ratio must lie between 0 and 0\.75, with a stride of 4, got 0\.8"):
        networks.merged_tokens(0.8)
    with pytest.raises(ValueError, match="stride must be at least 2"):
        networks.merged_tokens(0.0, stride=1)
