"""Image transformers against diffusers': DiT, SD3's and Flux's."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline  # noqa: E402
from parity.checkpoints import close, gradients, lift, nchw, nhwc, randomize, roundtrip  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
TEXT = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
TINY = {
    "DiTTransformer2DModel": HEADS | {"in_channels": 3, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 5},
    "SD3Transformer2DModel": HEADS
    | TEXT
    | {"sample_size": 8, "in_channels": 3, "out_channels": 3, "num_layers": 3}
    | {"caption_projection_dim": 16, "pos_embed_max_size": 6},
    "FluxTransformer2DModel": HEADS
    | TEXT
    | {"in_channels": 12, "num_layers": 2, "num_single_layers": 2, "axes_dims_rope": [2, 2, 4]},
}
DIT, SD3, FLUX = TINY


def build(kind, **changes):
    return randomize(getattr(diffusers, kind)(**TINY[kind] | changes))


def inputs(kind, *names, size=(8, 8), dtype=np.float32):
    """x, noise, cond; the conditions' names default to those of the tiny configuration."""
    rng = np.random.default_rng(0)
    shapes = {"x": (*size, 3), "tokens": (5, 12), "vector": (10,), "concat": (*size, 2)}
    drawn = {name: rng.standard_normal((2, *shape)).astype(dtype) for name, shape in shapes.items()}
    drawn |= {"label": np.array([4, 5]), "guidance": np.array([1.5, 4.0], dtype)}
    noise = np.array([3.0, 977.0], dtype) / dtype(1000 if kind == FLUX else 1)
    names = names or (("label",) if kind == DIT else ("tokens", "vector"))
    return drawn["x"], noise, {name: drawn[name] for name in names}


def theirs(model, x, noise, cond):
    """What the torch model makes of our inputs, [B, C, H, W]."""
    x, noise = nchw(x), torch.from_numpy(noise)
    cond = {name: nchw(a) if name == "concat" else torch.from_numpy(a) for name, a in cond.items()}
    if "label" in cond:
        return model(x, noise, cond["label"]).sample
    if isinstance(model, diffusers.SD3Transformer2DModel):
        return model(x, cond["tokens"], cond["vector"], noise).sample
    height, width = x.shape[2:]
    packed = [FluxPipeline._pack_latents(a, *a.shape) for a in [x, *(cond[n] for n in cond if n == "concat")]]
    y = model(
        torch.cat(packed, dim=-1),
        cond["tokens"],
        cond["vector"],
        noise,
        FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", x.dtype),
        torch.zeros(cond["tokens"].shape[1], 3, dtype=x.dtype),
        cond.get("guidance"),
    ).sample
    return FluxPipeline._unpack_latents(y, height, width, 1)


def whole(y):
    """The channels of F and of the learned variance together, as the reference has them."""
    return np.concatenate([y[0], 2 * y[1] - 1], axis=-1) if isinstance(y, tuple) else y


