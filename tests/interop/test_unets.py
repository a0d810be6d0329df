"""Configs of diffusers' U-Nets: what they make, and what they may not ask for."""

import math

import jax
import pytest

import jaxdiff as jd
from jaxdiff.interop.keys import places
from jaxdiff.interop.unets import control_config

TINY = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "transformer_layers_per_block": [3],
}


def test_a_transformer_s_layers_and_their_shapes():
    built = jd.interop.architecture(TINY)
    got = places(jax.eval_shape(built.init, jax.random.key(0)), built.rename)
    block = "mid_block.attentions.0.transformer_blocks.2"
    assert f"{block[:-1]}3.norm1.weight" not in got
    assert got[f"{block}.attn2.to_k.weight"].shape == (8, 6)
    assert got[f"{block}.ff.net.0.proj.weight"].shape == (64, 8)
    assert got["down_blocks.0.attentions.0.proj_in.weight"].shape == (8, 8, 1, 1)
    assert got["conv_in.weight"].shape == (8, 4, 3, 3)


def test_names_of_attention_before_they_changed():
    alias = jd.interop.architecture({"_class_name": "UNet2DModel"}).alias
    assert alias("mid_block.attentions.0.query.weight") == "mid_block.attentions.0.to_q.weight"
    assert alias("mid_block.attentions.0.proj_attn.bias") == "mid_block.attentions.0.to_out.0.bias"


PLAIN, CROSS = "UNet2DModel", "UNet2DConditionModel"


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        (PLAIN, {"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional', got 'fourier'"),
        (PLAIN, {"down_block_types": ["SkipDownBlock2D"] * 4}, "got SkipDownBlock2D"),
        (PLAIN, {"up_block_types": ["AttnUpBlock2D"] * 4}, "must mirror"),
        (PLAIN, {"downsample_type": "resnet"}, "resample the same way"),
        (PLAIN, {"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        (PLAIN, {"resnet_time_scale_shift": "scale_shift"}, "attention at the bottom without a norm"),
        (CROSS, {"down_block_types": ["SimpleCrossAttnDownBlock2D"] + ["DownBlock2D"] * 3}, "must be .* got .*Simple"),
        (CROSS, {"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "must be .* got"),
        (CROSS, {"mid_block_type": None}, "mid_block_type must be 'UNetMidBlock2DCrossAttn', got None"),
        (CROSS, {"addition_embed_type": "text"}, "addition_embed_type must be None or 'text_time', got 'text'"),
        (CROSS, {"encoder_hid_dim": 4096}, "encoder_hid_dim must be None, got 4096"),
        (CROSS, {"layers_per_block": [1, 2, 2, 2]}, "layers_per_block must be the same number"),
        (CROSS, {"transformer_layers_per_block": [[1, 1], 2, 2, 2]}, "transformer_layers_per_block must be one value"),
        (CROSS, {"attention_type": "gated"}, "attention_type must be 'default', got 'gated'"),
        (CROSS, {"of_tomorrow": 1}, "fields that are not supported: {'of_tomorrow': 1}"),
        ("ControlNetModel", {"controlnet_conditioning_channel_order": "bgr"}, "must be 'rgb', got 'bgr'"),
    ],
)
def test_what_is_not_supported_is_refused(kind, change, match):
    with pytest.raises(ValueError, match=match):
        jd.interop.architecture({"_class_name": kind} | change)


def test_a_controlnet_s_config_leaves_out_what_only_the_way_up_has():
    config = control_config(TINY | {"_name_or_path": "x", "out_channels": 8}, conditioning_channels=1)
    assert config["_class_name"] == "ControlNetModel" and config["conditioning_channels"] == 1
    assert config["transformer_layers_per_block"] == [3] and "up_block_types" not in config
    assert not {"out_channels", "_name_or_path"} & config.keys()
    jd.interop.architecture(config)


SD1 = {"_class_name": CROSS, "cross_attention_dim": 768}
SD2 = SD1 | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
BASE = {
    "_class_name": CROSS,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SD1, 859_520_964),
        (SD1 | {"in_channels": 9}, 859_520_964 + 5 * 9 * 320),
        (SD2 | {"upcast_attention": True}, 865_910_724),
        (BASE, 2_567_463_684),
        (control_config(SD1), 361_279_120),
    ],
)
def test_published_parameter_counts(config, count):
    tree = jax.eval_shape(jd.interop.architecture(config).init, jax.random.key(0))
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(tree)) == count
