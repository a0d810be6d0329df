"""IP-Adapters' files, as additional weights of a U-Net and a projection of image embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import trees
from jaxdiff.interop.formats.files import open_tensors
from jaxdiff.interop.formats.keys import places
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained, ShardingFn
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.conditional_unets import IMAGE_PROMPT
from jaxdiff.interop.models.fill import fill
from jaxdiff.networks import ImageProjection

__all__ = ["IPAdapter", "load_ip_adapter"]

STAGES = "down", "up", "mid"  # in the order in which the file numbers their attentions
PROJECTION = "image_proj."


class IPAdapter(NamedTuple):
    """A U-Net with an IP-Adapter.

    Attributes:
        unet: the U-Net, whose condition has "image_prompt" and "image_scale"; see `networks.image_prompted`.
        projection: the function of (params, embedding [B, D]) -> "image_prompt" [B, L, D'], and its parameters.
    """

    unet: Pretrained
    projection: Pretrained


def load_ip_adapter(
    file: str | Path, unet: Pretrained, *, dtype: Any = jnp.float32, place: ShardingFn | None = None
) -> IPAdapter:
    """Load an IP-Adapter of Stable Diffusion 1, 2 or XL (Ye et al. 2023, arXiv:2308.06721).

    Args:
        file: its safetensors file, e.g. ip-adapter_sd15.safetensors; of the kind that takes an image's embedding, not
            its patches ("plus") or a face.
        unet: the U-Net, a UNet2DConditionModel, whose parameters are shared and not changed.
        dtype: dtype of the computation; parameters have the file's.
        place: tree of shapes -> tree of shardings, as for `load`.

    Returns:
        The U-Net with the adapter's weights, and the projection.

    Raises:
        ValueError: the file is of another kind, or for another U-Net.
    """
    config = {**unet.config, "encoder_hid_dim_type": IMAGE_PROMPT}
    if config["_class_name"] != "UNet2DConditionModel" or unet.config.get("encoder_hid_dim_type") is not None:
        raise ValueError("an IP-Adapter is for a UNet2DConditionModel that projects no other embedding of its own")
    tensors = open_tensors(file)
    names = [f"{PROJECTION}{name}" for name in ("proj.weight", "norm.weight")]
    if any(name not in tensors for name in names):
        raise ValueError(f"{file} must hold {' and '.join(names)}, as adapters of an image's embedding do")
    projection = _projection({k: v for k, v in tensors.items() if k.startswith(PROJECTION)}, dtype)
    spec = architecture(config, dtype)
    own = _own(spec)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(PROJECTION)}
    added = fill(own, rest, param_dtype=None, place=place)
    return IPAdapter(Pretrained(spec.apply, _joined(unet.params, added), config), projection)


def _own(spec: ModelSpec) -> ModelSpec:
    """The adapter's part of a U-Net, by the file's names: its attentions have odd numbers."""
    keep = lambda path: any(".processor." in segment for segment in path)  # noqa: E731

    def init(key: jax.Array) -> Any:
        tree: dict[str, Any] = {}
        for path, leaf in trees.leaves(spec.init(key)).items():
            if keep(path):
                trees.put(tree, path, leaf)
        return tree

    keys = places(jax.eval_shape(init, jax.random.key(0)), spec.rename)
    modules = sorted({key.partition(".processor.")[0] for key in keys}, key=_order)
    of_file = {
        f"ip_adapter.{2 * i + 1}.to_{to}_ip.weight": f"{module}.processor.to_{to}_ip.0.weight"
        for i, module in enumerate(modules)
        for to in "kv"
    }
    return spec._replace(init=init, alias=lambda name: of_file.get(name, name))


def _order(module: str) -> tuple[int, list[int]]:
    return STAGES.index(module.partition("_")[0]), [int(number) for number in re.findall(r"\.(\d+)", module)]


def _projection(tensors: Mapping[str, Any], dtype: Any) -> Pretrained:
    features, width = tensors[f"{PROJECTION}proj.weight"].shape, tensors[f"{PROJECTION}norm.weight"].shape[0]
    if features[0] % width:
        raise ValueError(f"the adapter's projection has {features[0]} features, which are not tokens of {width}")
    module = ImageProjection(features[0] // width, width, dtype)

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, features[1])))["params"]

    def apply(params: Any, embedding: jax.Array) -> Any:
        return module.apply({"params": params}, embedding)

    spec = ModelSpec(init, apply, alias=lambda name: name.removeprefix(PROJECTION))
    return Pretrained(apply, fill(spec, tensors, param_dtype=None, place=None), {"_class_name": "ImageProjection"})


def _joined(params: Any, added: Any) -> Any:
    """A tree with the leaves of both."""
    tree: dict[str, Any] = {}
    for part in (params, added):
        for path, leaf in trees.leaves(part).items():
            trees.put(tree, path, leaf)
    return tree
