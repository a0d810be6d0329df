"""Fields of configs: absurd values are named before anything is made of them; what is published is allowed."""

import json
import math

import numpy as np
import pytest
from helpers.fuzz_configs import MODELS, SCHEDULER, scheduler_config
from helpers.fuzzing import guarded
from safetensors.numpy import save_file

import jaxdiff as jd
from jaxdiff.interop.formats.fields import check_layers
from jaxdiff.interop.models.classes import CLASSES
from jaxdiff.interop.schedulers import KINDS

ABSURD = [2**63, 10**12, -1, 0.5, math.nan, "x", [[1]], {"a": 1}]


def test_the_small_configs_are_of_every_class():
    assert MODELS.keys() == CLASSES.keys()
    for config in MODELS.values():
        jd.interop.architecture(config)
    for kind in KINDS:
        jd.interop.scheduler(scheduler_config(kind))


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("UNet2DModel", "layers_per_block"),
        ("UNet2DConditionModel", "layers_per_block"),
        ("UNet2DConditionModel", "time_cond_proj_dim"),
        ("UNet2DConditionModel", "sample_size"),
        ("UNet2DConditionModel", "addition_time_embed_dim"),
        ("ControlNetModel", "conditioning_channels"),
        ("UNet3DConditionModel", "attention_head_dim"),
        ("UNet1DModel", "in_channels"),
        ("AutoencoderKL", "latent_channels"),
        ("VQModel", "num_vq_embeddings"),
        ("DiTTransformer2DModel", "num_layers"),
        ("SD3Transformer2DModel", "pos_embed_max_size"),
        ("FluxTransformer2DModel", "num_single_layers"),
        ("CLIPTextModel", "hidden_size"),
        ("CLIPVisionModelWithProjection", "image_size"),
        ("T5EncoderModel", "d_ff"),
        ("BertModel", "vocab_size"),
        ("SongUNet", "img_resolution"),
        ("EDM2UNet", "num_blocks"),
        ("UViT", "depth"),
    ],
)
def test_an_absurd_count_is_named(kind, field):
    for value in ABSURD:
        with pytest.raises(ValueError, match=rf"{field} must be .*whole number.*, got "):
            jd.interop.architecture(MODELS[kind] | {field: value})


@pytest.mark.parametrize("kind", MODELS)
def test_widths_are_lists_of_counts(kind):
    for field in ("block_out_channels", "channel_mult"):
        for value in ([2**63], [8, None], ["x"], [8.5, math.nan], [[8]], 8, "88", [], [8] * 17, None):
            if field in MODELS[kind]:
                with pytest.raises(ValueError, match=f"{field} must be a list"):
                    jd.interop.architecture(MODELS[kind] | {field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_train_timesteps", [2**31, 0, -1, 0.5, math.nan, "x", [1]]),
        ("beta_start", [2, -1, math.nan, "x", [0.1]]),
        ("trained_betas", [[], [2.0], ["x"], 3, [[0.1]], [0.1] * 100_001]),
        ("steps_offset", [-(2**63), 2**63, 0.5, True]),
        ("clip_sample", ["x", 1, [True]]),
        ("prediction_type", [{"a": 1}, 3, ["epsilon"]]),
    ],
)
def test_an_absurd_scheduler(field, values, tmp_path):
    for value in values:
        with guarded(tmp_path, seconds=0.5), pytest.raises(ValueError, match=f"{field} must be "):
            jd.interop.scheduler(SCHEDULER | {"_class_name": "DDIMScheduler", field: value})


def test_what_is_published_and_odd_is_allowed():
    """Nulls, numbers for flags' lists, whole floats: as diffusers and transformers write them."""
    for kind, changes in (
        ("UNet2DModel", {"attention_head_dim": None, "num_class_embeds": None}),
        ("UNet2DConditionModel", {"downsample_padding": 1.0, "center_input_sample": None}),
        ("AutoencoderKL", {"latents_mean": None, "latents_std": None, "shift_factor": 0.1, "sample_size": None}),
        ("UViT", {"mlp_ratio": 4.0}),
    ):
        jd.interop.architecture(MODELS[kind] | changes)
    config = SCHEDULER | {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -math.inf}
    jd.interop.scheduler(config | {"_use_default_values": ["rho"]})
    with pytest.raises(ValueError, match="_use_default_values must be a list"):
        jd.interop.scheduler(config | {"_use_default_values": 3})


@pytest.mark.parametrize(("few", "many"), [(256, 256), (300, 256), (256, 257)])
def test_a_shift_by_tokens_that_is_not_meant(few, many):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    config |= {"base_image_seq_len": few, "max_image_seq_len": many, "max_shift": 9.0}
    with pytest.raises(ValueError, match=r"base_image_seq_len must be less|base_shift and max_shift make"):
        jd.interop.scheduler(config, tokens=4096)


def test_layers_are_counted():
    check_layers({"layers_per_block": 2, "block_out_channels": [8, 8, 8], "num_layers": 3}, 9)
    for config in (
        {"layers_per_block": 2, "block_out_channels": [8, 8, 8], "num_layers": 4},
        {"layers_per_block": [1, 2, 7]},
        {"num_res_blocks": 5, "channel_mult": [1, 2]},
        {"num_layers": 5, "num_single_layers": 5},
    ):
        with pytest.raises(ValueError, match="asks for 10 layers, and there are 9 tensors"):
            check_layers(config, 9)


def written(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("UNet2DModel", {"layers_per_block": 100}),
        ("DiTTransformer2DModel", {"num_layers": 1000}),
        ("FluxTransformer2DModel", {"num_layers": 1000, "num_single_layers": 1000}),
        ("T5EncoderModel", {"num_layers": 1000}),
        ("EDM2UNet", {"num_blocks": 100}),
    ],
)
def test_a_network_of_more_layers_than_tensors_is_not_traced(kind, changes, tmp_path):
    folder = written(tmp_path, MODELS[kind] | changes)
    with guarded(tmp_path), pytest.raises(ValueError, match=r"asks for \d+ layers, and there are 1 tensors"):
        jd.interop.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("BertModel", {"vocab_size": 10**7, "hidden_size": 2**20, "num_hidden_layers": 1}),
        ("DiTTransformer2DModel", {"num_layers": 1, "attention_head_dim": 2**18, "sample_size": 2**14}),
        ("SD3Transformer2DModel", {"num_layers": 1, "pos_embed_max_size": 2**14, "dual_attention_layers": []}),
        ("AutoencoderKL", {"layers_per_block": 1, "block_out_channels": [2**20], "down_block_types": [
            "DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}),
    ],
)  # fmt: skip
def test_tensors_are_compared_before_memory_is_asked_for(kind, changes, tmp_path):
    """Such a network has terabytes, and the file has 12 bytes."""
    folder = written(tmp_path, MODELS[kind] | changes)
    with guarded(tmp_path, seconds=30), pytest.raises(ValueError, match="the tensors are not those"):
        jd.interop.load(folder)
