"""Files of adapters without PyTorch: names, layouts, scales, and what is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff as jd
from jaxdiff.networks import lora

CONFIG = {"_class_name": "UNet2DModel", "norm_num_groups": 8, "block_out_channels": [8, 16], "layers_per_block": 1}
CONFIG |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
Q = "down_blocks.1.attentions.0.to_q"
UNDERSCORED = "down_blocks_1_attentions_0_to_q"
CONV = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def unet():
    """The network's shapes alone."""
    built = jd.interop.architecture(CONFIG)
    return jd.interop.Loaded(built.apply, jax.eval_shape(built.init, jax.random.key(0)), CONFIG)


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
    again = jd.interop.load_lora(tmp_path / "one", {"unet": unet})["unet"]
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    half = load_file(jd.interop.save_lora(tmp_path / "half", {"unet": adapters}, {"unet": unet}, scale=0.5))
    for name, value in load_file(path).items():
        np.testing.assert_array_equal(half[name], value * (0.5 if "lora_B" in name else 1))
    with pytest.raises(ValueError, match="exists already"):
        jd.interop.save_lora(tmp_path / "one", {"unet": adapters}, {"unet": unet})


def test_refusals(unet, tmp_path):
    a, b = numbers(2, 16), numbers(16, 2)
    good = {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}
    # What DoRA or another network adds would change the answer: nothing is left over.
    for name in (f"unet.{Q}.lora_magnitude_vector", "unet.other.lora_A.weight", "text_encoder.a.lora_A.weight"):
        with pytest.raises(ValueError, match=f"1 tensors belong to no kernel of the networks: {name}"):
            load(tmp_path, unet, good | {name: a})
    with pytest.raises(ValueError, match="both halves"):
        load(tmp_path, unet, {f"unet.{Q}.lora_A.weight": a})
    with pytest.raises(ValueError, match=r"no adapter of a kernel of shape \(16, 16\)"):
        load(tmp_path, unet, good | {f"unet.{Q}.lora_A.weight": numbers(2, 15)})
    with pytest.raises(ValueError, match=r"one \.safetensors file, it holds none; x\.bin is pickled"):
        (tmp_path / "pickled").mkdir()
        (tmp_path / "pickled" / "x.bin").write_bytes(b"")
        jd.interop.load_lora(tmp_path / "pickled", {"unet": unet})
