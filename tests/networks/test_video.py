"""Video networks start as their image networks frame by frame, and then let frames see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import UNet
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.video import (
    Motion,
    TemporalBlock,
    TemporalConv,
    VideoDiT,
    VideoUNet,
    frame_positions,
    inflate,
    per_frame,
)

FRAMES = 3
UNET = {"widths": (8, 16), "num_blocks": 1, "groups": 4, "attention": (1,), "num_classes": 2, "concat_channels": 1}
SMALL = {"widths": (8,), "num_blocks": 1, "groups": 4, "num_classes": 2}
TIME = {"frames": FRAMES, "motion_num_heads": 2, "temporal_conv": True}
DIT = {"width": 8, "layers": 2, "num_heads": 2, "patch_size": 2, "num_classes": 2}
NOISE = np.array([3.0, 700.0], np.float32)
QUICK = {"xla_backend_optimization_level": 0}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def shapes(module, x, cond):
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


def random(tree, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, a):
        spread = np.sqrt(np.prod(a.shape[:-1])) if len(a.shape) > 1 else 10
        return ((path[-1].key == "scale") + rng.standard_normal(a.shape) / spread).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def run(apply, *args):
    return jax.jit(apply, compiler_options=QUICK)(*args)


def frame(cond, t):
    """One frame's conditions."""
    return {name: value[:, t] if name == "concat" else value for name, value in cond.items()}


def check_start(image, video, x, cond):
    """With an image network's parameters the video network is the image network; with others frames meet."""
    weights = random(shapes(image, x[:, 0], frame(cond, 0)))
    shaped = shapes(video, x, cond)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shaped)
    drawn = random(shaped)
    # What is zero at the start of the video network, here by name; all else of it at random.
    starts = ("proj_out", "conv4.3", "norm1.linear")
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, z, d: z if any(entry.key in starts for entry in path) else d, zeros, drawn
    )
    apply = jax.jit(networks.as_apply(video), compiler_options=QUICK)
    got = apply(inflate(fresh, weights), x, NOISE, cond)
    one = jax.jit(networks.as_apply(image), compiler_options=QUICK)
    want = np.stack([one(weights, x[:, t], NOISE, frame(cond, t)) for t in range(FRAMES)], axis=1)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)

    other = x.copy()
    other[:, 1] += 1
    before, after = apply(drawn, x, NOISE, cond), apply(drawn, other, NOISE, cond)
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4)) > 1e-4).all(), "a frame does not see the others"
    # Videos don't see each other, nor each other's conditions.
    other[0], noise = 0, NOISE * np.array([9, 1], np.float32)
    np.testing.assert_allclose(apply(drawn, other, noise, cond)[1], after[1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_transformer_starts_as_its_image_network():
    image, video = DiT(**DIT), VideoDiT(**DIT, frames=FRAMES)
    check_start(image, video, normal(0, 2, FRAMES, 4, 4, 3), {"label": np.array([2, 0], np.int32)})


def test_each_frame_gets_its_video_s_conditions():
    """Of a network whose output tells what it was given."""

    def image(params, x, noise, cond, *, key):
        residual = cond["residuals"][0].mean(axis=(1, 2), keepdims=True)
        return params * x + noise[:, None, None, None] * cond["vector"][:, None, None] + cond["concat"] + residual

    x, concat = normal(0, 2, 3, 4, 5, 6), normal(1, 2, 3, 4, 5, 6)
    vector, residual = normal(2, 2, 6), normal(3, 2, 3, 2, 2, 6)
    got = per_frame(image)(2, x, NOISE, {"vector": vector, "concat": concat, "residuals": [residual]})
    each = NOISE[:, None, None, None, None] * vector[:, None, None, None]
    np.testing.assert_array_equal(got, 2 * x + each + concat + residual.mean(axis=(2, 3), keepdims=True))


def test_attention_among_frames_written_out(x64):
    """The temporal block in loops over videos and positions."""
    num_heads, rng = 2, np.random.default_rng(4)
    x, emb = rng.standard_normal((2, FRAMES, 4, 8)), rng.standard_normal((2, 8))
    module = TemporalBlock(num_heads, mlp_ratio=2, dtype=jnp.float64)
    tree = jax.eval_shape(module.init, jax.random.key(0), x, emb)["params"]
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape) / np.sqrt(a.shape[0]), tree)

    def linear(name, a, *path):
        p = params[name] if not path else params[name][path[0]]
        return a @ p["kernel"] + p["bias"]

    def norm(a):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

    want = x.copy()
    for b in range(2):
        parts = np.split(linear("norm1.linear", emb[b] / (1 + np.exp(-emb[b]))), 6)
        for n in range(4):
            h = norm(x[b, :, n]) * (1 + parts[1]) + parts[0] + frame_positions(FRAMES, 8)
            q, k, v = (np.split(linear(f"attn1.to_{a}", h), num_heads, axis=-1) for a in "qkv")
            weights = [np.exp(q[i] @ k[i].T / 2) for i in range(num_heads)]
            seen = np.concatenate([w / w.sum(-1, keepdims=True) @ v[i] for i, w in enumerate(weights)], axis=-1)
            want[b, :, n] += parts[2] * linear("attn1.to_out.0", seen)
            h = linear("ff", norm(want[b, :, n]) * (1 + parts[4]) + parts[3], "net.0.proj")
            h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            want[b, :, n] += parts[5] * linear("ff", h, "net.2")
    got = run(lambda p: module.apply({"params": p}, x, emb), params)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_unet_starts_as_its_image_network():
    x, concat = normal(0, 2, FRAMES, 4, 4, 3), normal(1, 2, FRAMES, 4, 4, 1)
    cond = {"label": np.array([2, 0], np.int32), "concat": concat}
    check_start(UNet(**UNET), VideoUNet(**UNET, **TIME), x, cond)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [VideoUNet(**SMALL, attention=(0,), **TIME), VideoDiT(**DIT, frames=FRAMES)], ids=["unet", "dit"]
)
def test_time_layers_really_start_at_zero(module):
    """As drawn, not as set: moving one frame moves that frame alone."""
    x, cond = normal(0, 2, FRAMES, 4, 4, 3), {"label": np.array([2, 0], np.int32)}
    params = networks.init(module, jax.random.key(0), x, cond)
    # An output layer that does not start at zero, to see what comes before.
    rest = {name: random(params[name]) for name in ("conv_out", "proj_out_2") if name in params}
    other = x.copy()
    other[:, 1] += 1
    apply = jax.jit(networks.as_apply(module))
    moved = np.abs(apply(params | rest, x, NOISE, cond) - apply(params | rest, other, NOISE, cond)).max((0, 2, 3, 4))
    assert moved[1] > 1e-3 and (moved[[0, 2]] == 0).all()


