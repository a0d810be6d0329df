"""IP-Adapters' files, as additional weights of a U-Net and a projection of what encodes an image or a face."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import trees
from jaxdiff.interop.formats.files import Tensor, open_tensors
from jaxdiff.interop.formats.keys import places
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained, ShardingFn
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.conditional_unets import IMAGE_PROMPT, IMAGE_RANKS
from jaxdiff.interop.models.fill import fill
from jaxdiff.messages import listed
from jaxdiff.networks import FacePlusProjection, FaceProjection, ImageProjection, Resampler
from jaxdiff.types import Params

__all__ = [
    "EMBEDDING", "FACE", "FACE_PLUS", "PATCHES", "IPAdapter", "describe_ip_adapter", "image_prompted_unet",
    "is_ip_adapter", "load_ip_adapter", "load_own",
]  # fmt: skip

STAGES = "down", "up", "mid"  # in the order in which the file numbers their attentions
PROJECTION, OWN = "image_proj", "unet"
RESAMPLER = "perceiver_resampler."  # of what "FaceID Plus" projects
# Of an image, or of a face: what is projected.
EMBEDDING, PATCHES, FACE, FACE_PLUS = "embedding", "patches", "face", "face and patches"
HEAD = 64  # features of a head in all published resamplers, which the file does not give


class IPAdapter(NamedTuple):
    """A U-Net with an IP-Adapter.

    Attributes:
        unet: the U-Net, whose condition has "image_prompt" and "image_scale", of as many images as it has adapters; see
            `networks.image_prompted`.
        projection: the function of (params, embedding [B, D] of an image or a face, or patches [B, N, D] for a "plus"
            adapter) -> an image of "image_prompt", [B, L, D'], and its parameters; for "FaceID Plus", of (params,
            embedding, patches), and for "FaceID Plus v2" of (params, embedding, patches, shortcut), as by
            `networks.FacePlusProjection`. Both have files of the same form.
    """

    unet: Pretrained
    projection: Pretrained


def is_ip_adapter(path: str | Path) -> bool:
    """Whether a path is a file of an IP-Adapter's weights."""
    path = Path(path)
    held = open_tensors(path) if path.is_file() and path.suffix == ".safetensors" else {}
    return any(name.startswith(f"{PROJECTION}.") for name in held)


def load_ip_adapter(
    file: str | Path, unet: Pretrained, *, dtype: Any = jnp.float32, place: ShardingFn | None = None
) -> IPAdapter:
    """Load an IP-Adapter of Stable Diffusion 1, 2 or XL (Ye et al. 2023, arXiv:2308.06721).

    Args:
        file: its safetensors file, e.g. ip-adapter_sd15.safetensors; of the kind that takes an image's embedding, its
            patches ("plus"), a face's embedding ("FaceID"), or both ("FaceID Plus").
        unet: the U-Net, a UNet2DConditionModel, whose parameters are shared and not changed; or one that was loaded
            with other adapters, to which this one is added.
        dtype: dtype of the computation; parameters have the file's.
        place: tree of shapes -> tree of shardings, as for `load`.

    Returns:
        the U-Net with the adapter's weights, and the projection.

    Raises:
        ValueError: the file is of another kind, or for another U-Net.
    """
    own = load_own(file, unet.config, dtype=dtype, place=place)
    config, number = _with_image(unet.config, own.config["rank"]), len(_ranks(unet.config))
    network = Pretrained(architecture(config, dtype).apply, _joined(unet.params, own.params[OWN], number), config)

    def project(params: Params, *image: jax.Array) -> jax.Array:
        return own.apply({PROJECTION: params}, *image)

    return IPAdapter(network, Pretrained(project, own.params[PROJECTION], own.config))


def load_own(
    file: str | Path, unet: Mapping[str, Any], *, dtype: Any = jnp.float32, param_dtype: Any = None,
    place: ShardingFn | None = None,
) -> Pretrained:  # fmt: skip
    """Load an IP-Adapter's own parameters, and the function that projects an image.

    Args:
        file: see `load_ip_adapter`.
        unet: config of the U-Net that it is for.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings, as for `load`.

    Returns:
        the function of (params, embedding, patches or both) -> the image's tokens, the parameters, and a config as of
        `describe_ip_adapter`.

    Raises:
        ValueError: the file is of another kind, or for another U-Net.
    """
    spec, config = describe_ip_adapter(file, unet, dtype)
    return Pretrained(spec.apply, fill(spec, open_tensors(file), param_dtype=param_dtype, place=place), config)


