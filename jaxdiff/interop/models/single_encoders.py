"""Text encoders of single files; see `single_networks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.formats.shapes import count, shape, side
from jaxdiff.interop.formats.views import Identity, Rows, Transposed

__all__ = ["clip_part", "open_clip_part", "t5_part"]

Tensors = Mapping[str, Any]
Config = dict[str, Any]
HEAD = 64  # features per head of all published text encoders of CLIP

TABLE = "text_model.embeddings.token_embedding.weight"

# OpenCLIP's names of layers in a block -> transformers' names.
OPEN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
OPEN_WHOLE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": TABLE,
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def clip_part(
    tensors: Tensors, overrides: Mapping[str, Any], *, act: str, projection: bool = False, identity: bool = False
) -> tuple[Config, dict[str, Any]]:
    """Return the config and tensors of a CLIP text encoder in transformers' names.

    Args:
        tensors: tensors by name.
        overrides: fields of the config.
        act: "quick_gelu" for OpenAI's, "gelu" for OpenCLIP's.
        projection: whether the class has a projection; if not, the file's projection is ignored.
        identity: replace the projection by the identity, as for the smaller encoder of Stable Diffusion 3.
    """
    dropped = ("logit_scale",) if projection and not identity else ("logit_scale", "text_projection.weight")
    inside = "text_model.", "text_projection."
    renamed = {n if n.startswith(inside) else f"text_model.{n}": t for n, t in tensors.items() if n not in dropped}
    config = _clip_config(renamed, overrides, projection) | {"hidden_act": act}
    if identity:
        width = config["projection_dim"] = config["hidden_size"]
        renamed["text_projection.weight"] = Identity(width, renamed[TABLE].dtype)
    return config | dict(overrides), renamed


def open_clip_part(
    tensors: Tensors, overrides: Mapping[str, Any], *, projection: bool
) -> tuple[Config, dict[str, Any]]:
    """Return the config and tensors of a text encoder of OpenCLIP.

    Args:
        tensors: tensors by name.
        overrides: fields of the config.
        projection: whether the class has a projection; if not, as in Stable Diffusion 2, the last layer is omitted.
    """
    dropped = () if projection else ("text_projection", f"transformer.resblocks.{_last(tensors)}.")
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name == "logit_scale" or name.startswith(dropped):
            continue
        if name == "text_projection":
            renamed["text_projection.weight"] = Transposed(tensor)
        elif name in OPEN_WHOLE:
            renamed[OPEN_WHOLE[name]] = tensor
        elif name.startswith("transformer.resblocks."):
            number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            layer = f"text_model.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                leaf, each = rest.removeprefix("attn.in_proj_"), side(tensors, name, 0) // 3
                for i, part in enumerate("qkv"):
                    part_rows = np.arange(i * each, (i + 1) * each)
                    renamed[f"{layer}.self_attn.{part}_proj.{leaf}"] = Rows(tensor, part_rows)
            else:
                module, dot, leaf = rest.rpartition(".")
                renamed[f"{layer}.{OPEN_BLOCK.get(module, module)}{dot}{leaf}"] = tensor
        else:
            renamed[name] = tensor
    return _clip_config(renamed, overrides, projection) | {"hidden_act": "gelu"} | dict(overrides), renamed


def _last(tensors: Tensors) -> int:
    return count(tensors, "transformer.resblocks") - 1


def _clip_config(tensors: Tensors, overrides: Mapping[str, Any], projection: bool) -> Config:
    vocab, width = shape(tensors, TABLE, 2)
    size = {"projection_dim": side(tensors, "text_projection.weight", 0)} if "text_projection.weight" in tensors else {}
    if width % HEAD and "num_attention_heads" not in overrides:
        raise ValueError(
            f"the heads do not follow from the tensors, {width} is no multiple of {HEAD}: give num_attention_heads"
        )
    return size | {
        "_class_name": "CLIPTextModelWithProjection" if projection else "CLIPTextModel",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": count(tensors, "text_model.encoder.layers"),
        "num_attention_heads": width // HEAD,
        "intermediate_size": side(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "max_position_embeddings": side(tensors, "text_model.embeddings.position_embedding.weight", 0),
        "eos_token_id": 2,  # as in the published configs; means the largest id of a text
    }


def t5_part(tensors: Tensors, overrides: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return the config and tensors of T5's encoder."""
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets, num_heads = shape(tensors, bias, 2)
    vocab, width = shape(tensors, "shared.weight", 2)
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    inside = gated if gated in tensors else gated.replace("wi_0", "wi")
    config = {
        "_class_name": "T5EncoderModel",
        "vocab_size": vocab,
        "d_model": width,
        "num_layers": count(tensors, "encoder.block"),
        "num_heads": num_heads,
        "d_kv": side(tensors, "encoder.block.0.layer.0.SelfAttention.q.weight", 0) // num_heads,
        "d_ff": side(tensors, inside, 0),
        "feed_forward_proj": "gated-gelu" if inside == gated else "relu",
        "relative_attention_num_buckets": buckets,
    }
    return config | dict(overrides), dict(tensors)