CASES = {
    "dit": (DIT, {}, (), (8, 8)),
    "dit, learned variance, larger": (DIT, {"out_channels": 6, "norm_eps": 1e-2}, (), (12, 12)),
    "sd3": (SD3, {}, (), (8, 12)),
    "sd3, queries and keys normed": (SD3, {"qk_norm": "rms_norm"}, (), (12, 8)),
    "sd3, dual": (SD3, {"qk_norm": "rms_norm", "num_layers": 5, "dual_attention_layers": [0, 1, 4]}, (), (8, 8)),
    "flux": (FLUX, {}, (), (8, 12)),
    "flux, guidance": (FLUX, {"guidance_embeds": True}, ("tokens", "vector", "guidance"), (8, 8)),
    "flux, beside": (FLUX, {"in_channels": 20, "out_channels": 12}, ("tokens", "vector", "concat"), (4, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reference_s_output(case, tmp_path):
    kind, changes, names, size = CASES[case]
    model = build(kind, **changes)
    loaded = roundtrip(model, tmp_path)
    x, noise, cond = inputs(kind, *names, size=size)
    with torch.no_grad():
        want = nhwc(theirs(model, x, noise, cond))
    close(whole(jax.jit(loaded.apply)(loaded.params, x, noise, cond)), want, 5e-5)


@pytest.mark.parametrize("kind", TINY)
def test_double_precision(kind, tmp_path, monkeypatch, x64):
    lift(monkeypatch)
    model = build(kind).double()
    model.save_pretrained(tmp_path)
    loaded = jd.interop.load(tmp_path, dtype=jnp.float64)
    x, noise, cond = inputs(kind, dtype=np.float64)
    with torch.no_grad():
        want = nhwc(theirs(model, x, noise, cond))
    got = loaded.apply(loaded.params, x, noise, cond)
    assert got.dtype == jnp.float64
    close(got, want, 1e-12)


@pytest.mark.parametrize(
    "kind", [pytest.param(DIT, marks=pytest.mark.slow), SD3, pytest.param(FLUX, marks=pytest.mark.slow)]
)
def test_gradients(kind, tmp_path):
    model = build(kind)
    loaded = roundtrip(model, tmp_path)
    x, noise, cond = inputs(kind)
    weight = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    (theirs(model, x, noise, cond) * nchw(weight)).mean().backward()
    got = gradients(loaded, lambda p: (loaded.apply(p, x, noise, cond) * weight).mean())
    for name, p in model.named_parameters():
        want = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        assert np.abs(got.pop(name) - want).max() < 1e-5 * max(1, np.abs(want).max()), name
    for name, left in got.items():
        assert name == "pos_embed.pos_embed"
        assert not left.any()


@pytest.mark.parametrize("kind", TINY)
def test_saved_models_load_in_torch(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path / "theirs")
    jd.interop.save(jd.interop.load(tmp_path / "theirs"), tmp_path / "ours")
    first, second = (load_file(tmp_path / d / "diffusion_pytorch_model.safetensors") for d in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    again, problems = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(problems.values()), problems
    with torch.no_grad():
        want, got = (theirs(m, *inputs(kind)) for m in (model, again.eval()))
    assert torch.equal(got, want)


def test_dit_by_its_old_name(tmp_path):
    """Both sides read a directory of 2023, whose class and fields are of several networks."""
    build(DIT, out_channels=6).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    old |= {"only_cross_attention": False, "use_linear_projection": False, "_diffusers_version": "0.12.0"}
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    loaded = jd.interop.load(tmp_path)
    model = diffusers.Transformer2DModel.from_pretrained(tmp_path)
    assert type(model) is diffusers.DiTTransformer2DModel
    x, noise, cond = inputs(DIT)
    with torch.no_grad():
        want = nhwc(theirs(model, x, noise, cond))
    close(whole(loaded.apply(loaded.params, x, noise, cond)), want, 5e-5)


@pytest.mark.parametrize("kind", TINY)
def test_bfloat16(kind, tmp_path):
    model = build(kind).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = jd.interop.load(tmp_path, dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.bfloat16)}
    x, noise, cond = inputs(kind)
    got = jax.jit(loaded.apply)(loaded.params, x, noise, cond)
    assert got.dtype == jnp.float32
    with torch.no_grad():
        want = nhwc(theirs(model.float(), x, noise, cond))
    close(got, want, 0.05)
    assert np.abs(np.asarray(got) - want).max() > 1e-4, "the computation was not in bfloat16"


# The figure published, and whether it counts SD3's table of positions, which is a buffer in PyTorch.
PUBLISHED = {
    # diffusers holds 28 embeddings; tests/networks/test_dit.py counts the network as published.
    "DiT-XL/2": (DIT, {"out_channels": 8, "attention_head_dim": 72, "num_attention_heads": 16}, 749_826_464, False),
    # Esser et al. 2024, fig. 8: depth 24, 2B; diffusers' class, exactly.
    "Stable Diffusion 3 medium": (
        SD3,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
        2_028_328_000,
        False,
    ),
    # Its model card: 2.5 billion.
    "Stable Diffusion 3.5 medium": (
        SD3,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384}
        | {"qk_norm": "rms_norm", "dual_attention_layers": list(range(13))},
        2.5e9,
        True,
    ),
    # Its model card: 8.1 billion.
    "Stable Diffusion 3.5 large": (
        SD3,
        {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
        | {"qk_norm": "rms_norm"},
        8.06e9,
        False,
    ),
    # Its model card: 12 billion.
    "Flux.1 dev": (FLUX, {"guidance_embeds": True}, 11_901_408_320, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    kind, config, published, with_table = PUBLISHED[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    want = {key: tuple(a.shape) for key, a in model.state_dict().items()}
    built = jd.interop.architecture(config | {"_class_name": kind})
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    got = {key: place.shape for key, place in jd.interop.formats.keys.places(shapes, built.rename).items()}
    assert got == want
    count = sum(math.prod(shape) for key, shape in got.items() if with_table or key != "pos_embed.pos_embed")
    assert count == published if isinstance(published, int) else abs(count / published - 1) < 0.02
