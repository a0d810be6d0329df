"""U-Nets of diffusers: UNet2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.architecture import Architecture, Fields
from jaxdiff.networks import Fourier, Sinusoidal, UNet, as_apply, init

__all__ = ["unet_2d"]


def unet_2d(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' UNet2DModel: DDPM, ADM and plain U-Nets.

    Args:
        config: fields of its config.json.
        dtype: of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "UNet2DModel")
    c.skip("sample_size", "_class_name")
    raise NotImplementedError