def describe_ip_adapter(
    file: str | Path, unet: Mapping[str, Any], dtype: Any = jnp.float32
) -> tuple[ModelSpec, dict[str, Any]]:
    """Describe an IP-Adapter by the shapes of its tensors.

    Args:
        file: see `load_ip_adapter`.
        unet: config of the U-Net that it is for.
        dtype: dtype of the computation.

    Returns:
        the model, whose `apply` projects an image, and a config: the class, what it "projects" (EMBEDDING, PATCHES,
        FACE or FACE_PLUS) of how many "features" (of both, the face's; those of its "patches" besides), and the "rank"
        of its changes of attentions, or 0.

    Raises:
        ValueError: the file is of another kind, or the network no such U-Net.
    """
    plain = {name: value for name, value in unet.items() if name != IMAGE_RANKS}
    if unet["_class_name"] != "UNet2DConditionModel" or (not _ranks(unet) and unet.get("encoder_hid_dim_type")):
        raise ValueError("an IP-Adapter is for a UNet2DConditionModel that projects no other embedding of its own")
    tensors = open_tensors(file)
    projection, image = _projection(file, tensors, dtype)
    text = unet.get("cross_attention_dim", 1280)
    if isinstance(text, int) and projection.width != text:
        raise ValueError(
            f"{file} is for a U-Net whose cross_attention_dim is {projection.width}, and that of this one is {text}"
        )
    downs = [tensor.shape for name, tensor in tensors.items() if name.endswith("_lora.down.weight")]
    rank = downs[0][0] if downs and len(downs[0]) == 2 else 0
    spec = architecture(_with_image(plain, rank), dtype)

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        own: dict[str, Any] = {}
        for path, leaf in trees.leaves(spec.init(second)).items():
            if any(".processor." in segment for segment in path):
                trees.put(own, path, leaf)
        return {PROJECTION: projection.init(first, *image)["params"], OWN: own}

    def project(params: Params, *given: jax.Array) -> jax.Array:
        return projection.apply({"params": params[PROJECTION]}, *given)

    names = _names(jax.eval_shape(init, jax.random.key(0))[OWN], spec.rename)
    kinds = {FaceProjection: FACE, FacePlusProjection: FACE_PLUS, ImageProjection: EMBEDDING, Resampler: PATCHES}
    kind, features = kinds[type(projection)], image[0].shape[-1]
    config = {"_class_name": "IPAdapter", "projects": kind, "features": features, "rank": rank}
    if kind == FACE_PLUS:
        config["patches"] = image[1].shape[-1]
    return ModelSpec(init, project, rename=lambda key: names.get(key, key)), config


def image_prompted_unet(unet: Mapping[str, Any], ranks: Sequence[int], dtype: Any) -> Callable[..., Any]:
    """Make a U-Net with several IP-Adapters, whose parameters are none of its own.

    Args:
        unet: config of the U-Net.
        ranks: of the adapters' configs, by which there is one at least.
        dtype: dtype of the computation.

    Returns:
        (parameters of each adapter, the U-Net's, x, noise, cond, **options) -> what the U-Net predicts.
    """
    apply = architecture(_with_image(unet, *ranks), dtype).apply

    def of_adapters(adapters: Sequence[Any], of_unet: Any, *args: Any, **options: Any) -> Any:
        for number, params in enumerate(adapters):
            of_unet = _joined(of_unet, params[OWN], number)
        return apply(of_unet, *args, **options)

    return of_adapters


