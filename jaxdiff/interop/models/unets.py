"""diffusers' UNet2DModel, and functions shared with its conditional U-Nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.formats.fields import COUNT, TIMES
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.networks import ControlNet, JointUNet, LearnedTimes, ScoreUNet, Sinusoidal, UNet, as_apply, init
from jaxdiff.schema import optional
from jaxdiff.types import Params

__all__ = ["PLAIN", "RESNET", "channels", "check_blocks", "classes", "model_spec", "names", "sinusoidal", "unet_2d"]

# A block's names in the encoder and in the decoder.
PLAIN = "DownBlock2D", "UpBlock2D"
ATTENTION = "AttnDownBlock2D", "AttnUpBlock2D"
RESNET = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
SKIP = "SkipDownBlock2D", "SkipUpBlock2D"
SKIP_ATTENTION = "AttnSkipDownBlock2D", "AttnSkipUpBlock2D"


def unet_2d(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' UNet2DModel: DDPM, NCSN++, ADM, consistency models and plain U-Nets.

    The null class is the last of the num_class_embeds classes. With class_embed_type "timestep" the label is a number;
    with "identity", cond["vector"] replaces it. If in_channels exceeds out_channels, the rest of the input is
    cond["concat"]. With twice as many channels out as in, the variance is learned: apply returns (F, frac).

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    own = {name: optional(COUNT) for name in ("attention_head_dim", "norm_num_groups")}
    c = Fields(config, "UNet2DModel", own | {"num_train_timesteps": optional(TIMES)})
    c.ignore("sample_size", "_class_name")
    c.expect("act_fn", "silu", "swish")
    widths = c.get("block_out_channels", (224, 448, 672, 896))
    score = c.expect("time_embedding_type", "positional", "fourier", "learned") == "fourier"
    attention, resample = _levels(c)
    groups = c.get("norm_num_groups", 32)
    if (groups is None) != (resample == "skip"):
        raise ValueError(
            f"UNet2DModel: norm_num_groups must be null with Skip blocks, and a number without, got {groups}"
        )
    scale_shift = c.expect("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift"
    in_channels, sizes = channels(c, 3)
    fields: dict[str, Any] = {
        "widths": widths,
        "num_blocks": c.get("layers_per_block", 2),
        "mid_blocks": 2 if c.expect("mid_block_type", "UNetMidBlock2D", None) else 0,
        "attention": attention,
        "mid_attention": c.get("add_attention", True),
        "mid_norm": c.expect("attn_norm_num_groups", *dict.fromkeys((None, groups))) is not None or not scale_shift,
        "mid_divide": c.get("mid_block_scale_factor", 1),
        "head_dim": c.get("attention_head_dim", 8),
        "emb_dim": c.get("time_embedding_dim", None),
        "scale_shift": scale_shift,
        "down_pad": (c.expect("downsample_padding", 1, 0), 1),
        "dropout": c.get("dropout", 0.0),
        "groups": groups,
        "eps": c.get("norm_eps", 1e-5),
        "time": _time(c),
        "dtype": dtype,
        **_label(c, 4 * widths[0]),
        **sizes,
    }
    center = c.get("center_input_sample", False)
    c.check_all_read()
    if resample == "skip" and not score:
        raise ValueError("UNet2DModel: Skip blocks are supported with time_embedding_type 'fourier' alone")
    if not score:
        return model_spec(UNet(**fields, resample=resample), in_channels, center=center)
    if resample == "skip":
        return model_spec(ScoreUNet(**fields, divide=2**0.5), in_channels, center=center)
    return model_spec(ScoreUNet(**fields, skips=False, resample=resample), in_channels, center=center)


def _time(c: Fields) -> Sinusoidal | LearnedTimes:
    """Return the embedding of the noise level, unless it is a `ScoreUNet`'s."""
    fixed, steps = sinusoidal(c), c.get("num_train_timesteps", None)
    if c.get("time_embedding_type", "positional") != "learned":
        return fixed
    if steps is None:
        raise ValueError("UNet2DModel: time_embedding_type 'learned' needs num_train_timesteps, the table's rows")
    return LearnedTimes(steps)


def _label(c: Fields, width: int) -> dict[str, Any]:
    kind = c.expect("class_embed_type", None, "timestep", "identity")
    rows, width = c.get("num_class_embeds", None), c.get("time_embedding_dim", None) or width
    if kind == "identity":
        return {"pooled_dim": width, "vector_map": "none"}
    return {"numeric_label": True} if kind == "timestep" else {"num_classes": classes(rows)}


