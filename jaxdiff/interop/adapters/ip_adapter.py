"""IP-Adapters' files, as additional weights of a U-Net and a projection of what an image encoder makes of an image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import trees
from jaxdiff.interop.formats.files import Tensor, open_tensors
from jaxdiff.interop.formats.keys import places
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained, ShardingFn
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.conditional_unets import IMAGE_PROMPT
from jaxdiff.interop.models.fill import fill
from jaxdiff.messages import listed
from jaxdiff.networks import ImageProjection, Resampler

__all__ = ["AdapterFunctions", "IPAdapter", "describe_ip_adapter", "is_ip_adapter", "load_ip_adapter", "load_own"]

STAGES = "down", "up", "mid"  # in the order in which the file numbers their attentions
PROJECTION, OWN = "image_proj", "unet"
HEAD = 64  # features of a head in all published resamplers, which the file does not give


class IPAdapter(NamedTuple):
    """A U-Net with an IP-Adapter.

    Attributes:
        unet: the U-Net, whose condition has "image_prompt" and "image_scale"; see `networks.image_prompted`.
        projection: the function of (params, embedding [B, D], or patches [B, N, D] for a "plus" adapter) ->
            "image_prompt" [B, L, D'], and its parameters.
    """

    unet: Pretrained
    projection: Pretrained


class AdapterFunctions(NamedTuple):
    """What an IP-Adapter's own parameters are for.

    Attributes:
        project: (params, embedding or patches) -> the image's tokens.
        unet: (params, the U-Net's params, x, noise, cond, **options) -> what the U-Net predicts.
    """

    project: Callable[..., jax.Array]
    unet: Callable[..., Any]


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
        file: its safetensors file, e.g. ip-adapter_sd15.safetensors; of the kind that takes an image's embedding, or
            its patches ("plus"), not a face's.
        unet: the U-Net, a UNet2DConditionModel, whose parameters are shared and not changed.
        dtype: dtype of the computation; parameters have the file's.
        place: tree of shapes -> tree of shardings, as for `load`.

    Returns:
        The U-Net with the adapter's weights, and the projection.

    Raises:
        ValueError: the file is of another kind, or for another U-Net.
    """
    own = load_own(file, unet.config, dtype=dtype, place=place)
    config = _with_image(unet.config)
    network = Pretrained(architecture(config, dtype).apply, _joined(unet.params, own.params[OWN]), config)

    def project(params: Any, image: jax.Array) -> jax.Array:
        return own.apply.project({PROJECTION: params}, image)

    return IPAdapter(network, Pretrained(project, own.params[PROJECTION], own.config))


def load_own(
    file: str | Path, unet: Mapping[str, Any], *, dtype: Any = jnp.float32, param_dtype: Any = None,
    place: ShardingFn | None = None,
) -> Pretrained:  # fmt: skip
    """Load an IP-Adapter's own parameters and what they are for.

    Args:
        file: see `load_ip_adapter`.
        unet: config of the U-Net that it is for.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters; None: as in the file.
        place: tree of shapes -> tree of shardings, as for `load`.

    Returns:
        `AdapterFunctions`, the parameters, and a config as of `describe_ip_adapter`.

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
        The model, whose `apply` is `AdapterFunctions`, and a config: the class, whether the image's "patches" are
        projected, and their "features" or those of its embedding.

    Raises:
        ValueError: the file is of another kind, or the network no such U-Net.
    """
    if unet["_class_name"] != "UNet2DConditionModel" or unet.get("encoder_hid_dim_type") is not None:
        raise ValueError("an IP-Adapter is for a UNet2DConditionModel that projects no other embedding of its own")
    projection, image = _projection(file, open_tensors(file), dtype)
    spec = architecture(_with_image(unet), dtype)

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        own: dict[str, Any] = {}
        for path, leaf in trees.leaves(spec.init(second)).items():
            if any(".processor." in segment for segment in path):
                trees.put(own, path, leaf)
        return {PROJECTION: projection.init(first, image)["params"], OWN: own}

    def project(params: Any, given: jax.Array) -> jax.Array:
        return projection.apply({"params": params[PROJECTION]}, given)

    def apply(params: Any, of_unet: Any, *args: Any, **options: Any) -> Any:
        return spec.apply(_joined(of_unet, params[OWN]), *args, **options)

    names = _names(jax.eval_shape(init, jax.random.key(0))[OWN], spec.rename)
    config = {"_class_name": "IPAdapter", "patches": image.ndim == 3, "features": image.shape[-1]}
    return ModelSpec(init, AdapterFunctions(project, apply), rename=lambda key: names.get(key, key)), config


def _with_image(unet: Mapping[str, Any]) -> dict[str, Any]:
    return {**unet, "encoder_hid_dim_type": IMAGE_PROMPT}


def _names(own: Any, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Our names of a U-Net's additional weights -> the file's, where its attentions have odd numbers."""
    modules = sorted({key.partition(".processor.")[0] for key in places(own, rename)}, key=_order)
    return {
        f"{OWN}.{module}.processor.to_{to}_ip.0.weight": f"ip_adapter.{2 * i + 1}.to_{to}_ip.weight"
        for i, module in enumerate(modules)
        for to in "kv"
    }


def _order(module: str) -> tuple[int, list[int]]:
    return STAGES.index(module.partition("_")[0]), [int(number) for number in re.findall(r"\.(\d+)", module)]


def _projection(file: str | Path, tensors: Mapping[str, Tensor], dtype: Any) -> tuple[Any, jax.Array]:
    """The module that projects an image, and zeros like what it is given."""
    held = {name.removeprefix(f"{PROJECTION}."): tensor.shape for name, tensor in tensors.items()}
    of_embedding = {"proj.weight": 2, "norm.weight": 1}  # the numbers of axes by name
    of_patches = {"latents": 3, "proj_in.weight": 2, "proj_out.weight": 2, "layers.0.0.to_q.weight": 2}
    of_patches |= {"layers.0.1.1.weight": 2}
    fits = lambda axes: all(len(held.get(name, ())) == count for name, count in axes.items())  # noqa: E731
    if fits(of_embedding):
        (features, given), (width,) = held["proj.weight"], held["norm.weight"]
        if features % width:
            raise ValueError(f"{file} projects an image to {features} features, which are not tokens of {width}")
        return ImageProjection(features // width, width, dtype), jnp.zeros((1, given))
    if not fits(of_patches):
        kinds = (listed(f"{PROJECTION}.{name}" for name in axes) for axes in (of_embedding, of_patches))
        raise ValueError(
            f'{file} must hold {" or ".join(kinds)}, as adapters of an image\'s embedding or of its patches ("plus") do'
        )
    (_, count, inner_width), heads = held["latents"], held["layers.0.0.to_q.weight"][0]
    if heads % HEAD:
        raise ValueError(f"{file} attends to patches with {heads} features, which are not heads of {HEAD}")
    layers = len({name.split(".")[1] for name in held if name.startswith("layers.")})
    module = Resampler(
        count, held["proj_out.weight"][0], inner_width, layers, heads // HEAD, HEAD, held["layers.0.1.1.weight"][0],
        dtype,
    )  # fmt: skip
    return module, jnp.zeros((1, 1, held["proj_in.weight"][1]))


def _joined(params: Any, added: Any) -> Any:
    """A tree with the leaves of both."""
    tree: dict[str, Any] = {}
    for part in (params, added):
        for path, leaf in trees.leaves(part).items():
            trees.put(tree, path, leaf)
    return tree
