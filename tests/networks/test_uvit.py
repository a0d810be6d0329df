"""U-ViT against the paper's figures, and against its formulas written out in numpy, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxdiff import networks
from jaxdiff.networks.uvit import UViT, uvit_h_2_imagenet256, uvit_s_2_cifar10

SIZE = {"width": 8, "layers": 4, "num_heads": 2, "patch_size": 2, "num_classes": 3, "context_dim": 5}
NOISE = np.array([3.0, 700.5])
# Without LLVM's optimizations: what runs here is tiny.
QUICK = {"xla_backend_optimization_level": 0}


def shapes(module, x, cond):
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


def count(module, shape, cond=None):
    return sum(a.size for a in jax.tree.leaves(shapes(module, jax.ShapeDtypeStruct(shape, jnp.float32), cond)))


def example(dtype=np.float64):
    """A network's parameters without zeros, and what it takes."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 4, 6, 3)).astype(dtype)
    cond = {
        "label": np.array([3, 1], np.int32),
        "tokens": rng.standard_normal((2, 3, 5)).astype(dtype),
        "mask": np.array([[True, False, True], [True, True, True]]),
    }

    def draw(path, a):
        spread = np.sqrt(a.shape[-2]) if path[-1].key == "kernel" else 5
        return ((path[-1].key == "scale") + rng.standard_normal(a.shape) / spread).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(UViT(**SIZE), x, cond)), x, cond


def run(module, params, x, cond):
    return jax.jit(networks.as_apply(module), compiler_options=QUICK)(params, x, NOISE.astype(x.dtype), cond)


def norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def block(p, x, seen, num_heads, skip=None):
    if skip is not None:
        x = linear(p["skip_linear"], np.concatenate([x, skip], -1))
    q, k, v = np.split(linear(p["attn.qkv"], norm(p["norm1"], x)), 3, axis=-1)
    dim, out = x.shape[-1] // num_heads, np.zeros_like(x)
    for h in range(num_heads):
        own = slice(h * dim, (h + 1) * dim)
        w = np.exp(np.einsum("bnd,bld->bnl", q[..., own], k[..., own]) / np.sqrt(dim)) * seen[:, None]
        out[..., own] = w / w.sum(-1, keepdims=True) @ v[..., own]
    x = x + linear(p["attn.proj"], out)
    h = linear(p["mlp.fc1"], norm(p["norm2"], x))
    return x + linear(p["mlp.fc2"], h * (1 + erf(h / np.sqrt(2))) / 2)


def by_hand(params, x, cond, num_heads=2, patch_size=2):
    """Bao et al. 2022, fig. 1, in loops."""
    batch, height, width, channels = x.shape
    tokens = []
    for i in range(0, height, patch_size):
        for j in range(0, width, patch_size):
            kernel, bias = params["patch_embed.proj"]["kernel"], params["patch_embed.proj"]["bias"]
            tokens.append(np.einsum("bhwc,hwcd->bd", x[:, i : i + patch_size, j : j + patch_size], kernel) + bias)
    half = kernel.shape[-1] // 2
    angle = NOISE[:, None] * 10_000.0 ** (-np.arange(half) / half)
    time = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    context = linear(params["context_embed"], cond["tokens"])
    label = params["label_emb"]["embedding"][cond["label"]]
    h = np.concatenate([label[:, None], time[:, None], context, np.stack(tokens, 1)], 1) + params["pos_embed"]
    seen = np.ones(h.shape[:2])
    seen[:, 2:5] = cond["mask"]

    skips = []
    for i in range(2):
        h = block(jax.tree.map(lambda a, i=i: a[i], params["in_blocks.*"]), h, seen, num_heads)
        skips.append(h)
    h = block(params["mid_block"], h, seen, num_heads)
    for i in range(2):
        h = block(jax.tree.map(lambda a, i=i: a[i], params["out_blocks.*"]), h, seen, num_heads, skips.pop())
    h = linear(params["decoder_pred"], norm(params["norm"], h[:, -len(tokens) :]))

    image = np.zeros((batch, height + 2, width + 2, channels))
    for n in range(len(tokens)):
        i, j = divmod(n * patch_size, width)
        i, j = 1 + patch_size * i, 1 + j
        image[:, i : i + patch_size, j : j + patch_size] = h[:, n].reshape(batch, patch_size, patch_size, channels)
    kernel, bias = params["final_layer"]["kernel"], params["final_layer"]["bias"]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))  # [B, H, W, C, 3, 3]
    return np.einsum("bhwckl,klcd->bhwd", windows, kernel) + bias


def test_the_formulas_written_out(x64):
    params, x, cond = example()
    # What the mask hides may be anything.
    hidden = cond | {"tokens": np.where(cond["mask"][..., None], cond["tokens"], np.nan)}
    got, want = run(UViT(**SIZE, dtype=jnp.float64), params, x, hidden), by_hand(params, x, cond)
    assert got.dtype == jnp.float64 and np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_published_parameter_counts():
    # What the reference code has in its configurations; table 1 says 44 and 501 million.
    assert count(uvit_s_2_cifar10(), (1, 32, 32, 3)) == 44_255_328
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    assert count(uvit_h_2_imagenet256(), (1, 32, 32, 4), label) == 500_832_016
    # The same code's network of MS-COCO, 77 tokens of CLIP.
    text = {"tokens": jax.ShapeDtypeStruct((1, 77, 768), jnp.float32)}
    assert count(UViT(context_dim=768), (1, 32, 32, 4), text) == 44_692_644


@pytest.mark.slow
def test_half_precision_stays_near():
    params, x, cond = example(np.float32)
    got = run(UViT(**SIZE, dtype=jnp.bfloat16), params, x, cond)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, by_hand(params, x, cond), rtol=0, atol=0.15)


def test_refuses_what_it_is_not_made_for():
    params, x, cond = example(np.float32)

    def evaluate(module, x, cond):
        return jax.eval_shape(networks.as_apply(module), params, x, NOISE.astype(np.float32), cond)

    with pytest.raises(ValueError, match="positions for 11 tokens, got 9"):
        evaluate(UViT(**SIZE), x[:, :, :4], cond)
    with pytest.raises(ValueError, match="multiples of the patch's edge 2"):
        evaluate(UViT(**SIZE), x[:, :3], cond)
    with pytest.raises(ValueError, match="layers must be even"):
        evaluate(UViT(**SIZE | {"layers": 3}), x, cond)
    with pytest.raises(ValueError, match="'label', which is missing"):
        evaluate(UViT(**SIZE), x, {"tokens": cond["tokens"]})


@pytest.mark.slow
def test_recomputing_changes_no_gradient(x64):
    params, x, cond = example()

    def gradient(remat):
        module = UViT(**SIZE, remat=remat, dtype=jnp.float64)
        return jax.jit(jax.grad(lambda p: jnp.square(networks.as_apply(module)(p, x, NOISE, cond)).sum()))(params)

    want = gradient("none")
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), gradient(remat), want)
