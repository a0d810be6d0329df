"""Random parameters, drawn by numpy: a network's own initialization takes seconds to compile."""

import jax
import numpy as np


def random_weights(init, seed):
    """Parameters of the shapes of init(key), none of which is 0: scales are about 1, kernels keep a variance."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        spread = np.sqrt(np.prod(a.shape[:-1])) if len(a.shape) > 1 else 20
        return ((path[-1].key == "scale") + rng.standard_normal(a.shape) / spread).astype(a.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))
