"""What steers a pipeline by pictures: checked against its network, and added to it at scales that follow the level."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.guidance.base import Scale
from jaxdiff.interop.adapters.ip_adapter import FACE, FACE_PLUS, PATCHES, describe_ip_adapter, is_ip_adapter
from jaxdiff.interop.sources import read_fields
from jaxdiff.levels import Level
from jaxdiff.messages import listed
from jaxdiff.networks import add_controls, add_features, controlled
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.text import clip_pixels
from jaxdiff.text_to_image.prompts import Cond, Models, PipelineSpec
from jaxdiff.types import Params

__all__ = [
    "IMAGE_PROMPTED",
    "HintShape",
    "apply_at",
    "check_controls",
    "check_hints",
    "controlled_apply",
    "encode_hints",
    "find_controls",
    "hint_shape",
    "is_image",
]

# Conditions of a U-Net that its ControlNets don't take: the masked picture, and the distilled guidance.
OWN = "concat", "guidance"
# The names of controls among a pipeline's models, which are diffusers', by their class.
NAMES = {"ControlNetModel": "controlnet", "T2IAdapter": "adapter"}
IP_ADAPTER, IMAGE_ENCODER = "ip_adapter", "image_encoder"
SHORTCUT = "shortcut"  # in the hint of a face and its picture, see `networks.FacePlusProjection`
# Of one picture, (height, width, channels), None: any, in colour; (D,): a face's embedding; or of several by name.
HintShape = tuple[int, ...] | None | Mapping[str, tuple[int, ...] | None]
IMAGE_PROMPTED = "image_prompted_unet"  # name of the function of the U-Net with its IP-Adapters among the models


def find_controls(
    controls: Sequence[str | Path], pipeline: Path, network: Path
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Name what steers a pipeline, and find the image encoders of IP-Adapters.

    Args:
        controls: directories of ControlNets and T2I-Adapters, and files of IP-Adapters.
        pipeline: the pipeline's directory or file.
        network: its network.

    Returns:
        the names of the controls, and where they and the image encoders lie, by their names.

    Raises:
        ValueError: a control is of another class, or there is an IP-Adapter without its image encoder.
    """
    names: list[str] = []
    paths: dict[str, Path] = {}
    for path in map(Path, controls):
        if is_ip_adapter(path):
            kind = IP_ADAPTER
        else:
            of_class = read_fields(path)["_class_name"]
            if of_class not in NAMES:
                raise ValueError(f"a control must be a {' or a '.join(NAMES)}, or an IP-Adapter's file, got {of_class}")
            kind = NAMES[of_class]
        count = sum(re.sub(r"_\d+$", "", name) == kind for name in names)
        names.append(f"{kind}_{count}" if count else kind)
        paths[names[-1]] = path
        if kind == IP_ADAPTER and (encoder := _image_encoder(path, pipeline, network)) is not None:
            paths[_encoder_of(names[-1])] = encoder
    return tuple(names), paths


def _encoder_of(name: str) -> str:
    """The name of an IP-Adapter's image encoder."""
    return name.replace(IP_ADAPTER, IMAGE_ENCODER)


def is_image(name: str) -> bool:
    """Whether a control is an IP-Adapter."""
    return name.startswith(IP_ADAPTER)


def _image_encoder(file: Path, pipeline: Path, network: Path) -> Path | None:
    """The image encoder whose outputs an IP-Adapter takes: near its file, as they are published, or the pipeline's."""
    _, config = describe_ip_adapter(file, read_fields(network))
    if config["projects"] == FACE:
        return None
    of_patches = config["projects"] in (PATCHES, FACE_PLUS)
    features = config.get("patches", config["features"])
    folders = [file.parent / IMAGE_ENCODER, file.parent.parent / "models" / IMAGE_ENCODER, pipeline / IMAGE_ENCODER]
    for folder in folders:
        if (folder / "config.json").is_file():
            encoder = read_fields(folder)
            width, pooled = encoder.get("hidden_size", 768), encoder.get("projection_dim", 512)
            if features == (width if of_patches else pooled):
                return folder
    what = "a patch" if of_patches else "a picture"
    raise ValueError(
        f"{file} needs CLIP's image encoder with {features} features of {what}, in one of the folders "
        f"{listed(map(str, folders))}"
    )


def hint_shape(models: Models, name: str, size: tuple[int, int]) -> HintShape:
    """The shape of a control's picture, or of the arrays that describe a face."""
    if is_image(name):
        config = models.config[name]
        if config["projects"] == FACE_PLUS:
            return {"embedding": (config["features"],), "picture": None}
        return (config["features"],) if config["projects"] == FACE else None
    channels = "in_channels" if _is_adapter(name) else "conditioning_channels"
    return (*size, models.config[name].get(channels, 3))


