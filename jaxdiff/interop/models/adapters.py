"""T2I-Adapters of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.networks import T2IAdapter
from jaxdiff.types import Params

__all__ = ["t2i_adapter"]

KINDS: dict[str, Any] = {"full_adapter": "full", "full_adapter_xl": "xl", "light_adapter": "light"}


def t2i_adapter(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """diffusers' T2IAdapter, whose `apply` is (params, hint [B, H, W, C] in [0, 1]) -> features.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "T2IAdapter")
    c.ignore("_class_name")
    module = T2IAdapter(
        widths=c.get("channels", (320, 640, 1280, 1280)),
        num_blocks=c.get("num_res_blocks", 2),
        factor=c.get("downscale_factor", 8),
        kind=KINDS[c.expect("adapter_type", *KINDS)],
        dtype=dtype,
    )
    channels = c.get("in_channels", 3)
    c.check_all_read()
    # Of the smallest picture that can be halved at every level.
    side = module.factor * 2 ** len(module.widths)

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, side, side, channels)))["params"]

    def apply(params: Params, hint: jax.Array) -> Any:
        return module.apply({"params": params}, hint)

    return ModelSpec(init, apply)
