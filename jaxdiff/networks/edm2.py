"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, arXiv:2312.02696), config G of table 1.

Every layer keeps activations at unit magnitude in expectation: weights are normalized in the forward pass, there are no
biases and no group norms, and sums and concatenations are rescaled. Train it with `force_weight_norm` after each step
of the optimizer. A submodule's name is its key in the original checkpoints, see `stages`.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import layers, stages
from jaxdiff.networks.attention import attend
from jaxdiff.networks.initializers import param
from jaxdiff.networks.layers import Dropout, at_least_float32
from jaxdiff.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.networks.song_layers import check_resample_filter, one_hot, resample, split_qkv
from jaxdiff.networks.stages import Stage


class Block(nn.Module):
    """Residual block of the encoder or the decoder, with optional resampling and self-attention (fig. 21).

    Attributes:
        features: output channels.
        decoder: a block of the decoder, without pixel norm, and with the shortcut's convolution after the branch.
        direction: "up" or "down" doubles or halves the spatial axes; None keeps them.
        num_heads: of the attention; 0 is none.
        resample_filter: filter for resampling.
        balances: weight of the residual branch and of the attention in their sums.
        clip: bound of the output's activations; None: unbounded.
        dropout: rate; 0 is off.
        dtype: type of the computation.
    """

    features: int
    decoder: bool = False
    direction: str | None = None
    num_heads: int = 0
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    balances: tuple[float, float] = (0.3, 0.3)
    clip: float | None = 256.0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """Map x[B, *spatial, C] to [B, *spatial', features]; emb[B, E] is the embedding after its SiLU."""
        residual, attention = self.balances
        x = resample(x, self.resample_filter, self.direction)
        shortcut = x.shape[-1] != self.features
        if not self.decoder:
            x = self._conv("conv_skip", 1)(x) if shortcut else x
            x = normalize(x, (x.ndim - 1,))

        gain = param(self, "emb_gain", nn.initializers.zeros_init(), ())
        y = self._conv("conv_res0", 3)(mp_silu(x))
        scale = 1 + MPConv(self.features, dtype=emb.dtype, name="emb_linear")(emb, gain)
        y = mp_silu(y * layers.spatial(y, scale.astype(y.dtype)))
        if self.dropout:
            y = Dropout(self.dropout, name="dropout")(y)
        y = self._conv("conv_res1", 3)(y)
        if self.decoder and shortcut:
            x = self._conv("conv_skip", 1)(x)
        x = mp_sum(x, y, residual)

        if self.num_heads:
            q, k, v = split_qkv(self._conv("attn_qkv", 1, 3 * self.features)(x), self.num_heads)
            y = attend(*(normalize(a, (3,)) for a in (q, k, v))).reshape(x.shape)
            x = mp_sum(x, self._conv("attn_proj", 1)(y), attention)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)

    def _conv(self, name: str, size: int, features: int | None = None) -> MPConv:
        return MPConv(self.features if features is None else features, size, self.dtype, name=name)