def check_controls(layout: PipelineSpec, models: Models, names: Sequence[str]) -> None:
    """Check what steers a pipeline against its network.

    Args:
        layout: the kind of pipeline.
        models: its models.
        names: of the controls among them.

    Raises:
        ValueError: the network takes none, or one is for another network.
    """
    own = models.config[layout.network]
    if names and own["_class_name"] != "UNet2DConditionModel":
        raise ValueError(f"controls are for a UNet2DConditionModel, got {own['_class_name']}")
    for name in names:
        config = models.config[name]
        if is_image(name):
            continue  # its description is checked against the network
        if _is_adapter(name):
            _check_adapter(name, config, own, models.apply["vae"].factor)
            continue
        fields = "block_out_channels", "cross_attention_dim", "layers_per_block", "addition_embed_type"
        for field in fields:
            mine, theirs = (_plain(c.get(field)) for c in (own, config))
            if field in own and field in config and mine != theirs:
                raise ValueError(f"{name} is not for this U-Net: its {field} is {theirs}, and the U-Net's is {mine}")
        factor = 2 ** (len(config.get("conditioning_embedding_out_channels", range(4))) - 1)
        if factor != models.apply["vae"].factor:
            raise ValueError(
                f"{name} takes hints {factor} times the size of its latents, and the autoencoder's pictures are "
                f"{models.apply['vae'].factor} times theirs"
            )


def _check_adapter(name: str, config: Mapping[str, Any], unet: Mapping[str, Any], factor: int) -> None:
    """Raise ValueError unless an adapter's features are those of a U-Net's levels, or of these and its bottom."""
    mine, theirs = list(unet["block_out_channels"]), list(config.get("channels", (320, 640, 1280, 1280)))
    theirs += theirs[-1:] * (config.get("adapter_type") == "light_adapter")
    if theirs not in (mine, mine + mine[-1:]):
        raise ValueError(f"{name} is not for this U-Net: its features have {theirs} channels, and the U-Net's {mine}")
    if config.get("downscale_factor", 8) not in (factor, 2 * factor):
        raise ValueError(
            f"{name} takes hints {config.get('downscale_factor', 8)} times the size of its features, and the "
            f"autoencoder's pictures are {factor} times its latents"
        )


def check_hints(models: Models, names: Sequence[str], hints: Sequence[Any], shape: tuple[int, ...]) -> None:
    """Check the pictures that steer a pipeline.

    Args:
        models: a pipeline's models.
        names: of the controls among them.
        hints: one for each, an array, or of a face with its picture a dict of arrays.
        shape: (B, height, width) of the pictures.

    Raises:
        ValueError: another number of hints, or another shape or dtype of one.
    """
    if len(hints) != len(names):
        raise ValueError(f"a pipeline of {len(names)} controls takes as many hints, got {len(hints)}")
    batch, *size = shape
    for name, hint in zip(names, hints, strict=True):
        of_one = hint_shape(models, name, (size[0], size[1]))
        if not isinstance(of_one, Mapping):
            _check_hint(name, hint, batch, of_one)
            continue
        if not isinstance(hint, Mapping) or not of_one.keys() <= hint.keys() <= {*of_one, SHORTCUT}:
            got = listed(hint) if isinstance(hint, Mapping) else type(hint).__name__
            raise ValueError(f"hints of {name} must be a dict of {listed(of_one)}, and maybe {SHORTCUT}, got {got}")
        for key, array in hint.items():
            _check_hint(f"{name}, {key},", array, batch, of_one.get(key, ()))


def _check_hint(name: str, hint: Any, batch: int, of_one: tuple[int, ...] | None) -> None:
    got = (None, type(hint).__name__) if isinstance(hint, Mapping) else (hint.shape, f"{hint.dtype}, {hint.shape}")
    wanted = (batch, *((*(got[0] or ())[1:3], 3) if of_one is None else of_one))
    if got[0] != wanted or not jnp.issubdtype(hint.dtype, jnp.floating):
        kind = {1: "weights", 2: "embeddings of faces"}.get(len(wanted), "floats in [0, 1]")
        allowed = (batch, "H", "W", 3) if of_one is None else wanted
        raise ValueError(f"hints of {name} must be {kind} of shape {allowed}, got {got[1]}")


