"""Files of IP-Adapters: which tensor is which attention's, and what is refused; parity is in tests/parity."""

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import UNET
from safetensors.numpy import save_file

from jaxdiff import trees
from jaxdiff.interop import Pretrained, architecture, load_ip_adapter
from jaxdiff.networks import UNet

CONFIG = UNET | {
    "block_out_channels": [8, 12], "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2, "transformer_layers_per_block": [1, 2],
}  # fmt: skip
# The widths of the attentions by their numbers 1, 3, ...: one of the first level and two of the second on the way down,
# twice as many on the way up, two at the bottom.
WIDTHS = [8, 12, 12, *[12] * 4, *[8] * 2, 12, 12]


@pytest.fixture(scope="module")
def unet():
    built = architecture(CONFIG)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return Pretrained(built.apply, jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes), CONFIG)


def tensors(widths=WIDTHS, text=8):
    held = {"image_proj.proj.weight": np.ones((4 * text, 5), np.float32)}
    held |= {"image_proj.proj.bias": np.zeros(4 * text, np.float32)}
    held |= {f"image_proj.norm.{name}": np.ones(text, np.float32) for name in ("weight", "bias")}
    for i, width in enumerate(widths):
        number = 2 * i + 1
        held[f"ip_adapter.{number}.to_k_ip.weight"] = np.full((width, text), number, np.float32)
        held[f"ip_adapter.{number}.to_v_ip.weight"] = np.full((width, text), -number, np.float32)
    return held


@pytest.mark.slow
def test_attentions_are_numbered_down_up_and_last_the_bottom(unet, tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    loaded = load_ip_adapter(tmp_path / "a.safetensors", unet)
    found = {}
    for path, leaf in trees.leaves(loaded.unet.params).items():
        if "attn2.processor.to_k_ip.0" in path:
            found[path[0]] = [float(layer.flat[0]) for layer in np.asarray(leaf)]
            value = trees.get(loaded.unet.params, [*path[:-2], "attn2.processor.to_v_ip.0", "kernel"])
            assert [-float(layer.flat[0]) for layer in np.asarray(value)] == found[path[0]]
            assert leaf.shape[1:] == (8, 8 if path[0].startswith(("down_blocks.0", "up_blocks.1")) else 12)
    assert found == {
        "down_blocks.0.attentions.0": [1], "down_blocks.1.attentions.0": [3, 5], "up_blocks.0.attentions.0": [7, 9],
        "up_blocks.0.attentions.1": [11, 13], "up_blocks.1.attentions.0": [15], "up_blocks.1.attentions.1": [17],
        "mid_block.attentions.0": [19, 21],
    }  # fmt: skip
    tokens = jax.eval_shape(loaded.projection.apply, loaded.projection.params, np.zeros((3, 5), np.float32))
    assert tokens.shape == (3, 4, 8)
    # The U-Net's own parameters are shared, and those without an adapter's are all there.
    assert loaded.unet.params["conv_in"]["kernel"] is unet.params["conv_in"]["kernel"]
    want = jax.eval_shape(architecture(loaded.unet.config).init, jax.random.key(0))
    assert jax.tree.map(np.shape, loaded.unet.params) == jax.tree.map(np.shape, want)


@pytest.mark.slow
def test_other_files_and_networks_are_refused(unet, tmp_path):
    file = tmp_path / "a.safetensors"

    def fails(held, words, network=unet):
        save_file(held, file)
        with pytest.raises(ValueError, match=words):
            load_ip_adapter(file, network)

    fails(
        {"image_proj.latents": np.ones((1, 4, 8), np.float32)},
        "must hold image_proj.proj.weight, image_proj.norm.weight or image_proj.proj.0.weight, .* or image_proj.lat",
    )
    fails(tensors(WIDTHS[:-1]), "missing: ip_adapter.21.to_k_ip.weight, ip_adapter.21.to_v_ip.weight")
    fails(tensors(text=6), "whose cross_attention_dim is 6, and that of this one is 8")
    wider = {
        name: np.ones((9, 8), np.float32) if name.endswith(".1.to_k_ip.weight") else a for name, a in tensors().items()
    }
    fails(wider, r"misshapen: ip_adapter.1.to_k_ip.weight is \(9, 8\), not \(8, 8\)")
    of_both = {"image_proj.perceiver_resampler.proj_in.weight": np.ones((8, 5), np.float32)}
    fails(tensors() | of_both, "must hold image_proj.proj.0.weight, .* as an adapter of a face's embedding and patches")
    of_both |= {f"image_proj.proj.{i}.weight": np.ones(shape, np.float32) for i, shape in ((0, (10, 5)), (2, (32, 10)))}
    names = {"proj_out": (6, 8), "layers.0.0.to_q": (64, 8), "layers.0.1.1": (32, 8)}
    of_both |= {f"image_proj.perceiver_resampler.{k}.weight": np.ones(v, np.float32) for k, v in names.items()}
    fails(tensors() | of_both, "must have tokens of one width, got 6, 8 features")
    low_rank = {"ip_adapter.1.to_q_lora.down.weight": np.ones((2, 8), np.float32)}
    fails(tensors() | low_rank, "missing: ip_adapter.0.to_k_lora.down.weight, ip_adapter.0.to_k_lora.up.weight, .*")
    fails(tensors(), "for a UNet2DConditionModel", unet._replace(config=CONFIG | {"_class_name": "ControlNetModel"}))
    with pytest.raises(ValueError, match="for transformers with attention to tokens"):
        module = UNet(widths=(8,), groups=4, image_ranks=(0,))
        jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32), np.zeros(1), {}))
