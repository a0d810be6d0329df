"""Conditional U-Nets of diffusers: UNet2DConditionModel, ControlNetModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.formats.fields import COUNT, DEPTH, NONE_OR_MORE, PER_LEVEL, SIZE
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.unets import PLAIN, RESNET, channels, check_blocks, classes, model_spec, names, sinusoidal
from jaxdiff.networks import ControlNet, JointUNet, Sinusoidal, StoredFourier, TransformerConfig, UNet
from jaxdiff.schema import each, optional

__all__ = ["IMAGE_PROMPT", "IMAGE_RANKS", "control_config", "controlnet", "unet_2d_condition"]

IMAGE_PROMPT = "ip_image_proj"  # the encoder_hid_dim_type of a U-Net with IP-Adapters
IMAGE_RANKS = "image_ranks"  # a field of ours: of each adapter, see `networks.UNet`; by default one of rank 0
CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
JOINT = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
# Number of residual blocks at the bottom; with two there is attention between them.
BOTTOM = {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1, None: 0, "UNetMidBlock2DSimpleCrossAttn": 2}

# Fields that may have one value per level in these classes.
OWN = {
    "attention_head_dim": PER_LEVEL[COUNT], "cross_attention_dim": PER_LEVEL[SIZE],
    "layers_per_block": PER_LEVEL[DEPTH], "num_attention_heads": optional(PER_LEVEL[COUNT]),
    IMAGE_RANKS: each(NONE_OR_MORE, 100),
}  # fmt: skip

# What a conditional U-Net and its ControlNet have in common.
SHARED = {
    "act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
    "class_embed_type", "cross_attention_dim", "down_block_types", "downsample_padding", "encoder_hid_dim",
    "encoder_hid_dim_type", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block",
    "mid_block_scale_factor", "mid_block_type", "norm_eps", "norm_num_groups", "num_class_embeds",
    "only_cross_attention", "projection_class_embeddings_input_dim", "resnet_time_scale_shift",
    "transformer_layers_per_block", "upcast_attention", "use_linear_projection",
}  # fmt: skip


def unet_2d_condition(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' UNet2DConditionModel: Stable Diffusion 1, 2 and XL, Kolors, DeepFloyd IF, Karlo, Kandinsky 2.

    If in_channels exceeds out_channels, the rest of the input is cond["concat"]; with twice as many channels out as in,
    the variance is learned. cond["vector"] is that of XL (see `networks.configs.sdxl_vector`), the image embedding of
    unCLIP, or the text embedding of Kandinsky 2.1; cond["image"] is Kandinsky's image embedding; cond["guidance"] is
    for guidance-distilled networks. With class_embed_type "timestep", cond["label"] is a number; with
    encoder_hid_dim_type "ip_image_proj" there are the weights of IP-Adapters.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet2DConditionModel", OWN)
    c.expect("dual_cross_attention", False)
    c.expect("timestep_post_act", None)
    c.expect("conv_in_kernel", 3)
    c.expect("conv_out_kernel", 3)
    c.expect("attention_type", "default", None)
    c.get("sample_size", None)  # for pipelines
    center = c.get("center_input_sample", False)
    down, count = names(c, "down_block_types", (*(CROSS[0],) * 3, PLAIN[0])), len(_widths(c))
    up = names(c, "up_block_types", (PLAIN[1], *(CROSS[1],) * 3))
    in_channels, sizes = channels(c, 4)
    more = {
        "dropout": c.get("dropout", 0.0),
        "vector_concat": _vector_concat(c),
        "guidance_dim": c.get("time_cond_proj_dim", None),
        "dtype": dtype,
    }
    fields = _conditional(c) | _noise_embedding(c)
    module: UNet
    if set(JOINT) & {*down, *up}:
        check_blocks("up_block_types", up, (JOINT[1], RESNET[1]), levels=fields["attention"], count=count)
        module = JointUNet(**fields, **_joint(c, count), **more, **sizes)
    else:
        check_blocks("up_block_types", up, (CROSS[1], PLAIN[1]), levels=fields["attention"], count=count)
        prompted = c.get("encoder_hid_dim_type", None) == IMAGE_PROMPT
        ranks = tuple(c.get(IMAGE_RANKS, (0,))) if prompted else ()
        crossing = _crossing(c, fields["attention"], count)
        module = UNet(**fields, **crossing, **more, **sizes, image_ranks=ranks)
    c.check_all_read()
    return model_spec(module, in_channels, center=center, rename=_rename(c))


def controlnet(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' ControlNetModel.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "ControlNetModel", OWN)
    c.expect("controlnet_conditioning_channel_order", "rgb")
    fields = _conditional(c)
    if fields["act"] != "silu" and c.get("class_embed_type", None) == "timestep":
        # The reference embeds the number with another activation than the noise.
        raise ValueError(f"ControlNetModel: class_embed_type 'timestep' goes with act_fn 'silu', got {fields['act']!r}")
    module = ControlNet(
        **fields,
        **_vector(c, 4 * fields["widths"][0]),
        **_crossing(c, fields["attention"], len(fields["widths"])),
        hint_channels=c.get("conditioning_channels", 3),
        hint_widths=c.get("conditioning_embedding_out_channels", (16, 32, 96, 256)),
        pooled=c.get("global_pool_conditions", False),
        dtype=dtype,
    )
    in_channels = c.get("in_channels", 4)
    c.check_all_read()
    return model_spec(module, in_channels, rename=_rename(c))


def control_config(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the config of a new ControlNet: `architecture(control_config(unet.config)).init(key)` initializes one.

    Args:
        config: the fields of a UNet2DConditionModel.
        changes: fields of the ControlNetModel, e.g. conditioning_channels.

    Raises:
        ValueError: the U-Net embeds the noise by Fourier features, which a ControlNetModel has not.
    """
    if config.get("time_embedding_type", "positional") == "fourier":
        raise ValueError("a ControlNetModel has no Fourier features: it goes with time_embedding_type 'positional'")
    shared = {name: value for name, value in config.items() if name in SHARED}
    return shared | {"_class_name": "ControlNetModel"} | changes


