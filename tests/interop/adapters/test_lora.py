"""Files of adapters without PyTorch: names, layouts, scales, and what is refused."""

import json
import math

import jax
import numpy as np
import pytest
from helpers.fuzzing import guarded
from safetensors.numpy import load_file, save_file

import jaxdiff as jd
from jaxdiff.networks import lora
from jaxdiff.quantize import quantize

CONFIG = {"_class_name": "UNet2DModel", "norm_num_groups": 8, "block_out_channels": [8, 16], "layers_per_block": 1}
CONFIG |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
Q = "down_blocks.1.attentions.0.to_q"
UNDERSCORED = "down_blocks_1_attentions_0_to_q"
CONV = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def unet():
    """The network's shapes alone."""
    built = jd.interop.architecture(CONFIG)
    return jd.interop.Pretrained(built.apply, jax.eval_shape(built.init, jax.random.key(0)), CONFIG)


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def load(tmp_path, unet, tensors, metadata=None):
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    return jd.interop.load_lora(tmp_path / "x.safetensors", {"unet": unet})["unet"]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"),
        (f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight"),
        (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"),
        (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight"),
        (
            "unet.down_blocks.1.attentions.0.processor.to_q_lora.down.weight",
            "unet.down_blocks.1.attentions.0.processor.to_q_lora.up.weight",
        ),
        (f"lora_unet_{UNDERSCORED}.lora_down.weight", f"lora_unet_{UNDERSCORED}.lora_up.weight"),
    ],
)
def test_names(down, up, unet, tmp_path):
    a, b = numbers(2, 16), numbers(16, 2)
    adapters = load(tmp_path, unet, {down: a, up: b})
    ((path, pair),) = lora.pairs(adapters)
    assert ".".join(path) == f"{Q}.kernel"
    np.testing.assert_array_equal(pair["down"], a.T)
    np.testing.assert_array_equal(pair["up"], b.T)


def test_convolutions_and_alpha(unet, tmp_path):
    a, b = numbers(2, 16, 3, 3), numbers(16, 2, 1, 1)
    name = f"lora_unet_{CONV.replace('.', '_')}"
    held = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": np.array(5, np.float32)}
    adapters = load(tmp_path, unet, held)
    ((_, pair),) = lora.pairs(adapters)
    assert pair["down"].shape == (3, 3, 16, 2)
    # The weight's change, in torch's layout, as PEFT has it: alpha / rank times B A.
    change = np.einsum("or,rihw->oihw", b[..., 0, 0].astype(np.float64), a) * 5 / 2
    ours = np.einsum("hwir,ro->oihw", *(np.asarray(pair[k], np.float64) for k in ("down", "up")))
    np.testing.assert_allclose(ours, change, atol=1e-5)


def test_settings_of_peft(unet, tmp_path):
    modules = {f"unet.{Q}": 3.0, f"unet.{CONV}": 8.0}
    held = {f"unet.{Q}.lora_A.weight": numbers(4, 16), f"unet.{Q}.lora_B.weight": numbers(16, 4)}
    held |= {f"unet.{CONV}.lora_A.weight": numbers(4, 16, 3, 3), f"unet.{CONV}.lora_B.weight": numbers(16, 4, 1, 1)}
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attentions.0.to_q": 3}}
    for more, divisor in (({}, 4), ({"unet.use_rslora": True}, 2)):
        metadata = {"lora_adapter_metadata": json.dumps(settings | more)}
        adapters = load(tmp_path, unet, held, metadata)
        for path, pair in lora.pairs(adapters):
            module = "unet." + ".".join(path[:-1])
            want = held[f"{module}.lora_B.weight"].reshape(16, 4).T * modules[module] / divisor
            np.testing.assert_allclose(pair["up"], want, rtol=1e-6)


def test_round_trip(unet, tmp_path):
    adapters = lora.init(jax.random.key(0), unet.params, 3, targets=f"{Q}|{CONV}")
    adapters = jax.tree.map(lambda x: numbers(*x.shape), adapters)
    path = jd.interop.save_lora(tmp_path / "one", {"unet": adapters}, {"unet": unet})
    others = {"ip_adapter": jd.interop.Pretrained(None, {}, {"_class_name": "IPAdapter"})}  # among a pipeline's models
    again = jd.interop.load_lora(tmp_path / "one", {"unet": unet} | others)["unet"]
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    half = load_file(jd.interop.save_lora(tmp_path / "half", {"unet": adapters}, {"unet": unet}, scale=0.5))
    for name, value in load_file(path).items():
        np.testing.assert_array_equal(half[name], value * (0.5 if "lora_B" in name else 1))
    with pytest.raises(ValueError, match="exists already"):
        jd.interop.save_lora(tmp_path / "one", {"unet": adapters}, {"unet": unet})


def test_refusals(unet, tmp_path):
    a, b = numbers(2, 16), numbers(16, 2)
    good = {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}
    # What another network or kind of adapter adds would change the answer: nothing is left over.
    for name in (f"unet.{Q}.magnitudes", "unet.other.lora_A.weight", "text_encoder.a.lora_A.weight"):
        with pytest.raises(ValueError, match=f"1 tensors belong to no kernel of the networks: {name}"):
            load(tmp_path, unet, good | {name: a})
    with pytest.raises(ValueError, match="both halves"):
        load(tmp_path, unet, {f"unet.{Q}.lora_A.weight": a})
    with pytest.raises(ValueError, match=r"no adapter of a kernel of shape \(16, 16\)"):
        load(tmp_path, unet, good | {f"unet.{Q}.lora_A.weight": numbers(2, 15)})
    with pytest.raises(ValueError, match=r"x\.bin is pickled"):
        (tmp_path / "pickled").mkdir()
        (tmp_path / "pickled" / "x.bin").write_bytes(b"")
        jd.interop.load_lora(tmp_path / "pickled", {"unet": unet})


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("oft_blocks", "OFT and BOFT"), ("oft_R.weight", "OFT and BOFT"), ("a1.weight", "GLoRA"), ("on_input", "IA3"),
        ("diff_b", "full differences"), ("lora_B.bias", "biases of adapters"), ("vera_lambda_b", "VeRA"),
        ("lora_embedding_A", "adapters of embeddings"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_their_names(end, kind, unet, tmp_path):
    with pytest.raises(ValueError, match=f"1 tensors belong to no kernel .*; {kind} are not read"):
        load(tmp_path, unet, {f"unet.{Q}.{end}": numbers(2, 16), f"unet.{Q}.alpha": np.float32([1])})


def test_a_long_list_is_cut(unet, tmp_path):
    with pytest.raises(ValueError, match=r"30 tensors belong .* and 10 more \(30 in all, each begins with 'other\.'\)"):
        load(tmp_path, unet, {f"other.{i}.lora_A.weight": numbers(2, 16) for i in range(30)})


def test_the_directory_has_its_own_name(unet, tmp_path):
    for name, factor in (("a", 2), ("pytorch_lora_weights", 1)):
        held = {f"unet.{Q}.lora_A.weight": factor * numbers(2, 16), f"unet.{Q}.lora_B.weight": numbers(16, 2)}
        save_file(held, tmp_path / f"{name}.safetensors")
    ((_, pair),) = lora.pairs(jd.interop.load_lora(tmp_path, {"unet": unet})["unet"])
    np.testing.assert_array_equal(pair["down"], numbers(2, 16).T)


def only_change(adapters):
    """The one change in a tree, in torch's layout."""
    ((_, held),) = lora.pairs(adapters)
    delta = np.asarray(held["delta"]) if "delta" in held else np.asarray(held["down"]) @ np.asarray(held["up"])
    return delta.transpose(delta.ndim - 1, delta.ndim - 2, *range(delta.ndim - 2))


def test_a_convolution_in_three_parts(unet, tmp_path):
    """x -> down, 1x1 -> mid, 3x3 -> up, 1x1, as a composition of linear maps."""
    down, mid, up = numbers(2, 16, 1, 1), numbers(2, 2, 3, 3), numbers(16, 2, 1, 1)
    name = f"lora_unet_{CONV.replace('.', '_')}"
    held = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up}
    got = only_change(load(tmp_path, unet, held | {f"{name}.alpha": np.float32([6])}))
    for h in range(3):
        for w in range(3):
            want = 3 * up[..., 0, 0] @ mid[:, :, h, w] @ down[..., 0, 0]
            np.testing.assert_allclose(got[:, :, h, w], want, atol=1e-4)


FLUX = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 8,
    "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
SD3 = {
    "_class_name": "SD3Transformer2DModel", "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
    "caption_projection_dim": 16, "joint_attention_dim": 24, "pooled_projection_dim": 8, "sample_size": 8,
    "pos_embed_max_size": 8, "in_channels": 4, "out_channels": 4,
}  # fmt: skip
# An authors' module, its size, and what it is: diffusers' modules with their first and last rows.
FUSED = [
    (FLUX, "double_blocks.0.img_attn.qkv", (96, 32), {"transformer_blocks.0.attn.to_q": (0, 32),
        "transformer_blocks.0.attn.to_k": (32, 64), "transformer_blocks.0.attn.to_v": (64, 96)}),
    (FLUX, "double_blocks.0.txt_attn.qkv", (96, 32), {"transformer_blocks.0.attn.add_q_proj": (0, 32),
        "transformer_blocks.0.attn.add_k_proj": (32, 64), "transformer_blocks.0.attn.add_v_proj": (64, 96)}),
    (FLUX, "single_blocks.0.linear1", (224, 32), {"single_transformer_blocks.0.attn.to_q": (0, 32),
        "single_transformer_blocks.0.attn.to_k": (32, 64), "single_transformer_blocks.0.attn.to_v": (64, 96),
        "single_transformer_blocks.0.proj_mlp": (96, 224)}),
    (FLUX, "single_blocks.0.linear2", (32, 160), {"single_transformer_blocks.0.proj_out": (0, 32)}),
    (SD3, "joint_blocks.1.x_block.attn.qkv", (48, 16), {"transformer_blocks.1.attn.to_q": (0, 16),
        "transformer_blocks.1.attn.to_k": (16, 32), "transformer_blocks.1.attn.to_v": (32, 48)}),
    (SD3, "joint_blocks.0.context_block.mlp.fc1", (64, 16), {"transformer_blocks.0.ff_context.net.0.proj": (0, 64)}),
]  # fmt: skip


@pytest.mark.parametrize("style", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize(("config", "module", "size", "parts"), FUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_module_that_stands_for_several(config, module, size, parts, style, tmp_path, transformers):
    down, up = numbers(4, size[1]), numbers(size[0], 4)
    name = style + (module.replace(".", "_") if style.endswith("_") else module)
    ends = ("lora_down", "lora_up") if style.endswith("_") else ("lora_A", "lora_B")
    held = {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up, f"{name}.alpha": np.float32([2])}
    save_file(held, tmp_path / "x.safetensors")
    loaded = transformers[config["_class_name"]]
    adapters = jd.interop.load_lora(tmp_path / "x.safetensors", {"transformer": loaded})
    path = jd.interop.save_lora(tmp_path, adapters, {"transformer": loaded})
    got = load_file(path)
    assert set(got) == {f"transformer.{part}.lora_{half}.weight" for part in parts for half in "AB"}
    for part, (first, last) in parts.items():
        np.testing.assert_array_equal(got[f"transformer.{part}.lora_A.weight"], down)
        np.testing.assert_allclose(got[f"transformer.{part}.lora_B.weight"], up[first:last] / 2)


@pytest.fixture(scope="module")
def transformers():
    """The shapes of small transformers, by class."""
    found = {}
    for config in (FLUX, SD3):
        built = jd.interop.architecture(config)
        found[config["_class_name"]] = jd.interop.Pretrained(
            None, jax.eval_shape(built.init, jax.random.key(0)), config
        )
    return found


def test_where_shift_and_scale_change_places(transformers, tmp_path):
    """The authors' last modulation has shift first, diffusers' has scale first."""
    name = "lora_unet_final_layer_adaLN_modulation_1"
    down, up = numbers(2, 32), numbers(64, 2)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "x.safetensors")
    adapters = jd.interop.load_lora(
        tmp_path / "x.safetensors", {"transformer": transformers["FluxTransformer2DModel"]}
    )["transformer"]
    np.testing.assert_allclose(only_change(adapters), np.roll(up, 32, 0) @ down, atol=1e-5)


def test_the_third_text_encoder_is_the_second_of_flux(tmp_path):
    config = {"_class_name": "T5EncoderModel", "vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 6, "num_layers": 1,
              "num_heads": 2}  # fmt: skip
    shapes = jax.eval_shape(jd.interop.architecture(config).init, jax.random.key(0))
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    held = {f"{name}.lora_down.weight": numbers(2, 8), f"{name}.lora_up.weight": numbers(8, 2)}
    save_file(held, tmp_path / "x.safetensors")
    models = {"text_encoder_2": jd.interop.Pretrained(None, shapes, config)}
    ((path, pair),) = lora.pairs(jd.interop.load_lora(tmp_path / "x.safetensors", models)["text_encoder_2"])
    assert "SelfAttention.q" in ".".join(path)
    np.testing.assert_array_equal(pair["down"].reshape(8, 2), numbers(2, 8).T)
    np.testing.assert_array_equal(pair["up"].reshape(2, 8), numbers(8, 2).T)


def test_a_kernel_with_two_adapters(unet, tmp_path):
    a, b = numbers(2, 16), numbers(16, 2)
    held = {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}
    held |= {f"lora_unet_{UNDERSCORED}.lora_down.weight": a, f"lora_unet_{UNDERSCORED}.lora_up.weight": b}
    with pytest.raises(ValueError, match=f"{Q} has two adapters, the second one"):
        load(tmp_path, unet, held)


def test_dora_and_its_limits(unet, tmp_path):
    """With the norms of the changed rows as magnitudes DoRA is LoRA; twice these double the changed kernel."""
    params = jax.tree.map(lambda a: numbers(*a.shape), unet.params)
    real = unet._replace(params=params)
    a, b = numbers(2, 16), numbers(16, 2)
    held = {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}
    plain = only_change(load(tmp_path, real, held))
    weight = leaf(params, f"{Q}.kernel").T
    norms = np.linalg.norm(weight + plain, axis=1)
    for role, shape in (("lora_magnitude_vector", (16,)), ("dora_scale", (16, 1))):
        same = only_change(load(tmp_path, real, held | {f"unet.{Q}.{role}": norms.reshape(shape)}))
        np.testing.assert_allclose(same, plain, atol=1e-5)
        double = only_change(load(tmp_path, real, held | {f"unet.{Q}.{role}": 2 * norms.reshape(shape)}))
        np.testing.assert_allclose(weight + double, 2 * (weight + plain), atol=1e-5)
    columns = np.linalg.norm(weight + plain, axis=0, keepdims=True)
    same = only_change(load(tmp_path, real, held | {f"unet.{Q}.dora_scale": columns}))
    np.testing.assert_allclose(same, plain, atol=1e-5)
    with pytest.raises(ValueError, match="DoRA needs the networks' parameters"):
        load(tmp_path, unet, held | {f"unet.{Q}.dora_scale": columns})
    with pytest.raises(ValueError, match="DoRA's magnitudes must be 16"):
        load(tmp_path, real, held | {f"unet.{Q}.dora_scale": norms[:8]})
    adapters = load(tmp_path, real, held | {f"unet.{Q}.dora_scale": columns})
    with pytest.raises(ValueError, match="of no low rank"):
        jd.interop.save_lora(tmp_path, {"unet": adapters}, {"unet": real})


def leaf(tree, dotted):
    flat = {".".join(e.key for e in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return flat[dotted]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"hada_w1_a": (10**5, 1), "hada_w1_b": (1, 10**5), "hada_w2_a": (16, 1), "hada_w2_b": (1, 16)},
            "10,000,000,000",
        ),
        ({"lokr_w1": (10**3, 10**3), "lokr_w2": (10**3, 10**3)}, "they make 1,000,000,000,000 numbers"),
        ({"lokr_w1_a": (10**5, 1), "lokr_w1_b": (1, 10**5), "lokr_w2": (1, 1)}, "they make 10,000,000,000 numbers"),
        ({"lora_A.weight": (1, 16), "lora_B.weight": (16, 1), "lora_mid.weight": (10**5, 1, 100)}, "they make"),
        ({"lora_A.weight": (0, 16), "lora_B.weight": (16, 0)}, "a row for each rank"),
        ({"lora_A.weight": (), "lora_B.weight": (16, 2)}, "a row for each rank"),
        ({"lora_A.weight": (2, 16), "lora_B.weight": (16,)}, "which are no matrices"),
    ],
)
def test_small_factors_of_a_large_product(tensors, words, unet, tmp_path):
    held = {f"unet.{Q}.{name}": np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(held, tmp_path / "x.safetensors")
    with guarded(tmp_path), pytest.raises(ValueError, match=words):
        jd.interop.load_lora(tmp_path / "x.safetensors", {"unet": unet})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, "r must be a whole number"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"to_q": "4"}}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(a|a)*b": 1}}, "names or expressions of two repetitions"),
        ({"alpha_pattern": {".*.*.*q": 1}}, "names or expressions of two repetitions"),
        ({"alpha_pattern": {"(a": 1}}, "is no regular expression"),
    ],
)
def test_settings_of_a_stranger(settings, words, unet, tmp_path):
    held = {f"unet.{Q}.lora_A.weight": numbers(2, 16), f"unet.{Q}.lora_B.weight": numbers(16, 2)}
    with pytest.raises(ValueError, match=words):
        load(tmp_path, unet, held, {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in settings.items()})})
    for text in ("{", "[]", "[" * 10**5):
        with pytest.raises(ValueError, match=r"lora_adapter_metadata of .*x\.safetensors"):
            load(tmp_path, unet, held, {"lora_adapter_metadata": text})


def test_networks_in_8_bits_have_no_adapters(tmp_path):
    built = jd.interop.architecture(CONFIG | {"block_out_channels": [64, 64]})
    params = jax.eval_shape(lambda key: quantize(built.init(key)), jax.random.key(0))
    loaded = jd.interop.Pretrained(built.apply, params, CONFIG | {"block_out_channels": [64, 64]})
    held = {f"{Q}.lora_A.weight": numbers(2, 64), f"{Q}.lora_B.weight": numbers(64, 2)}
    with pytest.raises(ValueError, match="before weights are stored in 8 bits"):
        load(tmp_path, loaded, held)
    with pytest.raises(ValueError, match="before weights are stored in 8 bits"):
        jd.interop.save_lora(tmp_path / "out", {"unet": {}}, {"unet": loaded})
