"""The U-Nets of EDM (Karras et al. 2022, arXiv:2206.00364, app. F.3): DDPM++ and NCSN++ (Song et al. 2021), and ADM.

A submodule's name is its key in the original checkpoints, which contains the size at which the block works, e.g.
`enc.32x32_block0`. So the networks have a resolution, although they also run on images of other sizes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import stages
from jaxdiff.networks.apply import split_output
from jaxdiff.networks.embed import Sinusoidal
from jaxdiff.networks.initializers import kernel_init, table_init, zeros_init
from jaxdiff.networks.layers import Conv, Dense, at_least_float32, concatenate_channels
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.networks.song_layers import (
    Block,
    Frequencies,
    check_resample_filter,
    halve,
    norm,
    one_hot,
    resample,
    scaled,
)
from jaxdiff.networks.stages import Stage


class _UNet(nn.Module):
    """Base of DDPM++, NCSN++ and ADM; see `SongUNet` for the attributes."""

    resolution: int = 32
    model_channels: int = 128
    widths: tuple[int, ...] = (256, 256, 256)
    num_blocks: int = 4
    attention: tuple[int, ...] = (16,)
    emb_mult: int = 4
    dropout: float = 0.0
    num_classes: int | None = None
    augment_dim: int | None = None
    out_channels: int | None = None
    remat: Remat = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array | tuple[Array, Array]:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, *spatial, C], one to three spatial axes, each a multiple of 2^(levels - 1).
            noise: float[B], the network's noise input; EDM's is log(sigma) / 4.
            cond: as configured, "label" int[B] (num_classes is the null class) and the optional
                "augment" [B, augment_dim], the augmentation of the images (Karras et al. 2022, app. F.2).
            train: apply dropout; needs the random key "dropout".

        Returns:
            [B, *spatial, out_channels], float32 at least; `DhariwalUNet`: a pair of them with learned_variance.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, a size can't be halved often enough, or an
                option is unknown.
        """
        cond = self._check(x, noise, cond)
        emb = self._embed(noise.astype(at_least_float32(self.dtype)), cond)

        def block(h: Array, stage: Stage, *, attend: bool) -> Array:
            width, build = stage.width or h.shape[-1], rematted(Block, self.remat)
            options = {"dropout": self.dropout if train else 0.0} | self._block_options(width, stage.direction, attend)
            return build(width, dtype=self.dtype, name=stage.name, **options)(h, emb)

        h = aux = x.astype(self.dtype)
        skips: list[Array] = []
        for stage in stages.encoder(self, x.ndim - 2):
            h = block(h, stage, attend=stage.attend) if skips else self._conv(self._stem(), stage.name)(h)
            if stage.direction == "down":
                h, aux = self._join_input(h, aux, stage.at)
            skips.append(h)

        out: Array | None = None
        channels = x.shape[-1] if self.out_channels is None else self.out_channels
        for stage in stages.decoder(self, x.ndim - 2):
            attend = stage.attend
            if stage.block is not None:
                h, attend = concatenate_channels(h, skips.pop()), attend and self._attends(stage.block)
            h = block(h, stage, attend=attend)
            if stage.block == self.num_blocks:
                out = self._aux_output(h, out, stage, channels)
        return self._output(jnp.asarray(out, at_least_float32(self.dtype)))

    def _block_options(self, width: int, direction: str | None, attend: bool) -> dict[str, Any]:
        """Options of a block."""
        raise NotImplementedError

    def _head_dim(self) -> int:
        """The divisor of the channels at levels with attention."""
        return 1

    def _stem(self) -> int:
        """Channels of the first convolution."""
        raise NotImplementedError

    def _attends(self, index: int) -> bool:
        """Return whether a block of the decoder, at a level with attention, has attention."""
        raise NotImplementedError

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> Array:
        raise NotImplementedError

    def _join_input(self, h: Array, aux: Array, at: str) -> tuple[Array, Array]:
        """Add the downsampled image to the encoder."""
        del at
        return h, aux

    def _aux_output(self, h: Array, out: Array | None, stage: Stage, channels: int) -> Array | None:
        """Return the image after a level of the decoder, given that of the previous level."""
        raise NotImplementedError

    def _output(self, out: Array) -> Array | tuple[Array, Array]:
        return out

    def _conv(self, features: int, name: str, **options) -> Conv:
        return Conv(features, dtype=self.dtype, name=name, **options)

    def _dense(self, features: int, name: str, **options) -> Dense:
        return Dense(features, dtype=at_least_float32(self.dtype), name=name, **{"kernel_init": kernel_init} | options)

    def _mapped(self, emb: Array) -> Array:
        """Return the embedding after two layers, before the last activation."""
        emb = nn.silu(self._dense(self.model_channels * self.emb_mult, "map_layer0")(emb))
        return self._dense(self.model_channels * self.emb_mult, "map_layer1")(emb)

    def _augmented(self, emb: Array, cond: Mapping[str, Array], init: Callable[..., Array]) -> Array:
        """Add the embedding of the augmentation; no augmentation is a vector of zeros."""
        if self.augment_dim is None:
            return emb
        none = jnp.zeros((emb.shape[0], self.augment_dim), emb.dtype)
        return emb + self._dense(emb.shape[-1], "map_augment", bias=False, kernel_init=init)(
            cond.get("augment", none).astype(emb.dtype)
        )

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        return stages.check(self, x, noise, cond, head_dim=self._head_dim(), augment_dim=self.augment_dim)


