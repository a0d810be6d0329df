"""Temporal layers, and a whole video U-Net, against diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.interop.formats.files import open_tensors
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.interop.models.fill import fill
from jaxdiff.networks import as_apply, init
from jaxdiff.networks.transformer2d import TransformerConfig
from jaxdiff.networks.video import Motion, TemporalConv, VideoUNet, frame_positions

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.resnet import TemporalConvLayer  # noqa: E402
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel  # noqa: E402
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionModel  # noqa: E402
from parity.checkpoints import close, lift, nchw, nhwc, randomize, roundtrip  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

FRAMES = 5
X = np.random.default_rng(0).standard_normal((2, FRAMES, 3, 4, 16))
PAIRS = {
    "motion": (
        lambda: AnimateDiffTransformer3D(4, 4, 16, num_layers=2, norm_num_groups=8, positional_embeddings="sinusoidal",
                                         num_positional_embeddings=32),
        lambda dtype: Motion(depth=2, num_heads=4, groups=8, dtype=dtype),
    ),
    "convolution": (
        lambda: TemporalConvLayer(16, norm_num_groups=8),
        lambda dtype: TemporalConv(groups=8, dtype=dtype),
    ),
}  # fmt: skip


def without_table(key):
    return None if key.endswith("pos_embed.pe") else key


def pair(name, directory, dtype):
    """Both layers with the same weights, ours by way of a file."""
    make, ours = PAIRS[name]
    theirs = randomize(make()).to(torch.float64 if dtype == jnp.float64 else torch.float32)
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, directory / "model.safetensors")
    module = ours(dtype)
    built = ModelSpec(
        lambda key: module.init(key, jnp.zeros(X.shape, dtype))["params"],
        lambda params, x: module.apply({"params": params}, x),
        alias=without_table,
    )
    return theirs, built, fill(built, open_tensors(directory), param_dtype=dtype, place=None)


def reference(theirs, x):
    """Frames as a batch, [B T, C, H, W], as the reference has them."""
    return nhwc(theirs(nchw(x.reshape(-1, *x.shape[2:])), num_frames=FRAMES)).reshape(x.shape)


@pytest.mark.parametrize("name", PAIRS)
def test_layers_along_time(name, tmp_path):
    theirs, built, params = pair(name, tmp_path, jnp.float32)
    x = X.astype(np.float32)
    close(jax.jit(built.apply)(params, x), reference(theirs, x), 5e-5)
    # The way back: the same tensors, bit for bit, but for the table of positions.
    back, held = dict(jd.interop.flatten(params, built.rename)), load_file(tmp_path / "model.safetensors")
    assert back.keys() == {key for key in held if built.alias(key)}
    assert all(np.array_equal(back[key], held[key]) for key in back)


@pytest.mark.parametrize("name", PAIRS)
def test_layers_along_time_in_double_precision(name, tmp_path, x64):
    theirs, built, params = pair(name, tmp_path, jnp.float64)
    # The reference's table of positions is of float32, whatever the weights'.
    if name == "motion":
        for block in theirs.transformer_blocks:
            block.pos_embed.pe = torch.from_numpy(frame_positions(32, 16))[None]
    close(jax.jit(built.apply)(params, X), reference(theirs, X), 1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients(name, tmp_path):
    theirs, built, params = pair(name, tmp_path, jnp.float32)
    x = X.astype(np.float32)
    (theirs(nchw(x.reshape(-1, *x.shape[2:])), num_frames=FRAMES) ** 2).mean().backward()
    grads = jax.jit(jax.grad(lambda p: jnp.square(built.apply(p, x)).mean()))(params)
    for key, got in jd.interop.flatten(grads, built.rename):
        want = theirs.get_parameter(key).grad.numpy()
        assert np.abs(want).max() > 1e-4, key
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * max(1, np.abs(want).max()), err_msg=key)


@pytest.mark.slow
def test_a_video_unet(tmp_path):
    """Stable Diffusion's U-Net with AnimateDiff's motion modules, as a whole."""
    theirs = randomize(
        UNetMotionModel(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=12,
            num_attention_heads=(2, 4),
            motion_num_attention_heads=4,
        )
    )
    theirs.save_pretrained(tmp_path)
    module = VideoUNet(
        widths=(16, 32),
        num_blocks=1,
        attention=(0,),
        groups=8,
        transformer=TransformerConfig((1, 1), (2, 4)),
        context_dim=12,
        frames=3,
        motion_num_heads=4,
    )
    rng = np.random.default_rng(2)
    x, tokens = (rng.standard_normal(shape, np.float32) for shape in ((2, 3, 8, 8, 4), (2, 5, 12)))
    built = ModelSpec(lambda key: init(module, key, x, {"tokens": tokens}), as_apply(module), alias=without_table)
    params = fill(built, open_tensors(tmp_path), param_dtype=None, place=None)
    noise = np.array([7.0, 640.0], np.float32)
    got = jax.jit(built.apply)(params, x, noise, {"tokens": tokens})
    video = torch.from_numpy(np.moveaxis(x, -1, 1).copy())  # [B, C, T, H, W]
    each = torch.from_numpy(tokens).repeat_interleave(3, dim=0)  # its pipeline gives every frame its own
    want = theirs(video, torch.from_numpy(noise), each, return_dict=False)[0]
    close(got, nhwc(want), 5e-5)


@pytest.mark.slow
def test_text_to_video_in_float64_and_saved_back(tmp_path, x64, monkeypatch):
    lift(monkeypatch)
    fields = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "mid_block_scale_factor": 1.3,
    }
    fields |= {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "cross_attention_dim": 12}
    fields |= {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 8}
    model = randomize(UNet3DConditionModel(**fields)).double()
    loaded = roundtrip(model, tmp_path / "theirs", jnp.float64)
    rng = np.random.default_rng(0)
    x, tokens, noise = rng.standard_normal((2, 3, 8, 8, 4)), rng.standard_normal((2, 5, 12)), np.array([7.0, 731.0])
    with torch.no_grad():
        want = nhwc(model(nchw(x), torch.tensor(noise), torch.tensor(tokens)).sample)
    close(jax.jit(loaded.apply)(loaded.params, x, noise, {"tokens": tokens}), want, 1e-12)
    jd.interop.save(loaded, tmp_path / "ours")
    back = UNet3DConditionModel.from_pretrained(tmp_path / "ours").state_dict()
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
