"""LPIPS from its two files: VGG16 of torchvision, and the linear weights of the authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.legacy_torch import read_legacy
from jaxdiff.interop.models.architecture import ModelSpec, Pretrained
from jaxdiff.interop.models.efficientnet import Held
from jaxdiff.interop.models.fill import fill
from jaxdiff.networks.lpips import LPIPS
from jaxdiff.types import Params

__all__ = ["lpips"]


def lpips(vgg: str | Path, linear: str | Path, *, dtype: Any = jnp.float32) -> Pretrained:
    """Load LPIPS, version 0.1 with VGG16.

    Args:
        vgg: torchvision's vgg16-397923af.pth, in PyTorch's old format.
        linear: the authors' weights/v0.1/vgg.pth, likewise.
        dtype: dtype of the computation.

    Returns:
        the distance; apply(params, a, b), images [B, H, W, 3] in [-1, 1] -> [B].

    Raises:
        ValueError: a file does not exist, or is not the one that is meant.
    """
    module = LPIPS(dtype)

    def init(key: jax.Array) -> Any:
        image = jnp.zeros((1, 16, 16, 3), jnp.float32)
        return module.init(key, image, image)["params"]

    def apply(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
        return module.apply({"params": params}, a, b)  # type: ignore[return-value]

    spec = ModelSpec(init, apply, alias=_alias)
    tensors: dict[str, Any] = {name: Held(array) for path in (vgg, linear) for name, array in read_legacy(path).items()}
    return Pretrained(apply, fill(spec, tensors, param_dtype=None, place=None), {"_class_name": "LPIPS"})


def _alias(key: str) -> str | None:
    return None if key.startswith("classifier.") else key
