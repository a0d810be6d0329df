"""The classes of other projects, by the name in their config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop.architecture import Architecture
from jaxdiff.interop.transformers import dit
from jaxdiff.interop.unets import unet_2d
from jaxdiff.interop.uvit import uvit

__all__ = ["CLASSES"]

# (fields of the config, dtype of the computation) -> what they describe.
CLASSES: dict[str, Callable[[Mapping[str, Any], Any], Architecture]] = {
    "DiTTransformer2DModel": dit,
    "UNet2DModel": unet_2d,
    "UViT": uvit,
}
