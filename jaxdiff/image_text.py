"""Embeddings of pictures and texts in one space (CLIP: Radford et al. 2021, arXiv:2103.00020).

The model is small, and trained from nothing: a few strided convolutions for pictures, a transformer over words for
their captions, both onto the unit sphere, by a contrastive loss of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import text
from jaxdiff.networks.classifier import Classifier
from jaxdiff.noise import check_key, normal_like
from jaxdiff.types import Batch, Loss, Metrics, Params

__all__ = ["ImageText", "contrastive_loss", "info_nce", "make"]

MAX_SCALE = 100.0  # of the logits
NOISE = 0.3  # largest standard deviation of the noise on pictures in training: samples of a model are no clean pictures


class ImageText(NamedTuple):
    """An image encoder and a text encoder; inner products of their unit vectors say what belongs together.

    Attributes:
        init: key -> parameters.
        image: (parameters, pictures [B, H, W, C] in [-1, 1]; key=None, for dropout) -> unit vectors [B, width].
        text: (parameters, ids [B, L], mask [B, L]) -> unit vectors [B, width].
        vocabulary: the words that it knows.
        shape: of a picture.
        width: length of a vector.
    """

    init: Callable[[Array], Params]
    image: Callable[..., Array]
    text: Callable[[Params, Array, Array], Array]
    vocabulary: text.Vocabulary
    shape: tuple[int, ...]
    width: int


def make(
    vocabulary: text.Vocabulary,
    shape: Sequence[int],
    *,
    width: int = 64,
    channels: Sequence[int] = (48, 128, 192),
    dtype: Any = jnp.float32,
) -> ImageText:
    """Make a model.

    Args:
        vocabulary: the words of the captions, and their length in tokens.
        shape: of a picture, (height, width, channels).
        width: length of a vector.
        channels: of the image encoder's convolutions, each of which halves the picture.
        dtype: of the text encoder's computation.
    """
    of_images = Classifier(width, tuple(channels), features=4 * width)  # its logits are the vector
    of_texts = text.Bert(
        vocab_size=vocabulary.size, width=width, layers=2, num_heads=4, mlp_dim=4 * width,
        max_length=vocabulary.length, num_segments=1, dtype=dtype,
    )  # fmt: skip
    encode_text = text.as_apply(of_texts)

    def init(key: Array) -> Params:
        image_key, text_key, key = jax.random.split(key, 3)
        pictures = jnp.zeros((1, *shape))
        return {
            "image": jax.jit(of_images.init)(image_key, pictures)["params"],
            "text": text.init(of_texts, text_key),
            "projection": jax.random.normal(key, (width, width)) / math.sqrt(width),
            "log_scale": jnp.full((), -math.log(0.07)),  # as Radford et al. begin
        }

    def image(params: Params, x: Array, *, key: Array | None = None) -> Array:
        rngs = None if key is None else {"dropout": key}
        vector, _ = of_images.apply({"params": params["image"]}, x, train=key is not None, rngs=rngs)
        return _unit(vector)

    def of_text(params: Params, ids: Array, mask: Array) -> Array:
        pooled = encode_text(params["text"], ids, mask).pooled
        assert pooled is not None
        return _unit(pooled @ params["projection"].astype(pooled.dtype))

    return ImageText(init, image, of_text, vocabulary, tuple(shape), width)


def info_nce(a: Array, b: Array, log_scale: Array) -> tuple[Array, Metrics]:
    """The symmetric contrastive loss of pairs (InfoNCE: van den Oord et al. 2018, arXiv:1807.03748; CLIP).

    The target of a_i is b_i and no other, as CLIP's is, also where another pair of the batch is the same: m equal pairs
    cost log(m) at least, which no parameters change.

    Args:
        a: unit vectors [B, D].
        b: unit vectors [B, D] of the same things.
        log_scale: logarithm of the logits' scale, the inverse temperature; the scale is at most 100.

    Returns:
        (the mean of the cross entropies of finding b_i by a_i and a_i by b_i; metrics "accuracy", the mean share of
        pairs that are found, and "scale").
    """
    scale = jnp.exp(jnp.minimum(log_scale, math.log(MAX_SCALE)))
    logits = scale * (a @ b.T)
    own = jnp.diagonal(logits)
    losses = [jnp.mean(jax.nn.logsumexp(logits, axis) - own) for axis in (0, 1)]
    found = [jnp.mean(jnp.argmax(logits, axis) == jnp.arange(len(a))) for axis in (0, 1)]
    return sum(losses) / 2, {"accuracy": sum(found) / 2, "scale": scale}  # type: ignore[return-value, dict-item]


def contrastive_loss(model: ImageText, *, noise: float = NOISE) -> Loss:
    """The contrastive loss of pictures and the tokens of their captions.

    With gradient accumulation a picture is compared with the captions of its own microbatch.

    Args:
        model: the model.
        noise: largest standard deviation of the noise on pictures; each has its own, uniform from 0.

    Returns:
        the loss of a batch of "x", "ids" and "mask"; metrics as those of `info_nce`.
    """

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        check_key(key)
        level_key, noise_key, dropout_key = jax.random.split(key, 3)
        x = batch["x"]
        level = jax.random.uniform(level_key, (len(x), *[1] * (x.ndim - 1)), x.dtype, maxval=noise)
        image = model.image(params, x + level * normal_like(noise_key, x), key=dropout_key)
        return info_nce(image, model.text(params, batch["ids"], batch["mask"]), params["log_scale"])

    return loss


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    # The square root has no derivative at zero.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
