"""Configs of diffusers' U-Nets: what they make, and what they may not ask for."""

import math

import jax
import pytest

import jaxdiff as jd
from jaxdiff.interop.formats.keys import places
from jaxdiff.interop.models.conditional_unets import control_config
from jaxdiff.networks.configs import stable_diffusion_1, stable_diffusion_2, stable_diffusion_xl

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


PLAIN, CROSS, VIDEO = "UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel"
SOUND = "UNet1DModel"
SKIP = {"down_block_types": ["SkipDownBlock2D"] * 4, "up_block_types": ["SkipUpBlock2D"] * 4}
SIMPLE = {
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}

# What diffusers' EMAModel adds to the config of the model that it saves.
AVERAGE = {
    "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 1000, "power": 0.75,
    "update_after_step": 0, "use_ema_warmup": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        (PLAIN, {"time_embedding_type": "learned"}, "time_embedding_type 'learned' needs num_train_timesteps"),
        (
            PLAIN,
            {"time_embedding_type": "rotary"},
            "time_embedding_type must be 'positional' or 'fourier' or 'learned'",
        ),
        (CROSS, {"time_embedding_type": "learned"}, "time_embedding_type must be 'positional' or 'fourier', got"),
        (CROSS, {"time_embedding_type": "fourier", "time_embedding_dim": 15}, "time_embedding_dim must be even"),
        (PLAIN, {"down_block_types": ["KDownBlock2D"] * 4}, "got KDownBlock2D"),
        (PLAIN, SKIP, "norm_num_groups must be null with Skip blocks"),
        (PLAIN, SKIP | {"norm_num_groups": None}, "time_embedding_type 'fourier' alone"),
        (PLAIN, {"norm_num_groups": None}, "a number without, got None"),
        (PLAIN, {"up_block_types": ["AttnUpBlock2D"] * 4}, "must mirror"),
        (PLAIN, SKIP | {"down_block_types": ["DownBlock2D"] * 4}, "all blocks or none must be Skip"),
        (PLAIN, {"downsample_type": "resnet"}, "resample the same way"),
        (PLAIN, {"attn_norm_num_groups": 8}, "attn_norm_num_groups must be None or 32, got 8"),
        (PLAIN, {"class_embed_type": "projection"}, "class_embed_type must be None or 'timestep' or 'identity'"),
        (CROSS, {"down_block_types": ["SimpleCrossAttnDownBlock2D"] + ["DownBlock2D"] * 3}, "must be .* got .*Simple"),
        (CROSS, {"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "must be .* got"),
        (CROSS, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "goes with SimpleCrossAttn blocks"),
        (CROSS, {"addition_embed_type": "text"}, "addition_embed_type must be None or 'text_time', got 'text'"),
        (CROSS, {"addition_embed_type": "image_hint"}, "got 'image_hint'"),
        (CROSS, {"layers_per_block": [1, 2]}, "layers_per_block must be one value or 4"),
        (CROSS, {"transformer_layers_per_block": [[1, 1], 2, 2, 2]}, "transformer_layers_per_block must be one value"),
        (CROSS, {"cross_attention_dim": [128, 256, 384, 640]}, "cross_attention_dim must be the same number"),
        (CROSS, {"attention_type": "gated"}, "attention_type must be 'default' or None, got 'gated'"),
        (CROSS, {"conv_in_kernel": 1}, "conv_in_kernel must be 3, got 1"),
        (CROSS, {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "encoder_hid_dim_type must be None or"),
        (
            CROSS,
            {"class_embeddings_concat": True, "num_class_embeds": 4},
            "class_embeddings_concat goes with class_embed",
        ),
        (CROSS, TEXT_TIME | {"flip_sin_to_cos": False}, "'text_time' goes with flip_sin_to_cos true and freq_shift 0"),
        (CROSS, TEXT_TIME | {"freq_shift": 1}, "'text_time' goes with flip_sin_to_cos true and freq_shift 0"),
        (CROSS, {"of_tomorrow": 1}, "fields that are not supported: {'of_tomorrow': 1}"),
        (CROSS, SIMPLE | {"time_embedding_act_fn": "gelu"}, "time_embedding_act_fn and resnet_skip_time_act"),
        (CROSS, SIMPLE | {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "goes with CrossAttn blocks"),
        (CROSS, SIMPLE | {"encoder_hid_dim_type": "image_proj"}, "not supported together"),
        (
            CROSS,
            TEXT_TIME | {"class_embed_type": "projection"},
            "addition_embed_type 'text_time' and class_embed_type 'projection' are not supported together",
        ),
        (VIDEO, {"up_block_types": ["CrossAttnUpBlock3D"] * 4}, "must be .* got"),
        (VIDEO, {"attention_head_dim": [5, 10, 20, 20]}, "attention_head_dim must be a whole number"),
        (VIDEO, {"use_linear_projection": True}, "use_linear_projection"),
        (SOUND, {"extra_in_channels": 16}, "extra_in_channels must be the 64 features"),
        (SOUND, {"down_block_types": ["DownResnetBlock1D"] * 3}, "down_block_types must have DownBlock1DNoSkip"),
        (SOUND, {"up_block_types": ["UpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"]}, "up_block_types, from the largest"),
        (SOUND, {"out_block_type": "ValueFunction"}, "out_block_type must be None, got 'ValueFunction'"),
        ("ControlNetModel", {"class_embed_type": "timestep", "act_fn": "gelu"}, "goes with act_fn 'silu', got 'gelu'"),
        ("ControlNetModel", {"controlnet_conditioning_channel_order": "bgr"}, "must be 'rgb', got 'bgr'"),
    ],
)
def test_what_is_not_supported_is_refused(kind, change, match):
    with pytest.raises(ValueError, match=match):
        jd.interop.architecture({"_class_name": kind} | change)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        # Null is a default, or off, or nothing.
        (PLAIN, {"downsample_type": None, "center_input_sample": None, "attn_norm_num_groups": None}),
        (CROSS, {"attention_type": None, "class_embeddings_concat": None, "dual_cross_attention": None}),
        (CROSS, {"time_embedding_dim": None, "num_attention_heads": None, "resnet_skip_time_act": None}),
        # Names of 2022, and what training leaves.
        (PLAIN, {"down_block_types": ["UNetResDownBlock2D"] + ["UNetResAttnDownBlock2D"] * 3}),
        (PLAIN, AVERAGE),
        (CROSS, AVERAGE | {"_diffusers_version": "0.6.0", "gradient_checkpointing": True}),
    ],
)
def test_fields_that_say_nothing(kind, change):
    assert module(kind, change) == module(kind, {})


def test_a_flag_that_is_null_is_off():
    null, off, on = (module(PLAIN, {"add_attention": value}) for value in (None, False, True))
    assert null == off != on


def module(kind, change):
    """The network that a config describes, which its `init` draws."""
    return jd.interop.architecture({"_class_name": kind} | change).init.args[0]


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


@pytest.mark.parametrize(
    ("config", "network"),
    [(SD1, stable_diffusion_1), (SD2 | {"upcast_attention": True}, stable_diffusion_2), (BASE, stable_diffusion_xl)],
)
def test_published_configs_are_the_published_networks(config, network):
    """Whose parameters are counted in `tests/networks/test_unet_conditional.py`."""
    levels = len(config.get("block_out_channels", range(4)))
    plain, inpainting = (jd.interop.architecture(config | {"in_channels": n}).init for n in (4, 9))
    assert plain.args == (network(num_blocks=(2,) * levels, out_channels=4),)
    assert inpainting.args == (network(num_blocks=(2,) * levels, out_channels=4, concat_channels=5),)
    assert plain.keywords["x"].shape == inpainting.keywords["x"].shape == (1, *(2 ** (levels - 1),) * 2, 4)
    assert inpainting.keywords["cond"]["concat"].shape[-1] == 5


@pytest.mark.slow
def test_the_published_parameter_count_of_a_controlnet():
    tree = jax.eval_shape(jd.interop.architecture(control_config(SD1)).init, jax.random.key(0))
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(tree)) == 361_279_120
