"""A small convolutional classifier of samples, whose hidden layer provides their features."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from jaxdiff.networks.layers import Dropout, at_least_float32


class Classifier(nn.Module):
    """Three strided convolutions and a hidden layer, for images of about 28 x 28.

    The strides make it fast on a CPU: all but the first layer work on at most 14 x 14 positions.

    Attributes:
        num_classes: number of logits.
        channels: of the convolutions, each of which halves the image.
        features: width of the hidden layer.
        dropout: rate before and after the hidden layer, in training.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 96, 128)
    features: int = 128
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Classify images.

        Args:
            x: [B, H, W, C] in [-1, 1].
            train: drop units at random; needs the rng "dropout".

        Returns:
            (logits [B, num_classes], features [B, features]), float32 at least.

        Raises:
            ValueError: x has another rank.
        """
        if x.ndim != 4:
            raise ValueError(f"the classifier takes images [B, H, W, C], got shape {x.shape}")
        for i, width in enumerate(self.channels):
            x = nn.Conv(width, (5, 5) if i == 0 else (3, 3), strides=2, name=f"conv_{i}")(x)
            if i > 0:
                x = nn.LayerNorm(epsilon=1e-6, name=f"norm_{i}")(x)
            x = nn.gelu(x)
        # Flattened, not averaged over positions: the classes differ by the outlines of objects.
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.dropout, name="dropout_0")(x, train=train)
        hidden = nn.gelu(nn.Dense(self.features, name="hidden")(x))
        x = Dropout(self.dropout, name="dropout_1")(hidden, train=train)
        logits = nn.Dense(self.num_classes, name="head")(x)
        return logits.astype(at_least_float32(logits.dtype)), hidden.astype(at_least_float32(hidden.dtype))