@pytest.mark.slow
def test_layers_along_time_start_as_the_identity():
    x = normal(0, 2, FRAMES, 2, 2, 8)
    for layer in TemporalConv(groups=4), Motion(num_heads=2, groups=4):
        params = jax.jit(layer.init, compiler_options=QUICK)(jax.random.key(0), x)
        np.testing.assert_array_equal(layer.apply(params, x), x)


def test_positions_of_frames():
    table = frame_positions(4, 6)
    np.testing.assert_allclose(table[3, :2], [np.sin(3), np.cos(3)], rtol=1e-12)
    np.testing.assert_allclose(table[2, 2:4], [np.sin(2 * 10_000 ** (-1 / 3)), np.cos(2 * 10_000 ** (-1 / 3))])
    np.testing.assert_array_equal(table[0], [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    "module",
    [VideoDiT(**DIT), pytest.param(VideoUNet(**SMALL, motion_num_heads=2), marks=pytest.mark.slow)],
    ids=["dit", "unet"],
)
def test_the_parameters_are_of_every_length(module):
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    short, long = (
        shapes(module.clone(frames=n), jax.ShapeDtypeStruct((1, n, 4, 4, 3), jnp.float32), label) for n in (2, 7)
    )
    assert short == long


def test_inflate_refuses_what_has_no_place():
    video = {"a": {"kernel": np.zeros((2, 2)), "new": np.ones(3)}, "b": {"bias": np.zeros(2)}}
    image = {"a": {"kernel": np.full((2, 2), 7.0)}}
    joined = inflate(video, image)
    assert joined["a"]["kernel"] is image["a"]["kernel"] and joined["a"]["new"] is video["a"]["new"]
    assert joined["b"]["bias"] is video["b"]["bias"]
    for odd in {"a": {"kernel": np.zeros((2, 3))}}, {"c": {"kernel": np.zeros(1)}}, {"a": np.zeros(1)}, {"b": image}:
        with pytest.raises(ValueError, match="has no place for"):
            inflate(video, odd)


def test_refuses_another_shape():
    module = VideoDiT(**DIT, frames=FRAMES)
    for shape in (2, 4, 4, 3), (2, 4, 4, 4, 3):
        with pytest.raises(ValueError, match="T = 3"):
            shapes(module, jax.ShapeDtypeStruct(shape, jnp.float32), {"label": np.zeros(2, np.int32)})
    with pytest.raises(ValueError, match=r"\[B, T, H, W, C\]"):
        per_frame(networks.as_apply(DiT(**DIT)))({}, np.zeros((2, 4, 4, 3)), NOISE)
    with pytest.raises(ValueError, match="heads must divide"):
        Motion(num_heads=3, groups=4).init(jax.random.key(0), np.zeros((1, 2, 1, 1, 8), np.float32))


@pytest.mark.slow
def test_recomputing_and_half_precision():
    x, cond = normal(0, 2, FRAMES, 4, 4, 3), {"label": np.array([2, 0], np.int32)}
    module = VideoUNet(**SMALL, **TIME)
    params = random(shapes(module, x, cond))
    want = run(networks.as_apply(module), params, x, NOISE, cond)
    again = run(networks.as_apply(module.clone(remat="full")), params, x, NOISE, cond)
    np.testing.assert_allclose(again, want, rtol=0, atol=1e-5)
    half = run(networks.as_apply(module.clone(dtype=jnp.bfloat16)), params, x, NOISE, cond)
    assert half.dtype == jnp.float32 and 0 < np.sqrt(np.mean((half - want) ** 2)) < 0.1 * np.sqrt(np.mean(want**2))
