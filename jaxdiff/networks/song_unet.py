"""The U-Nets of EDM (Karras et al. 2022, arXiv:2206.00364, app. F.3): DDPM++ and NCSN++ (Song et al. 2021), and ADM.

A submodule's name is its key in the original checkpoints, which name a block by the size at which it works, e.g.
`enc.32x32_block0`: so the networks have a resolution, although they run on images of other sizes, too.
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
from jaxdiff.networks.layers import Conv, Dense, at_least_float32
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
    """What DDPM++, NCSN++ and ADM have in common; see `SongUNet` for the attributes."""

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
            noise: float[B], the network's view of the noise level; EDM's is log(sigma) / 4.
            cond: those that are configured of "label" int[B] (num_classes is the null class) and the optional
                "augment" [B, augment_dim], the images' augmentation (Karras et al. 2022, app. F.2).
            train: dropout on; takes the random key "dropout".

        Returns:
            [B, *spatial, out_channels], float32 at least; `DhariwalUNet`: a pair of them with learned_variance.

        Raises:
            ValueError: for a missing, unknown or misshapen condition, a size that can't be halved often enough, or
                an unknown option.
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
                h, attend = jnp.concatenate([h, skips.pop()], axis=-1), attend and self._attends(stage.block)
            h = block(h, stage, attend=attend)
            if stage.block == self.num_blocks:
                out = self._aux_output(h, out, stage, channels)
        return self._output(jnp.asarray(out, at_least_float32(self.dtype)))

    def _block_options(self, width: int, direction: str | None, attend: bool) -> dict[str, Any]:
        """Options of a block."""
        raise NotImplementedError

    def _head_dim(self) -> int:
        """What the channels with attention must be a multiple of."""
        return 1

    def _stem(self) -> int:
        """Channels of the first convolution."""
        raise NotImplementedError

    def _attends(self, index: int) -> bool:
        """Whether a level with attention has it in this block on the way up."""
        raise NotImplementedError

    def _embed(self, noise: Array, cond: Mapping[str, Array]) -> Array:
        raise NotImplementedError

    def _join_input(self, h: Array, aux: Array, at: str) -> tuple[Array, Array]:
        """Join the shrunk image to the encoder."""
        del at
        return h, aux

    def _aux_output(self, h: Array, out: Array | None, stage: Stage, channels: int) -> Array | None:
        """The image after a level of the decoder, given that of the level before."""
        raise NotImplementedError

    def _output(self, out: Array) -> Array | tuple[Array, Array]:
        return out

    def _conv(self, features: int, name: str, **options) -> Conv:
        return Conv(features, dtype=self.dtype, name=name, **options)

    def _dense(self, features: int, name: str, **options) -> Dense:
        return Dense(features, dtype=at_least_float32(self.dtype), name=name, **{"kernel_init": kernel_init} | options)

    def _mapped(self, emb: Array) -> Array:
        """The embedding's two layers, without what follows the second."""
        emb = nn.silu(self._dense(self.model_channels * self.emb_mult, "map_layer0")(emb))
        return self._dense(self.model_channels * self.emb_mult, "map_layer1")(emb)

    def _augmented(self, emb: Array, cond: Mapping[str, Array], init: Callable[..., Array]) -> Array:
        """The embedding with the augmentation's; none is a vector of zeros."""
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
        resolution: edge of the images, by which blocks are named and attention is placed.
        model_channels: channels of the first convolution, in which the embeddings' widths are counted.
        widths: channels by level; level i works at resolution / 2^i.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attention: sizes with attention after each residual block on the way down, and the last one on the way up.
        emb_mult: width of the embedding, in base.
        dropout: rate within residual blocks while training.
        num_classes: classes of cond["label"]; None: off.
        augment_dim: length of cond["augment"]; None: off.
        out_channels: channels of the output; None: as many as x has.
        remat: what of each block the backward pass computes again: "none", "dots" (all but products) or "full".
        dtype: type of the computation; parameters are float32, the embeddings and the output float32 at least.
        embedding: "positional" (DDPM++) or "fourier" (NCSN++).
        noise_mult: width of the noise's features, in base.
        encoder: "standard" (DDPM++); "residual" (NCSN++) and "skip" feed the shrunk image to each level.
        decoder: "standard"; "skip" sums images from all levels.
        resample_filter: filter of the resampling, (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
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
            # The convolution pads for the filter after it, too, which then needs no padding.
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