class SongUNet(_UNet):
    """DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456, app. H, as in Karras et al. 2022, app. F.3).

    Attributes:
        resolution: edge of the images; determines the blocks' names and the place of attention.
        model_channels: channels of the first convolution, and the unit of emb_mult and noise_mult.
        widths: channels by level; level i works at resolution / 2^i.
        num_blocks: residual blocks per level of the encoder (one more in the decoder).
        attention: sizes with attention after each residual block of the encoder, and after the last one of the decoder.
        emb_mult: width of the embedding over model_channels.
        dropout: rate within residual blocks while training.
        num_classes: classes of cond["label"]; None: off.
        augment_dim: length of cond["augment"]; None: off.
        out_channels: channels of the output; None: as many as x has.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32, the embeddings and the output float32 at least.
        embedding: "positional" (DDPM++) or "fourier" (NCSN++).
        noise_mult: number of the noise's features over model_channels.
        encoder: "standard" (DDPM++); "residual" (NCSN++) and "skip" add the downsampled image to each level.
        decoder: "standard"; "skip" sums images from all levels.
        resample_filter: filter for resampling, (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
    """

    embedding: str = "positional"
    noise_mult: int = 1
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[float, ...] = (1.0, 1.0)

    def _block_options(self, width: int, direction: str | None, attend: bool) -> dict[str, Any]:
        del width
        gains = 1e-5, 0.2**0.5
        fixed = {"adaptive": False, "project": True, "skip_scale": 0.5**0.5, "gains": gains, "eps": 1e-6}
        return fixed | {"direction": direction, "num_heads": int(attend), "resample_filter": self.resample_filter}

    def _stem(self) -> int:
        return self.model_channels

    def _attends(self, index: int) -> bool:
        return index == self.num_blocks

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> Array:
        dim = self.model_channels * self.noise_mult
        positional = Sinusoidal(cos_first=False, shift=1)
        emb = positional(noise, dim) if self.embedding == "positional" else Frequencies(name="map_noise")(noise, dim)
        if self.num_classes is not None:
            label = one_hot(cond["label"], self.num_classes, emb.dtype) * self.num_classes**0.5
            emb = emb + self._dense(dim, "map_label")(label)
        return nn.silu(self._mapped(self._augmented(emb, cond, kernel_init)))

    def _join_input(self, h: Array, aux: Array, at: str) -> tuple[Array, Array]:
        if self.encoder == "skip":
            aux = resample(aux, self.resample_filter, "down")
            h = h + self._conv(h.shape[-1], f"{at}_aux_skip", size=1)(aux)
        if self.encoder == "residual":
            # The convolution also pads for the filter after it, which then needs no padding.
            pad = (len(self.resample_filter) - 1) // 2
            aux = self._conv(h.shape[-1], f"{at}_aux_residual", pad=(1 + pad, 1 + pad))(aux)
            for axis in range(1, aux.ndim - 1):
                aux = halve(aux, self.resample_filter, axis)
            h = aux = (h + aux) * 0.5**0.5
        return h, aux

    def _aux_output(self, h: Array, out: Array | None, stage: Stage, channels: int) -> Array | None:
        if stage.level > 0 and self.decoder == "standard":
            return None
        h = nn.silu(norm(f"{stage.at}_aux_norm", h, 1e-6)(h))
        h = self._conv(channels, f"{stage.at}_aux_conv", draw=scaled(1e-5))(h)
        return h if out is None else h + resample(out, self.resample_filter, "up")

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Array] | None) -> Mapping[str, Array]:
        known = {
            "embedding": ("positional", "fourier"),
            "encoder": ("standard", "residual", "skip"),
            "decoder": ("standard", "skip"),
        }
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_resample_filter(self.resample_filter)
        return super()._check(x, noise, cond)


class DhariwalUNet(_UNet):
    """ADM (Dhariwal and Nichol 2021, arXiv:2105.05233, as in Karras et al. 2022, app. F.3).

    Attributes, in addition to those of `SongUNet`:
        head_dim: channels per attention head.
        learned_variance: return (F, frac), as `UNet` does.
    """

    head_dim: int = 64
    learned_variance: bool = False

    def _block_options(self, width: int, direction: str | None, attend: bool) -> dict[str, Any]:
        return {"direction": direction, "num_heads": width // self.head_dim if attend else 0}

    def _head_dim(self) -> int:
        return self.head_dim

    def _stem(self) -> int:
        return self.widths[0]

    def _attends(self, index: int) -> bool:
        del index
        return True

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> Array:
        emb = self._mapped(self._augmented(Sinusoidal()(noise, self.model_channels), cond, zeros_init))
        if self.num_classes is not None:
            label = one_hot(cond["label"], self.num_classes, emb.dtype)
            emb = emb + self._dense(emb.shape[-1], "map_label", bias=False, kernel_init=table_init)(label)
        return nn.silu(emb)

    def _aux_output(self, h: Array, out: Array | None, stage: Stage, channels: int) -> Array | None:
        del out
        if stage.level > 0:
            return None
        channels *= 2 if self.learned_variance else 1
        return self._conv(channels, "out_conv", zero=True)(nn.silu(norm("out_norm", h, 1e-5)(h)))

    def _output(self, out: Array) -> Array | tuple[Array, Array]:
        return split_output(out, self.learned_variance)