def names(c: Fields, field: str, default: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks' names from the finest level on, without an obsolete prefix."""
    types = tuple(name.removeprefix("UNetRes") for name in c.get(field, tuple(default)))
    return types if field.startswith("down") else types[::-1]


def check_blocks(
    field: str, types: tuple[str, ...], kinds: tuple[str, str], *, levels: tuple[int, ...], count: int
) -> None:
    """Check that blocks are of the first kind at some levels, and of the second kind at the others.

    Args:
        field: name of the config's field.
        types: names of the blocks, from the finest level on.
        kinds: the two kinds.
        levels: levels of the first kind.
        count: number of levels.

    Raises:
        ValueError: the blocks differ.
    """
    expected = tuple(kinds[0] if i in levels else kinds[1] for i in range(count))
    if types != expected:
        raise ValueError(f"{field}, from the largest size, must be {expected}, got {types}")


def _levels(c: Fields) -> tuple[tuple[int, ...], str]:
    """Return the levels with attention, and `resample` as in `UNet`."""
    down = names(c, "down_block_types", (PLAIN[0], *(ATTENTION[0],) * 3))
    up = names(c, "up_block_types", (*(ATTENTION[1],) * 3, PLAIN[1]))
    # Resampling of blocks with attention; the names of other blocks contain it.
    resamplers = [c.expect(field, "conv", "resnet", None) or "conv" for field in ("downsample_type", "upsample_type")]
    for i, types in enumerate((down, up)):
        known = PLAIN[i], ATTENTION[i], RESNET[i], SKIP[i], SKIP_ATTENTION[i]
        unknown = sorted(set(types) - set(known))
        if unknown:
            raise ValueError(f"UNet2DModel: blocks must be of {', '.join(known)}, got {', '.join(unknown)}")
    attending = (*ATTENTION, *SKIP_ATTENTION)
    sides = [tuple(i for i, name in enumerate(types) if name in attending) for types in (down, up)]
    if sides[0] != sides[1] or len(down) != len(up):
        raise ValueError(f"UNet2DModel: the way up must mirror the way down, got {down} and, reversed, {up}")
    skips = {name in SKIP or name in SKIP_ATTENTION for name in (*down, *up)}
    if len(skips) > 1:
        raise ValueError(f"UNet2DModel: all blocks or none must be Skip blocks, got {down} and, reversed, {up}")
    if skips == {True}:
        return sides[0], "skip"
    pairs = [*((name, resamplers[0]) for name in down[:-1]), *((name, resamplers[1]) for name in up[1:])]
    kinds = {kind if name in ATTENTION else "resnet" if name in RESNET else "conv" for name, kind in pairs}
    if len(kinds) > 1:
        raise ValueError("UNet2DModel: all levels must resample the same way, by convolutions or by residual blocks")
    return sides[0], {"conv": "conv", "resnet": "resblock"}[kinds.pop() if kinds else "conv"]


def channels(c: Fields, default: int) -> tuple[int, dict[str, Any]]:
    """Return the number of denoised channels, and the network's attributes for the other channels."""
    in_channels, out = c.get("in_channels", default), c.get("out_channels", default)
    learned = out == 2 * in_channels
    return min(in_channels, out), {
        "concat_channels": in_channels - out if in_channels > out else None,
        "out_channels": in_channels if learned else out,
        "learned_variance": learned,
    }


def sinusoidal(c: Fields) -> Sinusoidal:
    """Return the embedding of the noise level by fixed frequencies."""
    return Sinusoidal(cos_first=c.get("flip_sin_to_cos", True), shift=c.get("freq_shift", 0))


def classes(rows: int | None) -> int | None:
    """Return the number of classes of a table with that many rows, the last of which is the null class."""
    return None if rows is None else rows - 1


def model_spec(
    module: UNet, in_channels: int, *, center: bool = False, rename: Callable[[str], str] = lambda key: key
) -> ModelSpec:
    """Return the `ModelSpec` of a U-Net.

    Args:
        module: the network.
        in_channels: number of denoised channels.
        center: whether the input is in [0, 1], to be mapped to [-1, 1].
        rename: this library's key -> the checkpoint's.
    """
    size = (2 ** (len(module.widths) - 1),) * 2
    shapes: dict[str, tuple[int, ...]] = {}
    if module.num_classes is not None or module.numeric_label:
        shapes["label"] = (1,)
    if module.context_dim is not None:
        shapes["tokens"] = (1, 1, module.context_dim)
    if module.pooled_dim is not None:
        shapes["vector"] = (1, module.pooled_dim)
    if module.guidance_dim is not None:
        shapes["guidance"] = (1,)
    if module.concat_channels is not None:
        shapes["concat"] = (1, *size, module.concat_channels)
    if isinstance(module, JointUNet) and module.image_dim is not None:
        shapes["image"] = (1, module.image_dim)
    if isinstance(module, ControlNet):
        factor = 2 ** (len(module.hint_widths) - 1)
        shapes["hint"] = (1, *(factor * n for n in size), module.hint_channels)
    x = jax.ShapeDtypeStruct((1, *size, in_channels), jnp.float32)
    kinds = {"label": jnp.int32}
    cond: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.float32)) for name, shape in shapes.items()
    }
    if module.image_ranks:
        tokens = jax.ShapeDtypeStruct((1, 1, module.token_width or module.context_dim or 0), jnp.float32)
        scale = jax.ShapeDtypeStruct((1,), jnp.float32)
        cond |= {name: (a,) * len(module.image_ranks) for name, a in (("image_prompt", tokens), ("image_scale", scale))}
    apply = as_apply(module)
    return ModelSpec(
        partial(init, module, x=x, cond=cond), _centred(apply) if center else apply, rename=rename, alias=_newer
    )


def _centred(apply: Callable[..., Any]) -> Callable[..., Any]:
    def centred(params: Params, x: jax.Array, noise: jax.Array, cond: Any = None, **options: Any) -> Any:
        if cond and "concat" in cond:
            cond = {**cond, "concat": 2 * cond["concat"] - 1}
        return apply(params, 2 * x - 1, noise, cond, **options)

    return centred


def _newer(key: str) -> str:
    """Replace the names of attention's layers before diffusers 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".{old}.", f".{new}.")
    return key