class EDM2UNet(nn.Module):
    """EDM2's U-Net (Karras et al. 2024, fig. 21).

    Attributes:
        resolution: edge of the images; determines the blocks' names and the place of attention.
        widths: channels by level; level i works at resolution / 2^i.
        num_blocks: residual blocks per level of the encoder (one more in the decoder).
        attention: sizes with attention after each residual block.
        head_dim: channels per attention head.
        noise_dim: Fourier features of the noise; None: the first of widths.
        emb_dim: width of the embedding; None: the largest of widths.
        num_classes: classes of cond["label"]; None: off.
        label_balance: weight of the class against the noise in the embedding.
        concat_balance: weight of the skip connections against the main path.
        balances: weight of the residual branch and of the attention in a block.
        resample_filter: filter for resampling.
        clip: bound of the activations after each block; None: unbounded.
        dropout: rate within residual blocks while training.
        log_variance: Fourier features of the learned log-variance, see the function `log_variance`; None: off.
        out_channels: channels of the output; None: as many as x has.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32, the embedding, the normalization of weights and the
            output float32 at least.
    """

    resolution: int = 64
    widths: tuple[int, ...] = (192, 384, 576, 768)
    num_blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    head_dim: int = 64
    noise_dim: int | None = None
    emb_dim: int | None = None
    num_classes: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    balances: tuple[float, float] = (0.3, 0.3)
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    clip: float | None = 256.0
    dropout: float = 0.0
    log_variance: int | None = None
    out_channels: int | None = None
    remat: Remat = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, *spatial, C], one to three spatial axes, each a multiple of 2^(levels - 1).
            noise: float[B], log(sigma) / 4.
            cond: "label" int[B] where num_classes is set (num_classes is the null class).
            train: apply dropout; needs the random key "dropout".

        Returns:
            [B, *spatial, out_channels], float32 at least; zero at initialization.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, or a size can't be halved often enough.
        """
        cond = self._check(x, noise, cond)
        noise = noise.astype(at_least_float32(self.dtype))
        emb = self._embed(noise, cond)
        if self.log_variance is not None:
            _log_variance(noise, self.log_variance)  # for its parameters

        def block(h: Array, stage: Stage) -> Array:
            width, build = stage.width or h.shape[-1], rematted(Block, self.remat)
            return build(
                width,
                decoder=stage.at.startswith("dec"),
                direction=stage.direction,
                num_heads=width // self.head_dim if stage.attend else 0,
                resample_filter=self.resample_filter,
                balances=self.balances,
                clip=self.clip,
                dropout=self.dropout if train else 0.0,
                dtype=self.dtype,
                name=stage.name,
            )(h, emb)

        # A channel of ones replaces biases.
        h = jnp.concatenate([x.astype(self.dtype), jnp.ones((*x.shape[:-1], 1), self.dtype)], axis=-1)
        skips: list[Array] = []
        for stage in stages.encoder(self, x.ndim - 2):
            h = block(h, stage) if skips else MPConv(self.widths[0], 3, self.dtype, name=stage.name)(h)
            skips.append(h)
        for stage in stages.decoder(self, x.ndim - 2):
            h = h if stage.block is None else mp_cat(h, skips.pop(), self.concat_balance)
            h = block(h, stage)

        gain = param(self, "out_gain", nn.initializers.zeros_init(), ())
        channels = x.shape[-1] if self.out_channels is None else self.out_channels
        return MPConv(channels, 3, self.dtype, name="out_conv")(h, gain).astype(at_least_float32(self.dtype))

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> Array:
        features = self.widths[0] if self.noise_dim is None else self.noise_dim
        width = max(self.widths) if self.emb_dim is None else self.emb_dim
        emb = MPConv(width, dtype=noise.dtype, name="emb_noise")(MPFourier(features, name="emb_fourier")(noise))
        if self.num_classes is not None:
            label = one_hot(cond["label"], self.num_classes, noise.dtype) * math.sqrt(self.num_classes)
            emb = mp_sum(emb, MPConv(width, dtype=noise.dtype, name="emb_label")(label), self.label_balance)
        return mp_silu(emb)

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        check_resample_filter(self.resample_filter)
        return stages.check(self, x, noise, cond, head_dim=self.head_dim)


def log_variance(params: Mapping[str, Any], noise: Array) -> Array:
    """The log-variance u(noise) of the loss, learned with the network (Karras et al. 2024, eq. 21).

    `losses.denoising_loss` takes it as `log_variance`.

    Args:
        params: parameters of an `EDM2UNet` with log_variance set.
        noise: float[B], log(sigma) / 4.

    Returns:
        [B].
    """
    log_variance_params = {name: params[name] for name in ("logvar_fourier", "logvar_linear")}
    u = _LogVariance(log_variance_params["logvar_fourier"]["freqs"].shape[0]).apply(
        {"params": log_variance_params}, noise
    )
    return jnp.asarray(u)


def _log_variance(noise: Array, features: int) -> Array:
    h = MPFourier(features, name="logvar_fourier")(noise)
    return MPConv(1, dtype=noise.dtype, name="logvar_linear")(h)[:, 0]


class _LogVariance(nn.Module):
    features: int

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        return _log_variance(noise, self.features)
