"""Published configurations of encoders, and the names and shapes of their tensors, without PyTorch."""

from functools import cache

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.interop.formats.keys import places

# Stable Diffusion 1's text_encoder, XL's text_encoder_2, 3's text_encoder_3, MiniLM and the image encoder of
# IP-Adapters, as their config.json say.
SD1 = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
    "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
SDXL = SD1 | {
    "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
    "num_hidden_layers": 32, "projection_dim": 1280, "torch_dtype": "float16",
}  # fmt: skip
SD3 = {
    "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
    "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
    "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    "vocab_size": 32128,
}  # fmt: skip
MINI = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"], "gradient_checkpointing": False,
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384,
    "initializer_range": 0.02, "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
    "position_embedding_type": "absolute", "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": True,
    "vocab_size": 30522,
}  # fmt: skip
VIT_H = {
    "_name_or_path": "./image_encoder", "architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0,
    "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280, "image_size": 224, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 5120, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024,
    "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
}  # fmt: skip
KINDS = {
    "CLIPTextModel": SD1, "CLIPTextModelWithProjection": SDXL, "T5EncoderModel": SD3, "BertModel": MINI,
    "CLIPVisionModelWithProjection": VIT_H,
}  # fmt: skip


@cache
def published(kind):
    return tensors(kind)


def tensors(kind, **changes):
    built = jd.interop.architecture(KINDS[kind] | {"_class_name": kind} | changes)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return built, {key: place.shape for key, place in places(shapes, built.rename).items()}


@pytest.mark.parametrize(
    ("kind", "count"),
    list(zip(KINDS, (123_060_480, 694_659_840, 4_762_310_656, 22_713_216, 632_076_800), strict=True)),
)
def test_published_configurations(kind, count):
    built, found = published(kind)
    assert sum(np.prod(shape, dtype=int) for shape in found.values()) == count
    assert built.weights == "model"
    assert all(built.alias(key) == key for key in found)


def test_names_and_shapes():
    """Some of each part, as the published files have them."""
    clip = published("CLIPTextModelWithProjection")[1]
    assert clip["text_model.encoder.layers.31.mlp.fc1.weight"] == (5120, 1280)
    assert clip["text_model.embeddings.position_embedding.weight"] == (77, 1280)
    assert clip["text_projection.weight"] == (1280, 1280)
    assert "text_projection.weight" not in published("CLIPTextModel")[1]
    vision = published("CLIPVisionModelWithProjection")[1]
    assert vision["vision_model.embeddings.class_embedding"] == (1280,)
    assert vision["vision_model.embeddings.patch_embedding.weight"] == (1280, 3, 14, 14)
    assert vision["vision_model.embeddings.position_embedding.weight"] == (257, 1280)
    assert vision["vision_model.pre_layrnorm.bias"] == (1280,)
    assert vision["visual_projection.weight"] == (1024, 1280)
    t5 = published("T5EncoderModel")[1]
    assert t5["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] == (10240, 4096)
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    assert t5[f"encoder.block.0.{bias}"] == (32, 64)
    assert f"encoder.block.1.{bias}" not in t5
    bert = published("BertModel")[1]
    assert bert["encoder.layer.5.attention.output.LayerNorm.weight"] == (384,)
    assert bert["embeddings.token_type_embeddings.weight"] == (2, 384)
    assert bert.keys() - tensors("BertModel", add_pooling_layer=False)[1].keys() == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("CLIPTextModel", "final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("CLIPTextModel", "embeddings.position_ids", None),
        ("CLIPTextModel", "text_model.embeddings.position_ids", None),
        ("CLIPVisionModelWithProjection", "vision_model.embeddings.position_ids", None),
        ("T5EncoderModel", "encoder.embed_tokens.weight", None),
        ("T5EncoderModel", "decoder.block.0.layer.0.SelfAttention.q.weight", None),
        ("T5EncoderModel", "lm_head.weight", None),
        ("BertModel", "embeddings.position_ids", None),
        ("BertModel", "bert.pooler.dense.weight", "pooler.dense.weight"),
        ("BertModel", "embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("BertModel", "encoder.layer.3.output.LayerNorm.beta", "encoder.layer.3.output.LayerNorm.bias"),
    ],
)
def test_other_names(kind, name, key):
    assert published(kind)[0].alias(name) == key


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("CLIPTextModel", "hidden_act", "relu"),
        ("CLIPTextModel", "eos_token_id", [1, 2]),
        ("CLIPTextModel", "quantization_config", {"bits": 4}),
        ("T5EncoderModel", "feed_forward_proj", "gated-silu"),
        ("T5EncoderModel", "is_decoder", True),
        ("BertModel", "position_embedding_type", "relative_key"),
        ("BertModel", "add_cross_attention", True),
        ("BertModel", "pruned_heads", {"0": [1]}),
    ],
)
def test_refuses_what_it_does_not_compute(kind, field, value):
    with pytest.raises(ValueError, match=field):
        tensors(kind, **{field: value})


def test_refuses_the_whole_t5():
    with pytest.raises(ValueError, match="T5EncoderModel"):
        jd.interop.architecture(SD3 | {"_class_name": "T5ForConditionalGeneration"})
