"""A residual MLP for vectors x[B, D], e.g. points of two-dimensional toy densities."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes
from jaxdiff.networks.embed import ClassEmbedding, EmbeddingMLP, Fourier, Sinusoidal, embed_guidance
from jaxdiff.networks.initializers import kernel_init, zeros_init
from jaxdiff.networks.layers import Dense, Dropout, at_least_float32
from jaxdiff.networks.tokens import LayerNorm


class MLP(nn.Module):
    """Residual MLP whose layers are scaled and shifted by the embedding of noise level and class.

    Attributes:
        width: units per layer.
        num_blocks: residual blocks of two layers.
        dropout: rate within the blocks while training.
        time: embedding of the noise level: `Sinusoidal` or `Fourier`.
        num_classes: classes of cond["label"]; None: no label.
        pooled_dim: D of cond["vector"] [B, D], e.g. of a text, which is embedded like the noise; None: off.
        guidance_dim: features of cond["guidance"] float[B], the scale of a distilled guidance, which are added to those
            of the noise; None: off. They start at zero, so that weights without them keep their function.
        next_noise: cond["next_noise"] is float[B], the noise input of the level at which a step ends, for few-step
            models (`jaxdiff.distill`). Its embedding starts at zero, so that weights without it keep their function.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, the embedding, the norms
            and the output float32 at least.
    """

    width: int = 128
    num_blocks: int = 3
    dropout: float = 0.0
    time: Sinusoidal | Fourier = Sinusoidal()
    num_classes: int | None = None
    pooled_dim: int | None = None
    guidance_dim: int | None = None
    next_noise: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, D].
            noise: float[B], the network's noise input.
            cond: "label" int[B] where num_classes is set (num_classes is the null class); "vector" [B, D] where
                pooled_dim is set; "guidance" and "next_noise" float[B] where these are set.
            train: apply dropout; needs the random key "dropout".

        Returns:
            [B, D], float32 at least, zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or x is not [B, D].
        """
        if x.ndim != 2:
            raise ValueError(f"x must be [B, D], got shape {x.shape}")
        shapes = cond_shapes(
            x,
            cond,
            num_classes=self.num_classes,
            pooled_dim=self.pooled_dim,
            guidance=self.guidance_dim is not None,
            next_noise=self.next_noise,
        )
        cond = check_cond(x, noise, cond, shapes)

        high = at_least_float32(self.dtype)
        features = self.time(noise.astype(high), self.width)
        if self.guidance_dim is not None:
            scale = cond["guidance"].astype(high)
            features = features + embed_guidance(scale, self.guidance_dim, self.width, "guidance_embedding")
        emb = EmbeddingMLP(self.width, self.dtype, name="time_embedding")(features)
        if self.next_noise:
            after = self.time(cond["next_noise"].astype(high), self.width)
            emb = emb + EmbeddingMLP(self.width, self.dtype, zero=True, name="next_time_embedding")(after)
        if self.num_classes is not None:
            emb = emb + ClassEmbedding(self.num_classes, self.width, self.dtype, name="class_embedding")(cond["label"])
        if self.pooled_dim is not None:
            emb = emb + EmbeddingMLP(self.width, self.dtype, name="add_embedding")(cond["vector"])
        emb = nn.silu(emb)

        def dense(features, name, init=kernel_init):
            return Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        def norm(h, name):
            return LayerNorm(1e-6, name=name)(h.astype(high))

        h = dense(self.width, "linear_in")(x)
        for i in range(self.num_blocks):
            scale, shift = jnp.split(dense(2 * self.width, f"blocks.{i}.emb_proj")(emb).astype(high), 2, axis=-1)
            y = nn.silu(norm(h, f"blocks.{i}.norm") * (1 + scale) + shift)
            y = nn.silu(dense(self.width, f"blocks.{i}.linear_1")(y))
            y = Dropout(self.dropout, name=f"blocks.{i}.dropout")(y, train=train)
            h = h + dense(self.width, f"blocks.{i}.linear_2", zeros_init)(y)
        return dense(x.shape[-1], "linear_out", zeros_init)(nn.silu(norm(h, "norm_out"))).astype(high)
