"""The networks of EDM and EDM2: from configs, and configs from the original checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.formats.fields import COUNT, SIZE
from jaxdiff.interop.formats.files import Tensor
from jaxdiff.interop.formats.shapes import check_count, shape, side
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.networks import as_apply, init
from jaxdiff.networks.edm2 import EDM2UNet
from jaxdiff.networks.song_unet import DhariwalUNet, SongUNet
from jaxdiff.schema import each, optional

__all__ = ["dhariwal_unet", "edm2_config", "edm2_unet", "edm_config", "song_unet"]

Config = dict[str, Any]
Tensors = Mapping[str, Tensor]
MULTIPLES = {"channel_mult": each(COUNT, 16)}  # of whole numbers here


def song_unet(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """EDM's SongUNet: DDPM++ and NCSN++, within a preconditioner.

    Args:
        config: the arguments of the class.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is missing or not supported.
    """
    c = Fields(config, "SongUNet", {**MULTIPLES, "out_channels": optional(SIZE)})
    module = SongUNet(
        **_shared(c, model_channels=128, mults=(1, 2, 2, 2), num_blocks=4, attention=(16,)),
        embedding=c.get("embedding_type", "positional"),
        noise_mult=c.get("channel_mult_noise", 1),
        encoder=c.get("encoder_type", "standard"),
        decoder=c.get("decoder_type", "standard"),
        resample_filter=c.get("resample_filter", (1, 1)),
        out_channels=c.get("out_channels", None),
        dtype=dtype,
    )
    return _built(module, c, "model.")


def dhariwal_unet(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """EDM's DhariwalUNet: ADM, within a preconditioner.

    With twice as many channels out as in, the variance is learned: the network returns (F, frac), as `UNet` does.

    Args:
        config: the arguments of the class.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is missing or not supported.
    """
    c = Fields(config, "DhariwalUNet", {**MULTIPLES, "out_channels": optional(SIZE)})
    channels, out = c.get("in_channels", None), c.get("out_channels", None)
    learned = channels is not None and out == 2 * channels
    module = DhariwalUNet(
        **_shared(c, model_channels=192, mults=(1, 2, 3, 4), num_blocks=3, attention=(32, 16, 8)),
        out_channels=channels if learned else out,
        learned_variance=learned,
        dtype=dtype,
    )
    return _built(module, c, "model.")


def edm2_unet(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """EDM2's network within its preconditioner, including the head of the learned log-variance.

    Args:
        config: the arguments of its Precond, UNet and Block; without that head, logvar_channels is 0.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is missing or not supported.
    """
    some = {name: optional(COUNT) for name in ("channel_mult_emb", "channel_mult_noise")}
    c = Fields(config, "EDM2UNet", MULTIPLES | some)
    c.ignore("use_fp16", "sigma_data")
    model_channels = c.get("model_channels", 192)
    noise, emb = c.get("channel_mult_noise", None), c.get("channel_mult_emb", None)
    module = EDM2UNet(
        resolution=_needed(c, "img_resolution"),
        widths=tuple(model_channels * mult for mult in c.get("channel_mult", (1, 2, 3, 4))),
        num_blocks=c.get("num_blocks", 3),
        attention=c.get("attn_resolutions", (16, 8)),
        head_dim=c.get("channels_per_head", 64),
        noise_dim=None if noise is None else model_channels * noise,
        emb_dim=None if emb is None else model_channels * emb,
        num_classes=_needed(c, "label_dim") or None,
        label_balance=c.get("label_balance", 0.5),
        concat_balance=c.get("concat_balance", 0.5),
        balances=(c.get("res_balance", 0.3), c.get("attn_balance", 0.3)),
        resample_filter=c.get("resample_filter", (1, 1)),
        clip=c.get("clip_act", 256),
        dropout=c.get("dropout", 0),
        log_variance=c.get("logvar_channels", 128) or None,
        dtype=dtype,
    )
    return _built(module, c, "unet.", channels="img_channels")


def _shared(
    c: Fields, *, model_channels: int, mults: tuple[int, ...], num_blocks: int, attention: tuple[int, ...]
) -> Config:
    """Return the attributes that SongUNet and DhariwalUNet share."""
    c.ignore("label_dropout")
    width = c.get("model_channels", model_channels)
    return {
        "resolution": _needed(c, "img_resolution"),
        "model_channels": width,
        "widths": tuple(width * mult for mult in c.get("channel_mult", mults)),
        "emb_mult": c.get("channel_mult_emb", 4),
        "num_blocks": c.get("num_blocks", num_blocks),
        "attention": c.get("attn_resolutions", attention),
        "dropout": c.get("dropout", 0.1),
        "num_classes": c.get("label_dim", 0) or None,
        "augment_dim": c.get("augment_dim", 0) or None,
    }


def _needed(c: Fields, name: str) -> int:
    value = c.get(name, None)
    if not isinstance(value, int):
        raise ValueError(f"the config must give {name}, a whole number, got {value!r}")
    return value


def _built(module: Any, c: Fields, prefix: str, *, channels: str = "in_channels") -> ModelSpec:
    c.ignore("_class_name")
    size = (2 ** (len(module.widths) - 1),) * 2
    x = jax.ShapeDtypeStruct((1, *size, _needed(c, channels)), jnp.float32)
    cond = {} if module.num_classes is None else {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    c.check_all_read()
    rename = partial(_within, prefix)
    return ModelSpec(partial(init, module, x=x, cond=cond), as_apply(module), rename=rename, alias=_parameter)


def _within(prefix: str, key: str) -> str:
    return key if key.startswith("logvar_") else prefix + key


def _parameter(key: str) -> str | None:
    """Return None for filters, and for the table of noise levels in iDDPM's preconditioner."""
    return None if key.endswith(".resample_filter") or key == "u" else key


