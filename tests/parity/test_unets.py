"""U-Nets loaded from diffusers' directories: equal outputs, and saved back equal tensors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, nchw, nhwc, randomize, roundtrip  # noqa: E402

# What differs between the published layouts: levels with attention, resampling, padding, embedding.
DDPM = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
ADM = {
    "block_out_channels": (16, 32),
    "out_channels": 6,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_class_embeds": 10,
    "attn_norm_num_groups": 8,
}
PLAIN = {
    "in_channels": 5,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}
UNCONDITIONAL = {"ddpm": DDPM, "adm": ADM, "plain": PLAIN}
NOISE = np.array([7.0, 731.0])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def unconditional(name):
    """A model, our condition and the reference's."""
    model = diffusers.UNet2DModel(**{"layers_per_block": 1, "norm_num_groups": 8} | UNCONDITIONAL[name])
    cond = {}
    if model.config.num_class_embeds:
        cond["label"] = np.array([3, 9], np.int32)
    if model.config.in_channels > 3:
        cond["concat"] = normal(1, 2, 8, 8, model.config.in_channels - 3)
    return randomize(model), cond


def run(loaded, x, noise, cond, dtype=jnp.float32):
    """Our answer, compiled without LLVM's optimizations: what runs here is tiny."""
    args = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float64 else a, (x, noise, cond))
    return jax.jit(loaded.apply, compiler_options={"xla_backend_optimization_level": 0})(loaded.params, *args)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional(name, tmp_path):
    model, cond = unconditional(name)
    loaded = roundtrip(model, tmp_path / "theirs")
    x = normal(0, 2, 8, 8, 3)
    got = run(loaded, x, NOISE, cond)
    label = {"class_labels": torch.tensor(cond["label"]).long()} if "label" in cond else {}
    image = nchw(np.concatenate([x, cond["concat"]], -1) if "concat" in cond else x).float()
    with torch.no_grad():
        want = model(image, torch.tensor(NOISE).float(), **label).sample
    close(got, nhwc(want), 5e-5)
    saved(loaded, model, tmp_path / "ours")


def saved(loaded, model, directory):
    """Holds that the directory that we write gives the reference back, bit for bit."""
    jd.interop.save(loaded, directory)
    back = type(model).from_pretrained(directory)
    ours, theirs = (json.loads(m.to_json_string()) for m in (back, model))
    assert ours | {"_name_or_path": None} == theirs | {"_name_or_path": None}
    theirs = model.state_dict()
    assert theirs.keys() == back.state_dict().keys()
    for key, value in back.state_dict().items():
        assert torch.equal(value, theirs[key]), key
