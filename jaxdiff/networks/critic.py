"""Critics of generated examples: of points, of images, and of the features of another network.

None of them normalizes activations, which would change the meaning of penalties of the critic's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes
from jaxdiff.networks.embed import ClassEmbedding, EmbeddingMLP, Fourier, Sinusoidal
from jaxdiff.networks.initializers import zeros_init
from jaxdiff.networks.layers import Conv, Dense, at_least_float32, spatial


class Embedding(nn.Module):
    """The embedding of the noise input, the class and a text's vector, [B, features]."""

    features: int
    time: Sinusoidal | Fourier
    num_classes: int | None
    pooled_dim: int | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Array:
        shapes = cond_shapes(x, cond, num_classes=self.num_classes, pooled_dim=self.pooled_dim)
        cond = check_cond(x, noise, cond, shapes)
        noise = noise.astype(at_least_float32(self.dtype))
        emb = EmbeddingMLP(self.features, self.dtype, name="time_embedding")(self.time(noise, self.features))
        if self.num_classes is not None:
            table = ClassEmbedding(self.num_classes, self.features, self.dtype, name="class_embedding")
            emb = emb + table(cond["label"])
        if self.pooled_dim is not None:
            emb = emb + Dense(self.features, dtype=self.dtype, name="pooled_embedding")(cond["vector"])
        return nn.silu(emb)


class MLPCritic(nn.Module):
    """A residual MLP for points x[B, D].

    Attributes:
        width: units per layer.
        num_blocks: residual blocks of two layers.
        time: embedding of the noise input.
        num_classes: classes of cond["label"]; None: no label.
        pooled_dim: features of cond["vector"], e.g. a text's; None: no vector.
        dtype: type of the computation; the logits are float32 at least.
    """

    width: int = 128
    num_blocks: int = 3
    time: Sinusoidal | Fourier = Sinusoidal()
    num_classes: int | None = None
    pooled_dim: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate D(x, noise, cond).

        Args:
            x: [B, D].
            noise: float[B]; zeros for clean examples.
            cond: "label" int[B] where num_classes is set, "vector" [B, pooled_dim] where pooled_dim is.
            train: has no effect.

        Returns:
            logits [B], zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or x is not [B, D].
        """
        if x.ndim != 2:
            raise ValueError(f"x must be [B, D], got shape {x.shape}")
        cond_fields = self.num_classes, self.pooled_dim
        emb = Embedding(self.width, self.time, *cond_fields, self.dtype, name="embedding")(x, noise, cond)
        dense = lambda name, features=self.width: Dense(features, dtype=self.dtype, name=name)  # noqa: E731
        h = dense("linear_in")(x)
        for i in range(self.num_blocks):
            y = dense(f"blocks.{i}.linear_1")(nn.silu(h)) + dense(f"blocks.{i}.emb_proj")(emb)
            h = h + dense(f"blocks.{i}.linear_2")(nn.silu(y))
        return _logits(nn.silu(h), self.dtype)


class ConvCritic(nn.Module):
    """A residual convolutional network for images, or other data x[B, *spatial, C].

    Attributes:
        channels: of each resolution, the finest first; each but the first halves the axes, rounding up.
        num_blocks: residual blocks of two convolutions at each resolution.
        time: embedding of the noise input.
        num_classes: classes of cond["label"]; None: no label.
        pooled_dim: features of cond["vector"], e.g. a text's; None: no vector.
        dtype: type of the computation; the logits are float32 at least.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    num_blocks: int = 1
    time: Sinusoidal | Fourier = Sinusoidal()
    num_classes: int | None = None
    pooled_dim: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate D(x, noise, cond).

        Args:
            x: [B, *spatial, C].
            noise: float[B]; zeros for clean examples.
            cond: "label" int[B] where num_classes is set, "vector" [B, pooled_dim] where pooled_dim is.
            train: has no effect.

        Returns:
            logits [B], zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or x has no spatial axis.
        """
        if not 3 <= x.ndim <= 5:
            raise ValueError(f"x must be [B, *spatial, C], one to three spatial axes, got shape {x.shape}")
        cond_fields = self.num_classes, self.pooled_dim
        emb = Embedding(self.channels[-1], self.time, *cond_fields, self.dtype, name="embedding")(x, noise, cond)
        h = Conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for level, width in enumerate(self.channels):
            if level > 0:
                h = Conv(width, stride=2, dtype=self.dtype, name=f"down.{level}")(nn.silu(h))
            for i in range(self.num_blocks):
                name = f"blocks.{level}.{i}"
                y = Conv(width, dtype=self.dtype, name=f"{name}.conv_1")(nn.silu(h))
                y = y + spatial(y, Dense(width, dtype=self.dtype, name=f"{name}.emb_proj")(emb))
                h = h + Conv(width, dtype=self.dtype, name=f"{name}.conv_2")(nn.silu(y))
        return _logits(nn.silu(h).reshape(h.shape[0], -1), self.dtype)


class FeatureCritic(nn.Module):
    """A head for each array of features, from `as_features` or a vision network (Sauer et al. 2023, ADD, sec. 3.2).

    Attributes:
        width: units of the hidden layer.
        num_classes: classes of cond["label"]; None: no label.
        dtype: type of the computation; the logits are float32 at least.
    """

    width: int = 64
    num_classes: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: Any, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """Evaluate D(h, cond).

        Args:
            h: tree of arrays [B, ..., C].
            noise: float[B], has no effect: the features may depend on it.
            cond: "label" int[B] where num_classes is set; other conditions, which the features had, have no effect.
            train: has no effect.

        Returns:
            logits [B, K] for K arrays: means over positions.

        Raises:
            ValueError: the label is missing.
        """
        cond = {} if cond is None else cond
        if self.num_classes is not None and "label" not in cond:
            raise ValueError("the critic is configured for the condition 'label', which is missing")
        logits = []
        for i, x in enumerate(jax.tree.leaves(h)):
            y = Dense(self.width, dtype=self.dtype, name=f"heads.{i}.linear_1")(x.reshape(x.shape[0], -1, x.shape[-1]))
            if self.num_classes is not None:
                table = ClassEmbedding(self.num_classes, self.width, self.dtype, name=f"heads.{i}.class_embedding")
                y = y + table(cond["label"])[:, None]
            logits.append(jnp.mean(Dense(1, dtype=self.dtype, name=f"heads.{i}.linear_2")(nn.silu(y)), axis=(1, 2)))
        return jnp.stack(logits, axis=1).astype(at_least_float32(self.dtype))


def _logits(h: Array, dtype: jnp.dtype) -> Array:
    return Dense(1, dtype=dtype, kernel_init=zeros_init, name="linear_out")(h)[:, 0].astype(at_least_float32(dtype))
