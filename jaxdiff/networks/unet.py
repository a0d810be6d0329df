"""The U-Net of diffusion models for 1-, 2- and 3-D data, channels last.

Names. The path of a parameter, joined by dots, is its key in the reference checkpoint (diffusers'
UNet2DModel) except for the last segment: `params["down_blocks.0.resnets.1"]["conv1"]["kernel"]` is
`down_blocks.0.resnets.1.conv1.weight`. A member of a list has its index after a dot, hence the dots in Linen
names. Leaves: `bias` is `bias`; `kernel` [*size, in, out] is torch's `weight` [out, in, *size]; `scale` and
`embedding` are `weight`, not transposed. Cross-attention without transformers (`cross_attentions.N`, next to
`attentions.N`) does not exist there. The last row of `class_embedding` is the null class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks import layers
from jaxdiff.networks.apply import Shape, check_cond, check_spatial, cond_shapes, split_output
from jaxdiff.networks.attention import Attention
from jaxdiff.networks.embed import (
    ClassEmbedding,
    EmbeddingMLP,
    Sinusoidal,
    TimeEmbedding,
    embed_guidance,
    noise_embedding,
)
from jaxdiff.networks.layers import Conv, Downsample, GroupNorm, Upsample, activation, at_least_float32
from jaxdiff.networks.remat import Remat, rematted
from jaxdiff.networks.resblock import ResBlock, quarter
from jaxdiff.networks.tokens import dense
from jaxdiff.networks.transformer2d import NO_IMAGES, ImagePrompts, Transformer2D, TransformerConfig

IMAGES = "image_prompt", "image_scale"  # conditions that have an array for each image


class UNet(nn.Module):
    """U-Net of residual blocks and attention (Ho et al. 2020, app. B; Dhariwal and Nichol 2021, sec. 3).

    Exactly the configured conditions must be given; see `__call__`.

    Attributes:
        widths: channels by level; level i works at 1 / (patch_size 2^i) of the input's size.
        num_blocks: residual blocks per level of the encoder (one more in the decoder); one number, or one per level.
        mid_blocks: residual blocks at the bottom: 2, or 1 or 0 without attention there.
        attention: levels with attention after each residual block.
        mid_attention: attention between the two blocks at the bottom.
        mid_norm: a group norm before that attention, if it is no transformer.
        head_dim: channels per attention head; None is a single head.
        num_heads: attention heads at every level, instead of head_dim; None: off.
        model_channels: number of the noise's features; None: the first of widths.
        emb_dim: width of the embedding; None: 4 * model_channels.
        transformer: transformers instead of attention (and of head_dim), with cross-attention to the tokens or,
            without context_dim, to the positions.
        identity_attention: stages ("down_blocks.1", "mid_block", "up_blocks.0") whose self-attention map is the
            identity, for perturbed-attention guidance: `module.clone(identity_attention=("mid_block",))` is the
            perturbed network, with the same parameters.
        scale_shift: the embedding scales and shifts the activations (FiLM, AdaGN); False: it is added.
        resample: "conv" (strided convolution; repetition and convolution), "pool" (average; repetition) or
            "resblock" (a residual block that resamples).
        down_pad: zeros before and after an axis in a strided convolution; (0, 1) is TensorFlow's SAME.
        dropout: rate within residual blocks while training.
        groups: groups of the norms; divides all widths. None: see `resblock.ResBlock`.
        eps: epsilon of the norms.
        act: the activation; see `layers.activation`.
        divide: divisor of the sums in residual blocks.
        mid_divide: divisor of the sums in residual blocks at the bottom.
        time: embedding of the noise level: `Sinusoidal`, `Fourier`, `StoredFourier` or `LearnedTimes`.
        num_classes: classes of cond["label"]; None: off.
        numeric_label: cond["label"] is float[B], e.g. the noise level of a second image, embedded like the noise.
        context_dim: D of cond["tokens"]; a cross-attention then follows every self-attention. None: off.
        token_width: output features of a linear layer on the tokens; None: no such layer.
        pooled_dim: D of cond["vector"], which is added to the noise embedding; None: off.
        vector_map: number of linear layers on that vector, "two", "one" or "none".
        vector_concat: concatenate the vector to the embedding; False: add it.
        guidance_dim: features of cond["guidance"], which are added to those of the noise; None: off. They start at
            zero, so that weights without them keep their function.
        next_noise: cond["next_noise"] is float[B], the noise input of the level at which a step ends, for few-step
            models (`jaxdiff.distill`). Its embedding starts at zero, so that weights without it keep their function.
        concat_channels: C' of cond["concat"]; None: off.
        concat_noise: cond["concat_noise"] is float[B], the level of the noise on cond["concat"], embedded like the
            noise (Ho et al. 2021, arXiv:2106.15282).
        image_ranks: for each image to whose tokens transformers also attend, the rank of the changes of their
            attentions that come with it, or 0 for none; see `ip_adapter`.
        out_channels: channels of the output; None: as many as x has.
        learned_variance: return (F, frac); frac is v of Nichol and Dhariwal 2021, eq. 15, the place of the log
            variance between its bounds, mapped from [-1, 1] to [0, 1] but not clipped.
        patch_size: edge of the blocks that are folded into channels at the input and unfolded at the output.
        remat: what the backward pass recomputes in each block: "none", "dots" (all but products) or "full".
        dtype: type of the computation (float32, bfloat16, float64); parameters are float32, the noise
            embedding and the output float32 at least.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    num_blocks: int | tuple[int, ...] = 2
    mid_blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    mid_norm: bool = True
    head_dim: int | None = None
    num_heads: int | None = None
    model_channels: int | None = None
    emb_dim: int | None = None
    transformer: TransformerConfig | None = None
    identity_attention: tuple[str, ...] = ()
    scale_shift: bool = False
    resample: str = "conv"
    down_pad: tuple[int, int] = (1, 1)
    dropout: float = 0.0
    groups: int | None = 32
    eps: float = 1e-5
    act: str = "silu"
    divide: float = 1.0
    mid_divide: float = 1.0
    time: TimeEmbedding = Sinusoidal()
    num_classes: int | None = None
    numeric_label: bool = False
    context_dim: int | None = None
    token_width: int | None = None
    pooled_dim: int | None = None
    vector_map: str = "two"
    vector_concat: bool = False
    guidance_dim: int | None = None
    next_noise: bool = False
    concat_channels: int | None = None
    concat_noise: bool = False
    image_ranks: tuple[int, ...] = ()
    out_channels: int | None = None
    learned_variance: bool = False
    patch_size: int = 1
    remat: Remat = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, noise: Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> Array | tuple[Array, Array]:
        """Evaluate F(x, noise, cond).

        Args:
            x: [B, *spatial, C], one to three spatial axes, each a multiple of patch_size * 2^(levels - 1), or
                with resample "conv" of patch_size: the decoder resizes to the sizes of the encoder.
            noise: float[B], the network's noise input.
            cond: as configured, "label" int[B] (num_classes is the null class), "tokens" [B, L, D]
                with an optional "mask" bool[B, L] (True: visible), "vector" [B, D], "guidance" float[B], the
                scale of the guidance that was distilled into the network, "next_noise" float[B], "concat"
                [B, *spatial, C'], "concat_noise" float[B], "image_prompt", of each image [B, L, D], as wide as the
                tokens of the text that are attended to, with "image_scale", of each float[B], of which 0 is off. The
                optional "residuals" are added to the skips, from the input on, and to the bottom: as many arrays, of
                the same shapes or with spatial sizes of 1; see `controlnet.controlled`. The optional "features" are
                added within the encoder; see `adapter.T2IAdapter`.
            train: apply dropout; needs the random key "dropout".

        Returns:
            [B, *spatial, out_channels], or a pair of them with learned_variance.

        Raises:
            ValueError: a condition is missing, unknown or misshapen, a size can't be halved often enough, or an
                option is unknown.
        """
        cond = self._check(x, noise, cond)
        h, skips, inputs = self._encode(x, noise, cond, train)
        if "residuals" in cond:
            *skips, h = _added([*skips, h], cond["residuals"])
        return self._decode(h, skips, inputs, x.shape[-1])

    def _encode(
        self, x: Array, noise: Array, cond: Mapping[str, Any], train: bool, *, hint: Array | None = None
    ) -> tuple[Array, list[Array], "_BlockInputs"]:
        """Return the bottom, the skips and the inputs of all blocks; the hint is added after the first convolution."""
        inputs = self._block_inputs(noise, cond, train)
        h = self._enter(x, cond)
        if hint is not None:
            h = h + hint
        skips, features = [h], _Features(cond.get("features", ()))
        for level in range(len(self.widths)):
            name = f"down_blocks.{level}"
            for i in range(self.blocks_at(level)):
                h = self._stage(h, inputs, (name, i), level=level, attend=level in self.attention)
                skips.append(h)
            h = skips[-1] = features.added(h, level)
            if level < len(self.widths) - 1:
                h = self._resample(h, inputs, f"{name}.downsamplers.0", direction="down")
                skips.append(h)
                h = skips[-1] = features.added(h, level)
        h = features.added(self._middle(h, inputs), len(self.widths))
        features.check()
        return h, skips, inputs

    def _enter(self, x: Array, cond: Mapping[str, Any]) -> Array:
        """The first convolution."""
        h = x.astype(self.dtype)
        if self.concat_channels is not None:
            h = jnp.concatenate([h, cond["concat"].astype(self.dtype)], axis=-1)
        return self._conv(self.widths[0], "conv_in")(layers.space_to_depth(h, self.patch_size))

    def _block_inputs(self, noise: Array, cond: Mapping[str, Any], train: bool) -> "_BlockInputs":
        emb = activation(self.act)(self._embed(noise, cond))
        images = ImagePrompts(*(tuple(cond.get(name, ())) for name in IMAGES))
        return _BlockInputs(emb, self._tokens(cond), cond.get("mask"), train, images)

    def _tokens(self, cond: Mapping[str, Any]) -> Array | None:
        """Return the tokens for cross-attention."""
        if self.token_width is None:
            return cond.get("tokens")
        return dense(self.token_width, self.dtype, "encoder_hid_proj")(cond["tokens"])

    def blocks_at(self, level: int) -> int:
        """Residual blocks of a level on the way down."""
        return self.num_blocks if isinstance(self.num_blocks, int) else self.num_blocks[level]

    def _middle(self, h: Array, inputs: "_BlockInputs") -> Array:
        if self.mid_blocks > 0:
            h = self._stage(h, inputs, ("mid_block", 0), level=-1, attend=self.mid_attention and self.mid_blocks > 1)
        if self.mid_blocks > 1:
            h = self._block(h, inputs, "mid_block.resnets.1", width=self.widths[-1])
        return h

    def _decode(
        self, h: Array, skips: list[Array], inputs: "_BlockInputs", channels: int
    ) -> Array | tuple[Array, Array]:
        """Return the output, given the bottom and the skips, which are used from the last to the first."""
        for level in reversed(range(len(self.widths))):
            name = f"up_blocks.{len(self.widths) - 1 - level}"
            for i in range(self.blocks_at(level) + 1):
                h = layers.concatenate_channels(h, skips.pop())
                h = self._stage(h, inputs, (name, i), level=level, attend=level in self.attention)
            if level > 0:
                h = self._resample(h, inputs, f"{name}.upsamplers.0", direction="up", size=skips[-1].shape[1:-1])
        return self._output(h, channels)

    def _conv(self, features: int, name: str, **options) -> Conv:
        return Conv(features, dtype=self.dtype, name=name, **options)

    def _block(
        self, h: Array, inputs: "_BlockInputs", name: str, *, width: int, direction: str | None = None, **more: Any
    ) -> Array:
        block = rematted(ResBlock, self.remat)
        return block(
            width,
            scale_shift=self.scale_shift,
            resample=direction,
            dropout=self.dropout if inputs.train else 0.0,
            groups=self.groups,
            eps=self.eps,
            dtype=self.dtype,
            act=self.act,
            divide=self.mid_divide if name.startswith("mid_block") else self.divide,
            name=name,
            **more,
        )(h, inputs.emb)

    def _stage(self, h: Array, inputs: "_BlockInputs", place: tuple[str, int], *, level: int, attend: bool) -> Array:
        """Apply a residual block and its attention; level -1 is the bottom."""
        name, index = place
        h = self._block(h, inputs, f"{name}.resnets.{index}", width=self.widths[level])
        if not attend:
            return h
        return self._attention(h, inputs, place, level)

    def _attention(self, h: Array, inputs: "_BlockInputs", place: tuple[str, int], level: int) -> Array:
        name, index = place
        path, identity = f"{name}.attentions.{index}", name in self.identity_attention
        if self.transformer is not None:
            depth = self.transformer.blocks(level, index, up=name.startswith("up_blocks"))
            block = self._transformer(self.transformer, path, level=level, depth=depth, identity=identity)
            return block(h, inputs.tokens, inputs.mask, inputs.images)
        h = self._attend(path, level, identity=identity)(h)
        if self.context_dim is None:
            return h
        return self._attend(f"{name}.cross_attentions.{index}", level)(h, inputs.tokens, inputs.mask)

    def _attend(self, name: str, level: int, *, identity: bool = False) -> Attention:
        attention = rematted(Attention, self.remat)
        head_dim = self.head_dim if self.num_heads is None else self.widths[level] // self.num_heads
        norm, divide = (self.mid_norm, self.mid_divide) if level == -1 else (True, 1.0)
        return attention(
            head_dim, self._groups(level), self.eps, self.dtype, identity, norm=norm, divide=divide, name=name
        )

    def _groups(self, level: int) -> int:
        return self._groups_of(self.widths[level])

    def _groups_of(self, width: int) -> int:
        return quarter(width) if self.groups is None else self.groups

    def _transformer(
        self, config: TransformerConfig, name: str, *, level: int, depth: int, identity: bool
    ) -> Transformer2D:
        return Transformer2D(
            depth,
            config.num_heads[level],
            linear=config.linear,
            cross_only=level in config.cross_only,
            identity=identity,
            image_ranks=self.image_ranks,
            groups=self._groups(level),
            remat=self.remat,
            dtype=self.dtype,
            name=name,
        )

    def _resample(
        self, h: Array, inputs: "_BlockInputs", name: str, *, direction: str, size: Sequence[int] | None = None
    ) -> Array:
        width = h.shape[-1]
        if self.resample == "resblock":
            return self._block(h, inputs, name, width=width, direction=direction)
        if self.resample == "pool":
            return layers.downsample(h) if direction == "down" else layers.upsample(h)
        if direction == "down":
            return Downsample(width, pad=self.down_pad, dtype=self.dtype, name=name)(h)
        return Upsample(width, dtype=self.dtype, name=name)(h, size)

    def _embed(self, noise: Array, cond: Mapping[str, Any]) -> Array:
        base = self.widths[0] if self.model_channels is None else self.model_channels
        dim = 4 * base if self.emb_dim is None else self.emb_dim
        dtype = at_least_float32(self.dtype)
        embed = self._noise_embedding()
        features = embed(noise.astype(dtype), base)
        if self.guidance_dim is not None:
            scale = cond["guidance"].astype(dtype)
            features = features + embed_guidance(scale, self.guidance_dim, base, "time_embedding.cond_proj")
        emb = EmbeddingMLP(dim, self.dtype, self.act, name="time_embedding")(features)
        if self.next_noise:
            after = embed(cond["next_noise"].astype(dtype), base)
            emb = emb + EmbeddingMLP(dim, self.dtype, self.act, zero=True, name="next_time_embedding")(after)
        if self.concat_noise:
            level = embed(cond["concat_noise"].astype(dtype), base)
            emb = emb + EmbeddingMLP(dim, self.dtype, self.act, name="concat_time_embedding")(level)
        if self.num_classes is not None:
            table = ClassEmbedding(self.num_classes, dim, self.dtype, name="class_embedding")
            emb = emb + table(cond["label"])
        if self.numeric_label:
            label = embed(cond["label"].astype(dtype), base)
            emb = emb + EmbeddingMLP(dim, self.dtype, self.act, name="class_embedding")(label)
        if self.pooled_dim is None:
            return emb
        vector = self._vector(cond["vector"].astype(dtype), dim)
        return jnp.concatenate([emb, vector], axis=-1) if self.vector_concat else emb + vector

    def _noise_embedding(self) -> Callable[[Array, int], Array]:
        """The embedding of all noise levels, that of the sample and others."""
        return noise_embedding(self.time, "time_proj")

    def _vector(self, vector: Array, dim: int) -> Array:
        if self.vector_map == "none":
            return vector
        if self.vector_map == "one":
            return dense(dim, vector.dtype, "add_embedding")(vector)
        return EmbeddingMLP(dim, self.dtype, name="add_embedding")(vector)

    def _output(self, h: Array, channels: int) -> Array | tuple[Array, Array]:
        channels = channels if self.out_channels is None else self.out_channels
        features = channels * (2 if self.learned_variance else 1) * self.patch_size ** (h.ndim - 2)
        h = activation(self.act)(GroupNorm(self._groups(0), self.eps, name="conv_norm_out")(h))
        h = self._conv(features, "conv_out", zero=True)(h).astype(at_least_float32(self.dtype))
        return split_output(layers.depth_to_space(h, self.patch_size), self.learned_variance)

    def _attending(self) -> list[str]:
        """The stages with self-attention, from the input to the output."""
        levels, bottom = sorted(set(self.attention)), len(self.widths) - 1
        mid = ["mid_block"] if self.mid_attention and self.mid_blocks > 1 else []
        return [*(f"down_blocks.{i}" for i in levels), *mid, *(f"up_blocks.{bottom - i}" for i in reversed(levels))]

    def _check(self, x: Array, noise: Array, cond: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if not isinstance(self.num_blocks, int) and len(self.num_blocks) != len(self.widths):
            raise ValueError(
                f"blocks must be one number or {len(self.widths)}, one for each level, got {self.num_blocks}"
            )
        if self.vector_map not in ("two", "one", "none"):
            raise ValueError(f"vector_map must be 'two', 'one' or 'none', got {self.vector_map!r}")
        if self.num_classes is not None and self.numeric_label:
            raise ValueError("a label is a class or a number: num_classes and numeric_label exclude each other")
        if self.resample not in ("conv", "pool", "resblock"):
            raise ValueError(f"resample must be 'conv', 'pool' or 'resblock', got {self.resample!r}")
        if any(not 0 <= level < len(self.widths) for level in self.attention):
            raise ValueError(f"attention names levels 0..{len(self.widths) - 1}, got {self.attention}")
        if self.num_heads is not None and (self.head_dim is not None or any(w % self.num_heads for w in self.widths)):
            raise ValueError(
                f"heads must divide all widths, head_dim be None, got {self.num_heads} and {self.head_dim}"
            )
        attending = self._attending()
        if not set(self.identity_attention) <= set(attending):
            raise ValueError(
                f"identity_attention names stages with self-attention, here {', '.join(attending) or 'none'}; "
                f"got {self.identity_attention}"
            )
        if self.image_ranks and (self.transformer is None or self.context_dim is None):
            raise ValueError("an image prompt is for transformers with attention to tokens: set both")
        if self.transformer is not None:
            if self.head_dim is not None:
                raise ValueError("transformers have their own number of heads: head_dim must be None")
            bottom = {len(self.widths) - 1} if "mid_block" in attending else set()
            self.transformer.check(len(self.widths), {*self.attention} | bottom)
        check_spatial(x)
        self._check_size(x.shape)
        cond = {} if cond is None else cond
        known = {name: value for name, value in cond.items() if name not in ("residuals", "features", *IMAGES)}
        check_cond(x, noise, known, self._shapes(x, known))
        self._check_images(x, cond)
        return cond

    def _check_images(self, x: Array, cond: Mapping[str, Any]) -> None:
        width, count = (self.context_dim if self.token_width is None else self.token_width), len(self.image_ranks)
        got = [[jnp.shape(a) for a in cond.get(name, ())] for name in IMAGES]
        fit = all(len(shape) == 3 and (shape[0], shape[2]) == (x.shape[0], width) for shape in got[0])
        if not fit or got[1] != [x.shape[:1]] * count or len(got[0]) != count:
            raise ValueError(
                f"the network takes image prompts of {count} images, each {(x.shape[0], 'L', width)}, and as many "
                f"scales {x.shape[:1]}; got {got[0]} and {got[1]}"
            )

    def _check_size(self, shape: tuple[int, ...]) -> None:
        halvings = len(self.widths) - 1
        layers.check_divisible(shape, self.patch_size * (1 if self.resample == "conv" else 2**halvings))
        least = 2**halvings if sum(self.down_pad) < 2 else 1
        if self.resample == "conv" and min(shape[1:-1]) < self.patch_size * least:
            raise ValueError(f"every spatial size must be at least {self.patch_size * least}, got shape {shape}")

    def _shapes(self, x: Array, cond: Mapping[str, Any]) -> dict[str, Shape]:
        """Shapes of the conditions."""
        shapes = cond_shapes(
            x,
            cond,
            num_classes=self.num_classes,
            context_dim=self.context_dim,
            mask=True,
            pooled_dim=self.pooled_dim,
            guidance=self.guidance_dim is not None,
            next_noise=self.next_noise,
            concat_channels=self.concat_channels,
            concat_noise=self.concat_noise,
        )
        return shapes | ({"label": x.shape[:1]} if self.numeric_label else {})


def _added(values: Sequence[Array], residuals: Sequence[Array]) -> list[Array]:
    pooled = [(v.shape[0], *(1,) * (v.ndim - 2), v.shape[-1]) for v in values]
    fits = [r.shape in (v.shape, p) for v, p, r in zip(values, pooled, residuals, strict=False)]
    if len(residuals) != len(values) or not all(fits):
        shapes = [r.shape for r in residuals]
        raise ValueError(f"residuals must be {len(values)} arrays like {[v.shape for v in values]}, got {shapes}")
    return [v + r.astype(v.dtype) for v, r in zip(values, residuals, strict=True)]


class _Features:
    """What is added within the encoder: a level's feature where it has the size, before or after resampling."""

    def __init__(self, features: Sequence[Array]):
        self._left = dict(enumerate(features))
        self._sizes: list[tuple[int, ...]] = []

    def added(self, h: Array, level: int) -> Array:
        """Add the level's feature, unless it has been added or has another shape; the bottom is the last level."""
        self._sizes.append(h.shape)
        if level not in self._left or self._left[level].shape != h.shape:
            return h
        return h + self._left.pop(level).astype(h.dtype)

    def check(self) -> None:
        """Raise ValueError if a feature fits nowhere."""
        for level, feature in self._left.items():
            raise ValueError(
                f"features are one for each level, before or after resampling, and one for the bottom, of the shapes "
                f"{self._sizes}; got {feature.shape} for level {level}"
            )


class _BlockInputs(NamedTuple):
    """Inputs of all blocks of a call."""

    emb: Array
    tokens: Array | None
    mask: Array | None
    train: bool
    images: ImagePrompts = NO_IMAGES