def encode_hints(models: Models, params: Params, names: Sequence[str], hints: Sequence[Any]) -> tuple[Cond, Cond]:
    """Compute what a network is told of hints, once per picture.

    Args:
        models: a pipeline's models.
        params: of all models.
        names: of the controls among them.
        hints: one for each.

    Returns:
        the entries of the network's condition, for prompts and for negative ones: of IP-Adapters these are an
        embedding of zeros or the encoder's patches of a picture of zeros, as in their training.
    """
    cond: Cond = {}
    null: Cond = {}
    given = dict(zip(names, hints, strict=True))
    if nets := _nets(names):
        cond["hint"] = tuple(given[name] for name in nets)
    if adapters := [name for name in names if _is_adapter(name)]:
        cond["features"] = tuple(models.apply[name](params[name], given[name]) for name in adapters)
    if images := list(filter(is_image, names)):
        both = [_image_prompt(models, params, name, given[name]) for name in images]
        cond["image_prompt"], null["image_prompt"] = zip(*both, strict=True)
    return cond, cond | null


def _image_prompt(models: Models, params: Params, name: str, given: Any) -> tuple[Array, Array]:
    """The tokens of a picture, of a face's embedding, or of a face and its picture, and those of none."""
    kind, encoder = models.config[name]["projects"], _encoder_of(name)

    def encode(picture: Array, layer: int | None = None) -> tuple[Array, Array]:
        pixels = clip_pixels(picture, models.config[encoder].get("image_size", 224))
        if layer is None:
            pooled = models.apply[encoder](params[encoder], pixels).pooled
            return pooled, jnp.zeros_like(pooled[:1])
        both = pixels, jnp.zeros_like(pixels[:1])
        image, none = (models.apply[encoder](params[encoder], each, layer=layer).hidden for each in both)
        return image, none

    def project(*image: Array) -> Array:
        return models.apply[name](params[name], *image)

    if kind == FACE_PLUS:
        face = given["embedding"]
        patches, none = encode(given["picture"], layer=-2)
        weight = [given[SHORTCUT]] if SHORTCUT in given else []  # of Plus v2
        return project(face, patches, *weight), project(
            jnp.zeros_like(face), jnp.broadcast_to(none, patches.shape), *weight
        )
    if kind == FACE:
        image, none = given, jnp.zeros_like(given[:1])
    else:
        image, none = encode(given, layer=-2 if kind == PATCHES else None)
    tokens = project(image)
    return tokens, jnp.broadcast_to(project(none), tokens.shape)


def controlled_apply(
    models: Models, network: str, names: Sequence[str], scales: Scale | Sequence[Scale]
) -> Callable[[Level], Callable[..., Any]]:
    """Make the network with what steers it.

    Args:
        models: a pipeline's models.
        network: name of the U-Net.
        names: of the controls.
        scales: of each, or one for all: a number, or a function of the level that returns one.

    Returns:
        level -> apply(params of all models, x, noise[B], cond with the entries of `encode_hints`).

    Raises:
        ValueError: another number of scales.
    """
    each = list(scales) if isinstance(scales, Sequence) else [scales] * len(names)
    if len(each) != len(names):
        raise ValueError(f"{len(names)} controls take one scale, or as many, got {len(each)}")
    return lambda level: apply_at(models, network, names, [s(level) if callable(s) else s for s in each])


def apply_at(models: Models, network: str, names: Sequence[str], scales: Sequence[float | Array]) -> Callable[..., Any]:
    """Make the network with what steers it at one scale each.

    Args:
        models, network, names: as for `controlled_apply`.
        scales: of each, a number or [B].

    Returns:
        apply(params of all models, x, noise[B], cond with the entries of `encode_hints`).
    """
    numbers = dict(zip(names, scales, strict=True))
    nets, images = _nets(names), list(filter(is_image, names))
    of_features = [jnp.reshape(jnp.asarray(numbers[name]), (-1, 1, 1, 1)) for name in filter(_is_adapter, names)]

    def apply(params: Mapping[str, Any], x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
        unet, cond = models.apply[network], dict(cond)
        if images:
            unet = partial(models.apply[IMAGE_PROMPTED], [params[name] for name in images])
            lam = [jnp.asarray(numbers[name], at_least_float32(x.dtype)) for name in images]
            cond["image_scale"] = tuple(jnp.broadcast_to(each, noise.shape) for each in lam)
        if of_features:
            cond["features"] = add_features(cond["features"], of_features)
        if not nets:
            return unet(params[network], x, noise, cond, **options)
        followed = [lambda noise, number=numbers[name]: number for name in nets]
        control = add_controls([_without(models.apply[name]) for name in nets], followed)
        own = {"controlnet": tuple(params[name] for name in nets), "unet": params[network]}
        return controlled(control, unet)(own, x, noise, cond, **options)

    return apply


def _nets(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith(NAMES["ControlNetModel"])]


def _is_adapter(name: str) -> bool:
    """Whether a control is a T2I-Adapter."""
    return name.startswith(NAMES["T2IAdapter"])


def _without(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A ControlNet that gets no conditions of the U-Net alone."""

    def control(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Any:
        return apply(params, x, noise, {k: v for k, v in cond.items() if k not in OWN}, **options)

    return control


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