def edm_config(tensors: Tensors, overrides: Mapping[str, Any]) -> Config:
    """Infer the config of an EDM checkpoint, except for the dropout, which sampling does not use.

    Args:
        tensors: tensors of EDM's preconditioner, by name.
        overrides: fields that replace the inferred ones.

    Returns:
        a config of SongUNet or DhariwalUNet.

    Raises:
        ValueError: the tensors are not those of such a network.
    """
    adm = "model.out_norm.weight" in tensors
    sizes, num_blocks = _layout(tensors, "model.")
    enc = [f"model.enc.{size}x{size}_block0." for size in sizes]
    stem = shape(tensors, f"model.enc.{sizes[0]}x{sizes[0]}_conv.weight", 4)
    features, emb = (shape(tensors, f"model.map_layer{i}.weight", 2) for i in (0, 1))
    model_channels = features[1] if adm else stem[0]
    out = "model.out_conv" if adm else f"model.dec.{sizes[0]}x{sizes[0]}_aux_conv"
    config: Config = {
        "_class_name": "DhariwalUNet" if adm else "SongUNet",
        "img_resolution": sizes[0],
        "in_channels": stem[1],
        "out_channels": side(tensors, f"{out}.weight", 0),
        "label_dim": _inputs(tensors, "model.map_label.weight"),
        "augment_dim": _inputs(tensors, "model.map_augment.weight"),
        "model_channels": model_channels,
        "channel_mult": [_multiple(side(tensors, f"{name}conv1.weight", 0), model_channels) for name in enc],
        "channel_mult_emb": _multiple(emb[0], model_channels),
        "num_blocks": num_blocks,
        "attn_resolutions": [s for s, name in zip(sizes, enc, strict=True) if f"{name}qkv.weight" in tensors],
    }
    if adm:
        return config | dict(overrides)
    aux = {kind for kind in ("skip", "residual") if any(f"_aux_{kind}." in name for name in tensors)}
    images = sum(name.endswith("_aux_conv.weight") for name in tensors)
    config |= {
        "embedding_type": "fourier" if "model.map_noise.freqs" in tensors else "positional",
        "channel_mult_noise": _multiple(features[1], model_channels),
        "encoder_type": aux.pop() if aux else "standard",
        "decoder_type": "skip" if images > 1 else "standard",
    }
    if "resample_filter" not in overrides and len(sizes) > 1:
        config["resample_filter"] = _filter(tensors)
    return config | dict(overrides)


def edm2_config(tensors: Tensors, overrides: Mapping[str, Any]) -> Config:
    """Infer the config of an EDM2 checkpoint.

    The balances of sums, the size of heads, the filter and the bound of activations do not follow from the tensors:
    they are those of the published networks.

    Args:
        tensors: tensors of EDM2's preconditioner, by name.
        overrides: fields that replace the inferred or published ones.

    Returns:
        a config of EDM2UNet.

    Raises:
        ValueError: the tensors are not those of such a network.
    """
    sizes, num_blocks = _layout(tensors, "unet.")
    enc = [f"unet.enc.{size}x{size}_block0." for size in sizes]
    widths = [side(tensors, f"{name}conv_res1.weight", 0) for name in enc]
    emb, noise = shape(tensors, "unet.emb_noise.weight", 2)
    model_channels = math.gcd(emb, noise, *widths)
    config = {
        "_class_name": "EDM2UNet",
        "img_resolution": sizes[0],
        "img_channels": side(tensors, f"unet.enc.{sizes[0]}x{sizes[0]}_conv.weight", 1) - 1,
        "label_dim": _inputs(tensors, "unet.emb_label.weight"),
        "model_channels": model_channels,
        "channel_mult": [width // model_channels for width in widths],
        "channel_mult_noise": noise // model_channels,
        "channel_mult_emb": emb // model_channels,
        "num_blocks": num_blocks,
        "attn_resolutions": [s for s, name in zip(sizes, enc, strict=True) if f"{name}attn_qkv.weight" in tensors],
        "logvar_channels": _inputs(tensors, "logvar_linear.weight"),
    }
    return config | dict(overrides)


def _layout(tensors: Tensors, prefix: str) -> tuple[list[int], int]:
    """Return the sizes of the encoder's levels, the largest first, and the number of blocks at each."""
    matches = [re.match(re.escape(prefix) + r"enc\.(\d+)x\1_block(\d+)\.", name) for name in tensors]
    pairs = {(int(m[1]), int(m[2])) for m in matches if m}
    sizes = sorted({size for size, _ in pairs}, reverse=True)
    if not sizes or sizes != [sizes[0] >> i for i in range(len(sizes))]:
        raise ValueError(f"no levels of an encoder whose sizes halve, {prefix}enc.*_block*: got sizes {sizes}")
    return sizes, check_count(tensors, 1 + max(index for _, index in pairs), "num_blocks")


def _inputs(tensors: Tensors, name: str) -> int:
    """Return the number of inputs of a layer, 0 if there is none."""
    return side(tensors, name, 1) if name in tensors else 0


def _multiple(width: int, model_channels: int) -> int:
    if width % model_channels:
        raise ValueError(f"every width must be a multiple of the first convolution's, {model_channels}, got {width}")
    return width // model_channels


def _filter(tensors: Tensors) -> list[float]:
    names = sorted(name for name in tensors if name.endswith(".resample_filter"))
    if not names:
        raise ValueError("no resample_filter is in the file, so the config must give it")
    resample_filter = tensors[names[0]][()].astype("float64").sum((0, 1, 2))
    return [round(float(tap), 4) for tap in resample_filter / resample_filter.min()]
