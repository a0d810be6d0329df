"""Configs of diffusers' image transformers: keys, fields that are refused."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

DIT = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2}
SD3 = {"_class_name": "SD3Transformer2DModel", "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 6}
SD3 |= {"caption_projection_dim": 8, "joint_attention_dim": 6, "pooled_projection_dim": 5, "pos_embed_max_size": 4}
FLUX = {"_class_name": "FluxTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8}
FLUX |= {"num_layers": 2, "num_single_layers": 2, "axes_dims_rope": [2, 2, 4], "joint_attention_dim": 6}
# DiT's class until 2024, with what it had for other networks.
OLD = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "attention_type": "default"}
OLD |= {"cross_attention_dim": None, "num_vector_embeds": None, "only_cross_attention": False}
OLD |= {"use_linear_projection": False, "caption_channels": None, "double_self_attention": False}


def keys(config):
    built = jd.interop.architecture(config)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return {key: place.shape for key, place in jd.interop.formats.keys.places(shapes, built.rename).items()}


def test_every_block_of_dit_embeds_noise_and_label():
    found = keys(DIT)
    for i in range(2):
        at = f"transformer_blocks.{i}.norm1.emb"
        assert found[f"{at}.timestep_embedder.linear_1.weight"] == (8, 256)
        # 1000 classes and the null class.
        assert found[f"{at}.class_embedder.embedding_table.weight"] == (1001, 8)
    assert found["pos_embed.proj.weight"] == (8, 4, 2, 2)


def test_dit_by_its_old_name():
    assert keys(DIT | OLD) == keys(DIT)


def test_sd3_numbers_its_blocks_across_the_runs():
    found = keys(SD3 | {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"})
    assert {key.split(".")[1] for key in found if key.startswith("transformer_blocks")} == set("012345")
    assert {key.split(".")[1] for key in found if ".attn2.to_q.w" in key} == set("01")
    assert found["transformer_blocks.4.attn.norm_added_k.weight"] == (4,)
    assert found["pos_embed.pos_embed"] == (1, 16, 8)


def test_flux_counts_its_channels_before_packing():
    # The network that fills a mask: latents, the masked image's latents, and the mask's 8 x 8 as channels.
    found = keys(FLUX | {"in_channels": 384, "out_channels": 64})
    assert found["x_embedder.weight"] == (16, 384)
    assert found["proj_out.weight"] == (64, 16)


@pytest.mark.slow
def test_round_trip(tmp_path):
    config = SD3 | {"num_layers": 3, "dual_attention_layers": [0]}
    built = jd.interop.architecture(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes)
    jd.interop.save(jd.interop.Pretrained(built.apply, params, config), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, jd.interop.load(tmp_path).params, params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DIT | {"activation_fn": "geglu"}, "activation_fn must be 'gelu-approximate'"),
        (DIT | {"norm_type": "ada_norm"}, "norm_type must be"),
        (DIT | OLD | {"norm_type": None}, "Transformer2DModel: of its networks DiT alone is supported"),
        (DIT | OLD | {"norm_type": "ada_norm_single"}, "Transformer2DModel: of its networks DiT alone is supported"),
        (DIT | OLD | {"attention_type": "gated"}, "attention_type must be"),
        (DIT | OLD | {"num_vector_embeds": 4096}, "num_vector_embeds"),
        (DIT | {"dropout": 0.1}, "dropout must be"),
        (DIT | {"interpolation": 2}, "not supported"),
        (SD3 | {"qk_norm": "layer_norm"}, "qk_norm must be"),
        (SD3 | {"caption_projection_dim": 9}, "caption_projection_dim must be the width 8"),
        (FLUX | {"patch_size": 2}, "patch_size must be 1"),
        (FLUX | {"in_channels": 62}, "multiples of 4"),
        (FLUX | {"out_channels": 128}, "multiples of 4"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(ValueError, match=message):
        jd.interop.architecture(config)
