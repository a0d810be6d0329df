"""Encoders of transformers: CLIP's of texts and of images, T5EncoderModel, BertModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.text import Bert, CLIPImage, CLIPText, T5Encoder, as_apply, init
from jaxdiff.types import Params

__all__ = ["bert", "clip_image", "clip_text", "t5_encoder"]

# Fields of all configs of transformers for initialization, training, text generation and output formats. Dropout is a
# field of training, since these networks have none.
NOTES = (
    "attention_dropout", "attention_probs_dropout_prob", "begin_suppress_tokens", "bos_token_id",
    "chunk_size_feed_forward", "classifier_dropout", "decoder_start_token_id", "dense_act_fn", "diversity_penalty",
    "do_sample", "dropout", "dropout_rate", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "hidden_dropout_prob", "id2label", "initializer_factor", "initializer_range", "is_encoder_decoder", "is_gated_act",
    "label2id", "length_penalty", "max_length", "min_length", "n_positions", "name_or_path", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_decoder_layers", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "scale_decoder_outputs",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p", "use_cache",
)  # fmt: skip


def clip_text(config: Mapping[str, Any], dtype: Any, *, projection: bool) -> ModelSpec:
    """transformers' CLIPTextModel and CLIPTextModelWithProjection: Stable Diffusion 1, 2, XL, 3 and Flux.

    The parameters have the names of transformers 4, which transformers 5 also loads.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.
        projection: whether the class is CLIPTextModelWithProjection.

    Raises:
        ValueError: a field is not supported.
    """
    c = _fields(config, "CLIPTextModelWithProjection" if projection else "CLIPTextModel")
    size, eos = c.get("projection_dim", 512), c.get("eos_token_id", 49407)
    if not isinstance(eos, int):
        raise ValueError(f"CLIPTextModel: eos_token_id must be one id, got {eos}")
    module = CLIPText(
        vocab_size=c.get("vocab_size", 49408),
        width=c.get("hidden_size", 512),
        layers=c.get("num_hidden_layers", 12),
        num_heads=c.get("num_attention_heads", 8),
        mlp_dim=c.get("intermediate_size", 2048),
        max_length=c.get("max_position_embeddings", 77),
        projection=size if projection else None,
        act=c.expect("hidden_act", "quick_gelu", "gelu"),
        eos=None if eos == 2 else eos,  # old configs have a wrong id; the right one is the largest
        eps=c.get("layer_norm_eps", 1e-5),
        dtype=dtype,
    )
    return _built(c, module, _clip_alias)


def clip_image(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """transformers' CLIPVisionModelWithProjection: the image encoder of IP-Adapters.

    Its `apply` is (params, pixels [B, size, size, C], *, layer=-1) -> `text.Encoded`; see `text.clip_pixels`.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = _fields(config, "CLIPVisionModelWithProjection")
    module = CLIPImage(
        size=c.get("image_size", 224),
        patch_size=c.get("patch_size", 32),
        width=c.get("hidden_size", 768),
        layers=c.get("num_hidden_layers", 12),
        num_heads=c.get("num_attention_heads", 12),
        mlp_dim=c.get("intermediate_size", 3072),
        projection=c.get("projection_dim", 512),
        act=c.expect("hidden_act", "quick_gelu", "gelu"),
        eps=c.get("layer_norm_eps", 1e-5),
        dtype=dtype,
    )
    channels = c.get("num_channels", 3)
    c.ignore("eos_token_id")
    c.check_all_read()

    def draw(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, module.size, module.size, channels)))["params"]

    def apply(params: Params, pixels: jax.Array, **options: Any) -> Any:
        return module.apply({"params": params}, pixels, **options)

    alias = lambda key: None if key.endswith("embeddings.position_ids") else key  # noqa: E731
    return ModelSpec(draw, apply, alias=alias, weights="model")


def t5_encoder(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """transformers' T5EncoderModel: Stable Diffusion 3 and Flux.

    A T5ForConditionalGeneration is an error, since it would be saved without its decoder. If config.json has
    T5EncoderModel as architecture instead, the encoder is loaded, and the decoder ignored.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = _fields(config, "T5EncoderModel")
    c.expect("is_decoder", False)
    module = T5Encoder(
        vocab_size=c.get("vocab_size", 32128),
        width=c.get("d_model", 512),
        layers=c.get("num_layers", 6),
        num_heads=c.get("num_heads", 8),
        head_dim=c.get("d_kv", 64),
        mlp_dim=c.get("d_ff", 2048),
        gated=c.expect("feed_forward_proj", "relu", "gated-gelu") != "relu",
        buckets=c.get("relative_attention_num_buckets", 32),
        max_distance=c.get("relative_attention_max_distance", 128),
        eps=c.get("layer_norm_epsilon", 1e-6),
        dtype=dtype,
    )
    c.ignore("eos_token_id")
    return _built(c, module, _t5_alias)


def bert(config: Mapping[str, Any], dtype: Any) -> ModelSpec:
    """transformers' BertModel: BERT, MiniLM and other encoders of sentences.

    transformers' config does not record whether a pooler exists; without one, set "add_pooling_layer" to false, as in
    the constructor.

    Args:
        config: the fields of its config.json.
        dtype: dtype of the computation.

    Raises:
        ValueError: a field is not supported.
    """
    c = _fields(config, "BertModel")
    c.expect("is_decoder", False)
    c.expect("add_cross_attention", False)
    c.expect("position_embedding_type", "absolute")
    module = Bert(
        vocab_size=c.get("vocab_size", 30522),
        width=c.get("hidden_size", 768),
        layers=c.get("num_hidden_layers", 12),
        num_heads=c.get("num_attention_heads", 12),
        mlp_dim=c.get("intermediate_size", 3072),
        max_length=c.get("max_position_embeddings", 512),
        num_segments=c.get("type_vocab_size", 2),
        pooler=c.get("add_pooling_layer", True),
        act=c.expect("hidden_act", "gelu", "gelu_new", "relu"),
        eps=c.get("layer_norm_eps", 1e-12),
        dtype=dtype,
    )
    c.ignore("eos_token_id")
    return _built(c, module, _bert_alias)


def _fields(config: Mapping[str, Any], kind: str) -> Fields:
    c = Fields(config, kind)
    c.ignore("_class_name", *NOTES)
    c.expect("pruned_heads", None, {})
    return c


def _built(c: Fields, module: Bert | CLIPText | T5Encoder, alias: Callable[[str], str | None]) -> ModelSpec:
    c.check_all_read()
    return ModelSpec(partial(init, module), as_apply(module), alias=alias, weights="model")


def _clip_alias(key: str) -> str | None:
    if key.endswith("embeddings.position_ids"):
        return None
    # transformers 5 saves CLIPTextModel's names without the prefix.
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def _t5_alias(key: str) -> str | None:
    # The encoder's table is "shared"; tensors of the decoder are ignored.
    return None if key == "encoder.embed_tokens.weight" or key.startswith(("decoder.", "lm_head.")) else key


def _bert_alias(key: str) -> str | None:
    key = key.removeprefix("bert.")
    if key in ("embeddings.position_ids", "embeddings.token_type_ids"):
        return None
    # TensorFlow's names, in the oldest files.
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
