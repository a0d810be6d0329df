"""LPIPS: parts that PyTorch does not show, and the published size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import trees
from jaxdiff.networks.lpips import LPIPS, _max_pool, _unit


def test_the_published_size_and_what_is_refused():
    image = jnp.zeros((2, 16, 19, 3), jnp.bfloat16)
    distance, variables = jax.eval_shape(LPIPS(jnp.bfloat16).init_with_output, jax.random.key(0), image, image)
    assert distance.shape == (2,) and distance.dtype == jnp.float32
    sizes = {name: a.size for name, a in trees.flatten(variables["params"]).items()}
    assert sum(size for name, size in sizes.items() if name.startswith("features/")) == 14_714_688
    assert sum(size for name, size in sizes.items() if name.startswith("lin")) == 64 + 128 + 256 + 512 + 512
    for a, b in (((2, 15, 16, 3),) * 2, ((2, 16, 16, 1),) * 2, ((2, 16, 16, 3), (1, 16, 16, 3))):
        with pytest.raises(ValueError, match="at least 16 x 16"):
            jax.eval_shape(LPIPS().init, jax.random.key(0), jnp.zeros(a), jnp.zeros(b))


@pytest.mark.slow
def test_a_place_without_activations_has_no_infinite_slope():
    h = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(_unit(h), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda h: jnp.square(_unit(h)).sum())(h)).all()


def test_pooling_drops_the_last_of_an_odd_axis():
    x = jnp.asarray([[1.0, 5, 9], [2, 0, 9]])[None, :, :, None]
    np.testing.assert_array_equal(_max_pool(x)[0, :, :, 0], [[5]])
