"""The critic of patches: its layers, and that it has no state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks, trees


@pytest.mark.slow
def test_layers_are_the_references_and_images_do_not_meet():
    critic = networks.PatchCritic(channels=4, layers=2, groups=4)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    params = networks.init(critic, jax.random.key(1), x)
    names = {name: a.shape for name, a in trees.flatten(params).items()}
    assert names == {
        "main.0/bias": (4,), "main.0/kernel": (4, 4, 1, 4), "main.2/kernel": (4, 4, 4, 8), "main.3/bias": (8,),
        "main.3/scale": (8,), "main.5/kernel": (4, 4, 8, 16), "main.6/bias": (16,), "main.6/scale": (16,),
        "main.8/bias": (1,), "main.8/kernel": (4, 4, 16, 1),
    }  # fmt: skip
    drawn = np.concatenate([np.ravel(a) for name, a in trees.flatten(params).items() if name.endswith("kernel")])
    assert abs(drawn.std() - 0.02) < 0.001 and abs(drawn.mean()) < 0.001
    apply = networks.as_apply(critic)
    logits = apply(params, jnp.concatenate([x, -x]), jnp.zeros(2))
    assert logits.shape == (2, 2, 2)
    np.testing.assert_allclose(logits[:1], apply(params, x, None), atol=1e-6)  # whatever else is in the batch


def test_small_images_are_refused():
    critic = networks.PatchCritic(channels=16, layers=2)
    shapes = jax.eval_shape(critic.init_with_output, jax.random.key(0), jnp.zeros((3, 12, 15, 3)))
    assert shapes[0].shape == (3, 1, 1)
    for shape in ((3, 11, 15, 3), (3, 12, 12)):
        with pytest.raises(ValueError, match="at least 12 x 12"):
            jax.eval_shape(critic.init, jax.random.key(0), jnp.zeros(shape))
