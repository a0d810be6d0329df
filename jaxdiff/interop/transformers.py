"""Image transformers of diffusers: DiTTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.architecture import Architecture, Fields
from jaxdiff.networks import Sinusoidal, as_apply, init
from jaxdiff.networks.dit import DiT

__all__ = ["dit"]


def dit(config: Mapping[str, Any], dtype: Any) -> Architecture:
    """diffusers' DiTTransformer2DModel, with an embedding of noise level and class in every block, as stored.

    The null class is the last row of the table. Twice as many channels out as in are a learned variance: apply
    returns (F, frac).

    Args:
        config: fields of its config.json.
        dtype: of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = Fields(config, "DiTTransformer2DModel")
    c.skip("norm_num_groups", "upcast_attention")  # there is no group norm, and softmax is float32 at least
    c.only("dropout", 0.0)
    c.only("attention_bias", True)
    c.only("activation_fn", "gelu-approximate")
    c.only("norm_type", "ada_norm_zero")
    c.only("norm_elementwise_affine", False)
    heads, patch, channels = c.take("num_attention_heads", 16), c.take("patch_size", 2), c.take("in_channels", 4)
    out = c.take("out_channels", None) or channels
    learned = out == 2 * channels
    module = DiT(
        width=heads * c.take("attention_head_dim", 72),
        layers=c.take("num_layers", 28),
        heads=heads,
        patch=patch,
        time=Sinusoidal(shift=1),  # the original has shift 0
        num_classes=c.take("num_embeds_ada_norm", 1000),
        out_channels=channels if learned else out,
        learned_variance=learned,
        grid=c.take("sample_size", 32) // patch,
        eps=c.take("norm_eps", 1e-5),
        own_embeddings=True,
        dtype=dtype,
    )
    c.done()
    x = jax.ShapeDtypeStruct((1, patch, patch, channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return Architecture(lambda key: init(module, key, x, {"label": label}), as_apply(module))