def _ranks(unet: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the adapters that a U-Net has already."""
    return tuple(unet.get(IMAGE_RANKS, ()))


def _with_image(unet: Mapping[str, Any], *ranks: int) -> dict[str, Any]:
    return {**unet, "encoder_hid_dim_type": IMAGE_PROMPT, IMAGE_RANKS: [*_ranks(unet), *ranks]}


def _names(own: Any, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Our names of a U-Net's additional weights -> the file's, which numbers both attentions of all blocks."""
    split = {key: re.fullmatch(r"(.+)\.attn([12])\.processor\.(\w+)\.0(.*)", key) for key in places(own, rename)}
    found = {key: match.groups() for key, match in split.items() if match}
    blocks = sorted({block for block, *_ in found.values()}, key=_order)
    return {
        f"{OWN}.{key}": f"ip_adapter.{2 * blocks.index(block) + int(attention) - 1}.{name}{rest}"
        for key, (block, attention, name, rest) in found.items()
    }


def _order(block: str) -> tuple[int, list[int]]:
    return STAGES.index(block.partition("_")[0]), [int(number) for number in re.findall(r"\.(\d+)", block)]


def _projection(file: str | Path, tensors: Mapping[str, Tensor], dtype: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """The module that projects an image, and zeros like what it is given."""
    held = {name.removeprefix(f"{PROJECTION}."): tensor.shape for name, tensor in tensors.items()}
    of_embedding = {"proj.weight": 2, "norm.weight": 1}  # the numbers of axes by name
    of_face = {"proj.0.weight": 2, "proj.2.weight": 2, "norm.weight": 1}
    resampled = {"proj_in.weight": 2, "proj_out.weight": 2, "layers.0.0.to_q.weight": 2, "layers.0.1.1.weight": 2}
    of_patches = {"latents": 3, **resampled}
    of_both = of_face | {f"{RESAMPLER}{name}": axes for name, axes in resampled.items()}
    fits = lambda axes: all(len(held.get(name, ())) == count for name, count in axes.items())  # noqa: E731
    if fits(of_both):
        return _face_plus(file, held, dtype)
    if any(name.startswith(RESAMPLER) for name in held):
        wanted = listed(f"{PROJECTION}.{name}" for name in of_both)
        raise ValueError(f"{file} must hold {wanted}, as an adapter of a face's embedding and patches does")
    if fits(of_embedding) or fits(of_face):
        last = "proj.weight" if fits(of_embedding) else "proj.2.weight"
        (width,), inner = held["norm.weight"], held[last][1]
        count = _count(file, held[last][0], width)
        if fits(of_embedding):
            return ImageProjection(count, width, dtype), (jnp.zeros((1, inner)),)
        return FaceProjection(count, width, inner, dtype), (jnp.zeros((1, held["proj.0.weight"][1])),)
    if not fits(of_patches):
        kinds = (listed(f"{PROJECTION}.{name}" for name in axes) for axes in (of_embedding, of_face, of_patches))
        raise ValueError(
            f"{file} must hold {' or '.join(kinds)}, as adapters of the embedding of an image or of a face or of an "
            'image\'s patches ("plus") do'
        )
    (_, count, inner_width), width = held["latents"], held["proj_out.weight"][0]
    module = Resampler(count, width, inner_width, *_layers(file, held), dtype)
    return module, (jnp.zeros((1, 1, held["proj_in.weight"][1])),)


def _face_plus(file: str | Path, held: Mapping[str, Any], dtype: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """`_projection` of a face's embedding and of patches."""
    (features, inner), (width,) = held["proj.2.weight"], held["norm.weight"]
    resampler = {name.removeprefix(RESAMPLER): shape for name, shape in held.items() if name.startswith(RESAMPLER)}
    widths = {width, resampler["proj_in.weight"][0], *resampler["proj_out.weight"]}
    if len(widths) > 1:
        raise ValueError(f"{file} must have tokens of one width, got {listed(map(str, sorted(widths)))} features")
    module = FacePlusProjection(_count(file, features, width), width, inner, *_layers(file, resampler), dtype)
    return module, (jnp.zeros((1, held["proj.0.weight"][1])), jnp.zeros((1, 1, resampler["proj_in.weight"][1])))


def _count(file: str | Path, features: int, width: int) -> int:
    """The number of tokens of a width."""
    if not width or features % width:
        raise ValueError(f"{file} projects an image to {features} features, which are not tokens of {width}")
    return features // width


def _layers(file: str | Path, resampler: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The numbers of a resampler's layers, heads, features of a head, and inner features."""
    heads = resampler["layers.0.0.to_q.weight"][0]
    if heads % HEAD:
        raise ValueError(f"{file} attends to patches with {heads} features, which are not heads of {HEAD}")
    layers = len({name.split(".")[1] for name in resampler if name.startswith("layers.")})
    return layers, heads // HEAD, HEAD, resampler["layers.0.1.1.weight"][0]


def _joined(params: Mapping[str, Any], added: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A U-Net's parameters with those of its adapter of a number, which names itself the first."""
    tree = dict(params)
    for name, value in added.items():
        numbered = re.sub(r"(\.processor\.\w+)\.0", rf"\g<1>.{number}", name)
        tree[numbered] = _joined(tree.get(numbered, {}), value, number) if isinstance(value, Mapping) else value
    return tree
