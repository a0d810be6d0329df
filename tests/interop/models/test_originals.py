"""Originals: what the tensors tell of the network, attention's rows, and every wrong file an error that says so."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff as jd
from jaxdiff.interop.formats.keys import places
from jaxdiff.interop.models.edm import edm2_config, edm_config
from jaxdiff.interop.models.openai import as_diffusers, openai_config, openai_unet, split_attention
from jaxdiff.interop.models.originals import BUILD


class Fake:
    """A tensor that has a shape, and values where they are given."""

    def __init__(self, shape, values=None):
        self.shape, self.dtype, self.values = tuple(shape), "F32", values

    def __getitem__(self, index):
        return self.values[index if index else ...]


def tensors_of(config):
    built = BUILD[config["_class_name"]](config, jnp.float32)
    found = places(jax.eval_shape(built.init, jax.random.key(0)), built.rename)
    return {name: Fake(place.shape) for name, place in found.items()}


BASE = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "num_blocks": 1, "attn_resolutions": [4]}
SONG = {
    "_class_name": "SongUNet",
    "label_dim": 0,
    "augment_dim": 9,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "channel_mult_emb": 3,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "decoder_type": "skip",
    "resample_filter": [1.0, 3.0, 3.0, 1.0],
}
MP = {
    "_class_name": "EDM2UNet",
    "img_resolution": 8,
    "img_channels": 4,
    "label_dim": 7,
    "model_channels": 64,
    "channel_mult": [1, 3],
    "channel_mult_noise": 2,
    "channel_mult_emb": 3,
    "num_blocks": 1,
    "attn_resolutions": [4],
    "logvar_channels": 0,
}


@pytest.mark.slow
def test_edm_is_read_off():
    config = BASE | SONG
    resample_filter = np.array([1, 3, 3, 1]) / 8
    buffer = {
        "model.enc.4x4_down.conv0.resample_filter": Fake(
            (1, 1, 4, 4), np.outer(resample_filter, resample_filter)[None, None]
        )
    }
    tensors = tensors_of(config)
    assert edm_config(tensors | buffer, {}) == config
    assert edm_config(tensors, {"resample_filter": [1, 1]})["resample_filter"] == [1, 1]
    with pytest.raises(ValueError, match="no resample_filter is in the file, so the config must give it"):
        edm_config(tensors, {})


@pytest.mark.slow
def test_edm2_is_read_off():
    assert edm2_config(tensors_of(MP), {}) == MP
    assert edm2_config(tensors_of(MP), {"dropout": 0.1}) == MP | {"dropout": 0.1}


HEADS = {"num_head_channels": 32}
OPENAI = {
    "_class_name": "UNetModel",
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 64,
    "channel_mult": [0.5, 1.0],
    "num_res_blocks": 2,
    "attention_levels": [1],
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "conv_resample": False,
    "num_classes": 7,
}


def fused(tensors):
    """q, k and v of each attention as one tensor."""
    found = {}
    for name, tensor in tensors.items():
        if ".q." in name:
            tail = (tensor.shape[1], 1) if name.endswith("weight") else ()
            found[name.replace(".q.", ".qkv.")] = Fake((3 * tensor.shape[0], *tail))
        elif ".k." not in name and ".v." not in name:
            found[name] = Fake((*tensor.shape, 1)) if name.endswith("proj_out.weight") else tensor
    return found


@pytest.mark.parametrize(
    "direction",
    [
        pytest.param({"resblock_updown": True}, id="block"),
        pytest.param({"conv_resample": True}, id="conv", marks=pytest.mark.slow),
        pytest.param({}, id="pool", marks=pytest.mark.slow),
    ],
)
def test_openai_is_read_off(direction):
    config = OPENAI | {"resblock_updown": False, "conv_resample": False} | direction
    tensors = fused(tensors_of(config | HEADS))
    assert openai_config(tensors, HEADS) == config | HEADS
    with pytest.raises(ValueError, match="give num_head_channels or num_heads"):
        openai_config(tensors, {})


@pytest.mark.slow
def test_names_and_sizes_of_openai():
    shapes = {name: tensor.shape for name, tensor in fused(tensors_of(OPENAI | HEADS)).items()}
    expected = {
        "time_embed.0.weight": (256, 64),
        "label_emb.weight": (7, 256),
        "input_blocks.0.0.weight": (32, 3, 3, 3),
        "input_blocks.3.0.emb_layers.1.weight": (64, 256),  # the one that halves
        "input_blocks.4.0.skip_connection.weight": (64, 32, 1, 1),
        "input_blocks.5.1.qkv.weight": (192, 64, 1),
        "middle_block.1.proj_out.weight": (64, 64, 1),
        "output_blocks.2.2.in_layers.2.weight": (64, 64, 3, 3),  # the one that doubles
        "output_blocks.5.0.in_layers.0.weight": (64,),
        "out.2.weight": (6, 32, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_rows_of_attention():
    num_heads, dim = 2, 3
    channels = num_heads * dim
    for new in (False, True):
        # A row's number says what it is: part, head, channel.
        order = itertools.product(range(3), range(num_heads), range(dim))
        if not new:
            order = ((p, h, d) for h, p, d in itertools.product(range(num_heads), range(3), range(dim)))
        marks = np.array([100 * p + 10 * h + d for p, h, d in order], np.float32)
        held = {
            "a.qkv.bias": Fake((3 * channels,), marks),
            "a.qkv.weight": Fake((3 * channels, channels, 1), np.tile(marks[:, None, None], (1, channels, 1))),
        }
        config = {"num_heads": num_heads, "use_new_attention_order": new}
        parts = split_attention(held, config)
        assert set(parts) == {f"a.{p}.{leaf}" for p in "qkv" for leaf in ("weight", "bias")}
        for i, name in enumerate("qkv"):
            want = [100 * i + 10 * h + d for h in range(num_heads) for d in range(dim)]
            np.testing.assert_array_equal(parts[f"a.{name}.bias"][()], want)
            weight = parts[f"a.{name}.weight"]
            assert weight.shape == (channels, channels) and weight[()].shape == weight.shape
            # Any part of it, as a device's shard asks for.
            np.testing.assert_array_equal(weight[2:5, 1:3], np.array(want)[2:5, None].repeat(2, 1))
    with pytest.raises(ValueError, match="no multiple of its heads"):
        split_attention(held, {"num_heads": 4})


def test_what_diffusers_can_not_be():
    same = OPENAI | {"channel_mult": [1.0, 1.0]}
    assert as_diffusers(same | HEADS)["_class_name"] == "UNet2DModel"
    assert as_diffusers(same | {"num_heads": 4})["attention_head_dim"] == 16
    assert as_diffusers(same | HEADS | {"resblock_updown": False})["_class_name"] == "UNetModel"
    assert as_diffusers(OPENAI | HEADS)["_class_name"] == "UNetModel"
    two = {"channel_mult": [1.0, 2.0], "attention_levels": [0], "num_heads": 4}
    assert as_diffusers(OPENAI | two)["_class_name"] == "UNetModel"
    with pytest.raises(ValueError, match="unknown class 'UNetModel'"):
        jd.interop.architecture(as_diffusers(OPENAI | HEADS))
    with pytest.raises(ValueError, match="num_heads_upsample must be -1 or 4, got 2"):
        openai_unet(OPENAI | {"num_heads": 4, "num_heads_upsample": 2}, jnp.float32)


def write(directory, tensors):
    save_file({name: np.zeros(t.shape, np.float32) for name, t in tensors.items()}, directory / "model.safetensors")


@pytest.mark.slow
def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of edm, edm2, openai, got 'adm'"):
        jd.interop.load_original(tmp_path, "adm")
    tensors = fused(tensors_of(OPENAI | HEADS))
    del tensors["middle_block.0.in_layers.0.bias"]
    tensors["middle_block.1.qkv.bias"] = Fake((189,))
    write(tmp_path, tensors | {"ghost": Fake((2,))})
    with pytest.raises(ValueError) as error:
        jd.interop.load_original(tmp_path, "openai", {"num_heads": 1})
    for part in (
        "missing: middle_block.0.in_layers.0.bias;",
        "not of this network: ghost;",
        "middle_block.1.k.bias is (63,), not (64,)",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no levels of an encoder"):
        jd.interop.load_original(tmp_path, "edm")
    write(tmp_path, {"time_embed.0.weight": Fake((8, 2)), "output_blocks.0.0.in_layers.0.bias": Fake((2,))})
    with pytest.raises(ValueError, match="don't mirror each other"):
        jd.interop.load_original(tmp_path, "openai", HEADS)
    tensors = tensors_of(MP)
    del tensors["unet.emb_noise.weight"]
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"unet\.emb_noise\.weight is missing"):
        jd.interop.load_original(tmp_path, "edm2")


@pytest.mark.slow
def test_edm2_loads_with_its_scalars(tmp_path):
    write(tmp_path, tensors_of(MP))
    params = jd.interop.load_original(tmp_path, "edm2").params
    assert params["out_gain"].shape == () and params["enc.8x8_block0"]["emb_gain"].shape == ()
