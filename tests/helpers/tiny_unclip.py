"""An image-text model without a network: pictures [1, 1, 4] whose vector is their direction, and texts of one token."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import text, unclip
from jaxdiff.data import Pairs
from jaxdiff.image_text import ImageText

D = 4
RNG = np.random.default_rng(0)
PICTURES = RNG.normal(size=(3, 1, 1, D)).astype(np.float32)
# Of a decoder.
TRAINED = {"tokens": {"kernel": RNG.normal(size=(D, 4 * D)).astype(np.float32), "bias": np.ones(4 * D, np.float32)}}


def unit(x):
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))


def embedder():
    """The model, which multiplies its vectors by its parameter, a 1."""
    model = ImageText(
        init=lambda key: jnp.ones(()),
        image=lambda params, x: params * unit(x.reshape(len(x), D)),
        text=lambda params, ids, mask: params * jax.nn.one_hot(ids[:, -1] - 2, D),
        vocabulary=text.Vocabulary(("a", "b", "c", "d"), 2),
        shape=(1, 1, D),
        width=D,
    )
    return unclip.Embedder(model, jnp.ones(()))


def pairs():
    """Three pairs, of which the last is held out."""
    return Pairs(("a", "b", "c"), 1, lambda numbers: PICTURES[numbers])
