"""U-ViT (Bao et al. 2022, arXiv:2209.12152): one transformer over all inputs as tokens, with long skip connections.

Parameters are named like those of the reference code (github.com/baofff/U-ViT).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import check_cond, cond_shapes
from jaxdiff.networks.attention import attend, split_heads, visible
from jaxdiff.networks.embed import ClassEmbedding, Sinusoidal
from jaxdiff.networks.initializers import param, table_init
from jaxdiff.networks.layers import Conv, at_least_float32, depth_to_space
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.networks.tokens import LayerNorm, check_patches, dense, scan_layers
from jaxdiff.sharding import constrain_tokens


class Block(nn.Module):
    """Pre-norm attention and feed-forward (Vaswani et al. 2017), after an optional skip connection (sec. 3.1).

    Attributes:
        num_heads: of the attention; divides the width.
        mlp_ratio: width of the feed-forward's inner layer over that of the tokens.
        dtype: type of the computation.
    """

    num_heads: int
    mlp_ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, skip: Array | None = None) -> tuple[Array, Array]:
        """Map tokens x[B, N, D], visible where mask[B, N] is True, and skip[B, N, D] to the same shape, twice."""
        x, width = constrain_tokens(x), x.shape[-1]
        if skip is not None:
            x = dense(width, self.dtype, "skip_linear")(jnp.concatenate([x, skip], axis=-1))
        qkv = dense(3 * width, self.dtype, "attn.qkv", bias=False)(LayerNorm(name="norm1")(x))
        q, k, v = (split_heads(a, self.num_heads) for a in jnp.split(qkv, 3, axis=-1))
        x = x + dense(width, self.dtype, "attn.proj")(attend(q, k, v, mask=mask).reshape(x.shape))
        h = dense(self.mlp_ratio * width, self.dtype, "mlp.fc1")(LayerNorm(name="norm2")(x))
        x = x + dense(width, self.dtype, "mlp.fc2")(jax.nn.gelu(h, approximate=False))
        return x, x


class UViT(nn.Module):
    """Transformer over tokens of noise level, condition and patches (Bao et al. 2022, sec. 3).

    Outputs of the first half of the blocks are skips of the second half, last to first, as in a U-Net. Positions are
    learned, so that parameters fit one size of images and one number of context tokens.

    Attributes:
        width: of the tokens.
        layers: blocks in both halves together; even. There is one more block between the halves.
        num_heads: of the attention; divides the width.
        patch_size: edge of a patch.
        mlp_ratio: width of the feed-forward's inner layer over that of the tokens.
        time: embedding of the noise level.
        num_classes: classes of cond["label"]; None: off.
        context_dim: D' of cond["tokens"]; None: off.
        conv: a convolution of size 3 on the assembled image as last layer.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        unroll: blocks per turn of the loops over them.
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, norms, noise embedding
            and output float32 at least.
    """

    width: int = 512
    layers: int = 12
    num_heads: int = 8
    patch_size: int = 2
    mlp_ratio: int = 4
    time: Sinusoidal = Sinusoidal()
    num_classes: int | None = None
    context_dim: int | None = None
    conv: bool = True
    remat: Remat = "dots"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, H, W, C], H and W multiples of patch_size.
            noise: float[B], the network's noise input.
            cond: as configured, "label" int[B] (num_classes is the null class) and "tokens" [B, L, D']
                with an optional "mask" bool[B, L] (True: visible).
            train: no effect; there is no dropout.

        Returns:
            like x.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, patches do not tile the image, or the parameters
                have positions for another number of tokens.
        """
        cond = self._check(x, noise, cond)
        patches = Conv(self.width, self.patch_size, self.patch_size, (0, 0), dtype=self.dtype, name="patch_embed.proj")(
            x
        )
        grid = patches.shape[1:-1]
        patches = patches.reshape(x.shape[0], -1, self.width)
        h, mask = self._tokens(patches, noise, cond)

        kind, half = (self.num_heads, self.mlp_ratio, self.dtype), self.layers // 2
        blocks = partial(scan_layers, Block, half, remat=self.remat, unroll=self.unroll)
        h, skips = blocks()(*kind, name="in_blocks.*")(h, mask)
        h, _ = rematted(Block, self.remat)(*kind, name="mid_block")(h, mask)
        h, _ = blocks(in_axes=(nn.broadcast, 0))(*kind, name="out_blocks.*")(h, mask, skips[::-1])

        h = LayerNorm(name="norm")(h[:, -patches.shape[1] :])
        h = dense(x.shape[-1] * self.patch_size ** len(grid), self.dtype, "decoder_pred")(h)
        h = depth_to_space(h.reshape(x.shape[0], *grid, -1), self.patch_size)
        if self.conv:
            h = Conv(x.shape[-1], dtype=self.dtype, name="final_layer")(h)
        return h.astype(at_least_float32(self.dtype))

    def _tokens(self, patches: Array, noise: Array, cond: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """Return the tokens of class, noise level, context and patches, with positions, and their mask."""
        high = at_least_float32(self.dtype)
        parts = [self.time(noise.astype(high), self.width)[:, None], patches]
        mask = None
        if self.context_dim is not None:
            context = cond["tokens"].astype(self.dtype)
            if "mask" in cond:
                context = visible(context, cond["mask"])
                before = jnp.ones((patches.shape[0], 1 + (self.num_classes is not None)), bool)
                mask = jnp.concatenate([before, cond["mask"], jnp.ones(patches.shape[:2], bool)], axis=1)
            parts.insert(1, dense(self.width, self.dtype, "context_embed")(context))
        if self.num_classes is not None:
            table = ClassEmbedding(self.num_classes, self.width, self.dtype, name="label_emb")
            parts.insert(0, table(cond["label"])[:, None])
        h = jnp.concatenate([part.astype(high) for part in parts], axis=1)
        self._check_positions(h.shape[1])
        positions = param(self, "pos_embed", _positions_init, (1, *h.shape[1:]))
        return (h + positions.astype(high)).astype(self.dtype), mask

    def _check_positions(self, count: int) -> None:
        if self.has_variable("params", "pos_embed"):
            expected: int = self.get_variable("params", "pos_embed").shape[1]
            if expected != count:
                raise ValueError(f"the parameters have positions for {expected} tokens, got {count}")

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        check_patches(x, self.patch_size)
        if self.layers % 2 or self.width % self.num_heads:
            raise ValueError(
                f"layers must be even and heads divide the width, got {self.layers} layers, {self.num_heads} heads and "
                f"width {self.width}"
            )
        shapes = cond_shapes(x, cond, num_classes=self.num_classes, context_dim=self.context_dim, mask=True)
        return check_cond(x, noise, cond, shapes)


def _positions_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 0.02 * table_init(key, shape, dtype)


def uvit_s_2_cifar10(**changes) -> UViT:
    """U-ViT-S/2 of Bao et al. 2022, table 1, for CIFAR-10: 44 million parameters at 32x32x3."""
    return UViT(**{"width": 512, "layers": 12, "num_heads": 8} | changes)


def uvit_h_2_imagenet256(**changes) -> UViT:
    """U-ViT-H/2 of Bao et al. 2022, table 1, for latents 32x32x4 of ImageNet: 501 million parameters."""
    size: dict[str, Any] = {"width": 1152, "layers": 28, "num_heads": 16, "num_classes": 1000, "conv": False}
    return UViT(**size | changes)