def _conditional(c: Fields) -> dict[str, Any]:
    """Return the attributes that all conditional U-Nets and ControlNets share."""
    c.ignore("upcast_attention", "_class_name")
    c.get("addition_time_embed_dim", None)  # for pipelines
    act = c.get("act_fn", "silu")
    bottom = c.expect("mid_block_type", *BOTTOM)
    widths = _widths(c)
    down = names(c, "down_block_types", (*(CROSS[0],) * 3, PLAIN[0]))
    attention = tuple(i for i, name in enumerate(down) if name in (CROSS[0], JOINT[0]))
    kinds = (JOINT[0], RESNET[0]) if JOINT[0] in down else (CROSS[0], PLAIN[0])
    check_blocks("down_block_types", down, kinds, levels=attention, count=len(widths))
    return {
        "widths": widths,
        "num_blocks": _each(c, "layers_per_block", 2, len(widths)),
        "mid_blocks": BOTTOM[bottom],
        "mid_attention": BOTTOM[bottom] == 2,
        "mid_divide": c.get("mid_block_scale_factor", 1),
        "attention": attention,
        "scale_shift": c.expect("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift",
        "down_pad": (c.expect("downsample_padding", 1, 0), 1),
        "groups": c.get("norm_num_groups", 32),
        "eps": c.get("norm_eps", 1e-5),
        "act": "silu" if act == "swish" else act,
        "time": sinusoidal(c),
        **_text(c),
    }


def _noise_embedding(c: Fields) -> dict[str, Any]:
    """Return the attributes of the embedding of the noise level and of vectors that are added to it."""
    dim = c.get("time_embedding_dim", None)
    if c.expect("time_embedding_type", "positional", "fourier") == "positional":
        return {"emb_dim": dim, **_vector(c, dim or 4 * _widths(c)[0])}
    dim = dim or 2 * _widths(c)[0]
    if dim % 2:
        raise ValueError(f"time_embedding_dim must be even with time_embedding_type 'fourier', got {dim}")
    time = StoredFourier(cos_first=sinusoidal(c).cos_first)
    return {"time": time, "model_channels": dim, "emb_dim": dim, **_vector(c, dim)}


def _widths(c: Fields) -> tuple[int, ...]:
    return c.get("block_out_channels", (320, 640, 1280, 1280))


def _crossing(c: Fields, attention: tuple[int, ...], levels: int) -> dict[str, Any]:
    """Return the attributes of a U-Net with transformers."""
    if c.get("mid_block_type", "") == "UNetMidBlock2DSimpleCrossAttn":
        raise ValueError("mid_block_type UNetMidBlock2DSimpleCrossAttn goes with SimpleCrossAttn blocks")
    c.ignore("mid_block_only_cross_attention", "resnet_out_scale_factor", "resnet_skip_time_act")  # have no effect
    c.expect("time_embedding_act_fn", None)
    c.expect("cross_attention_norm", None)
    c.expect("addition_embed_type", None, "text_time")
    c.expect("encoder_hid_dim_type", None, "text_proj", IMAGE_PROMPT)
    cross_only = _each(c, "only_cross_attention", False, levels)
    # In the reference, the number of heads is called the size of a head.
    num_heads = _each(c, "attention_head_dim", 8, levels) if c.get("num_attention_heads", None) is None else ()
    depth = _depths(c, "transformer_layers_per_block", levels)
    up_depth = None
    if c.get("reverse_transformer_layers_per_block", None) is not None:
        up_depth = _depths(c, "reverse_transformer_layers_per_block", levels)[::-1]
    elif any(isinstance(n, tuple) for n in depth):
        raise ValueError(
            "transformer_layers_per_block must be one value or a number for each level, where "
            f"reverse_transformer_layers_per_block does not give those of the way up; got {depth}"
        )
    return {
        "transformer": TransformerConfig(
            depth=depth,
            num_heads=num_heads or _each(c, "num_attention_heads", None, levels),
            linear=c.get("use_linear_projection", False),
            cross_only=tuple(i for i in attention if cross_only[i]),
            up_depth=up_depth,
        ),
    }


def _joint(c: Fields, levels: int) -> dict[str, Any]:
    """Return the attributes of a U-Net with joint attention to positions and tokens."""
    act, once = c.get("act_fn", "silu"), c.get("time_embedding_act_fn", None)
    # The activation after the time embedding is applied once, or in each block: the results are the same.
    if (once, c.get("resnet_skip_time_act", False)) not in ((None, False), (act, True)):
        raise ValueError(
            f"time_embedding_act_fn and resnet_skip_time_act must be null and false, or {act!r} and true, got {once!r}"
        )
    if c.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        raise ValueError("mid_block_type UNetMidBlock2DCrossAttn goes with CrossAttn blocks")
    c.expect("reverse_transformer_layers_per_block", None)
    c.ignore("transformer_layers_per_block", "use_linear_projection")  # have no effect
    cross_only = _each(c, "only_cross_attention", False, levels)
    single = not isinstance(c.get("only_cross_attention", False), tuple)
    bottom = c.get("mid_block_only_cross_attention", None)
    bottom = (single and cross_only[0]) if bottom is None else bottom
    text = c.get("addition_embed_type", None) == "text"
    num_heads = c.get("addition_embed_type_num_heads", 64)
    return {
        "head_dim": _same_value(c, "attention_head_dim", 8),
        "resample": "resblock",
        "divide": c.get("resnet_out_scale_factor", 1.0),
        "cross_only": tuple(i for i in range(levels) if cross_only[i]) + ((-1,) if bottom else ()),
        "token_norm": c.expect("cross_attention_norm", None, "group_norm") is not None,
        "pool_num_heads": num_heads if text else None,
        **_image(c),
    }


def _image(c: Fields) -> dict[str, Any]:
    """Return the attributes of Kandinsky 2's projections of the image embedding."""
    pair = c.get("encoder_hid_dim_type", None), c.get("addition_embed_type", None)
    if pair == ("image_proj", "image"):
        return {"image_dim": c.get("encoder_hid_dim", None), "image_tokens": 32}
    if pair == ("text_image_proj", "text_image"):
        return {"image_dim": _same_value(c, "cross_attention_dim", 1280), "image_tokens": 10}
    if "image" in f"{pair}":
        raise ValueError(f"encoder_hid_dim_type and addition_embed_type are not supported together, got {pair}")
    return {}


def _text(c: Fields) -> dict[str, Any]:
    if c.get("cross_attention_dim", 1280) == _widths(c):
        return {"context_dim": None}  # AudioLDM's and MusicLDM's second attentions are to the positions, too
    width, dim = _same_value(c, "cross_attention_dim", 1280), c.get("encoder_hid_dim", None)
    kind = c.expect("encoder_hid_dim_type", None, "text_proj", "text_image_proj", "image_proj", IMAGE_PROMPT)
    if dim is None:
        return {"context_dim": width}
    return {"context_dim": None if kind == "image_proj" else dim, "token_width": width}


def _vector(c: Fields, width: int) -> dict[str, Any]:
    """Return the attributes of the conditions that are added to the noise embedding."""
    c.ignore("addition_embed_type_num_heads")
    added = c.expect("addition_embed_type", None, "text_time", "text", "text_image", "image")
    kind = c.expect("class_embed_type", None, "timestep", "projection", "simple_projection", "identity")
    rows, dim = c.get("num_class_embeds", None), c.get("projection_class_embeddings_input_dim", None)
    label: dict[str, Any] = {"numeric_label": True} if kind == "timestep" else {}
    if kind is None:
        label = {"num_classes": classes(rows)}
    vectors = [{"pooled_dim": dim}] if added == "text_time" else []
    vectors += [{"pooled_dim": _same_value(c, "cross_attention_dim", 1280)}] if added == "text_image" else []
    if kind == "identity":
        vectors.append({"pooled_dim": width, "vector_map": "none"})
    elif kind in ("projection", "simple_projection"):
        vectors.append({"pooled_dim": dim, "vector_map": "two" if kind == "projection" else "one"})
    if added == "text_time" and sinusoidal(c) != Sinusoidal():  # as `networks.configs.sdxl_vector` embeds its numbers
        raise ValueError("addition_embed_type 'text_time' goes with flip_sin_to_cos true and freq_shift 0")
    if len(vectors) > 1 or (added and kind not in (None, "timestep")):
        raise ValueError(f"addition_embed_type {added!r} and class_embed_type {kind!r} are not supported together")
    return label | (vectors[0] if vectors else {})


def _vector_concat(c: Fields) -> bool:
    concat, kind = c.get("class_embeddings_concat", False), c.get("class_embed_type", None)
    if concat and kind not in ("projection", "simple_projection", "identity"):
        raise ValueError(
            "class_embeddings_concat goes with class_embed_type 'projection', 'simple_projection' or 'identity', "
            f"got {kind!r}"
        )
    return concat


def _depths(c: Fields, name: str, levels: int) -> tuple[Any, ...]:
    return tuple(tuple(n) if isinstance(n, list) else n for n in _each(c, name, 1, levels))


def _rename(c: Fields) -> Callable[[str], str]:
    """Return the renaming to the reference's keys, where a vector that replaces the class is "class_embedding"."""
    if c.get("class_embed_type", None) not in ("projection", "simple_projection"):
        return lambda key: key
    return lambda key: key.replace("add_embedding.", "class_embedding.", 1)


def _each(c: Fields, name: str, default: Any, levels: int) -> tuple[Any, ...]:
    """Read a field with one value per level, or one for all levels."""
    value = c.get(name, default)
    value = value if isinstance(value, tuple) else (value,) * levels
    if len(value) != levels:
        raise ValueError(f"{name} must be one value or {levels}, got {value}")
    return value


def _same_value(c: Fields, name: str, default: int) -> int:
    """Read a field that must have the same value for all levels."""
    value = c.get(name, default)
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    if not isinstance(value, int):
        raise ValueError(f"{name} must be the same number for all levels, got {value}")
    return value
