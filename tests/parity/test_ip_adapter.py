"""IP-Adapters: diffusers' answers with the same file, by the numbers that it gives the attentions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")

from parity.checkpoints import close, lift, nchw, nhwc, randomize, roundtrip  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff.interop.adapters.ip_adapter import is_ip_adapter  # noqa: E402

WIDTHS, TEXT, EMBEDDING = (8, 12), 6, 5
draw = np.random.default_rng(0)
X, TOKENS = draw.standard_normal((2, 8, 8, 4), np.float32), draw.standard_normal((2, 5, TEXT), np.float32)
EMBEDDED, NOISE = draw.standard_normal((2, EMBEDDING), np.float32), np.float32([3, 700])


def unet():
    return randomize(
        diffusers.UNet2DConditionModel(
            block_out_channels=WIDTHS, down_block_types=("CrossAttnDownBlock2D",) * 2, layers_per_block=1,
            up_block_types=("CrossAttnUpBlock2D",) * 2, norm_num_groups=4, attention_head_dim=2,
            cross_attention_dim=TEXT, transformer_layers_per_block=(1, 2),
        )
    )  # fmt: skip


def adapter(model):
    """Random weights by the file's names: attentions have odd numbers, in the order of diffusers' processors."""
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    projection = {"proj.weight": normal(4 * TEXT, EMBEDDING), "proj.bias": normal(4 * TEXT)}
    projection |= {"norm.weight": 1 + normal(TEXT), "norm.bias": normal(TEXT)}
    widths = [model.get_submodule(name.removesuffix(".processor")).to_q.out_features for name in model.attn_processors]
    own = {
        f"{i}.to_{to}_ip.weight": normal(width, TEXT) for i, width in enumerate(widths) if i % 2 for to in ("k", "v")
    }
    return {"image_proj": projection, "ip_adapter": own}


@pytest.mark.slow
def test_an_image_prompt(tmp_path):
    model = unet()
    plain, weights = roundtrip(model, tmp_path / "unet"), adapter(model)
    file = tmp_path / "ip-adapter.safetensors"
    safetensors.save_file({f"{part}.{k}": v for part, kept in weights.items() for k, v in kept.items()}, file)
    loaded = jd.interop.load_ip_adapter(file, plain)

    @jax.jit
    def by(params, scale, until):
        prompt = loaded.projection.apply(loaded.projection.params, EMBEDDED)
        network = jd.networks.image_prompted(loaded.unet.apply, lambda noise: jnp.where(noise < until, scale, 0.0))
        return network(params, X, NOISE, {"tokens": TOKENS, "image_prompt": (prompt,)})

    def ours(params, *scales, until=1000):
        return by(params, np.float32(scales), np.float32(until))

    given = nchw(X), torch.from_numpy(NOISE).int(), torch.from_numpy(TOKENS)
    with torch.no_grad():
        without = nhwc(model(*given).sample)
        model._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
        wanted = {}
        for scale in (0.7, 0.2):
            for processor in model.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [scale]
            embeds = {"image_embeds": [torch.from_numpy(EMBEDDED)[:, None]]}
            wanted[scale] = nhwc(model(*given, added_cond_kwargs=embeds).sample)
    for scale, want in wanted.items():
        close(ours(loaded.unet.params, scale, scale), want, 5e-5)
        assert np.abs(want - without).max() > 0.05
    each = ours(loaded.unet.params, 0.7, 0.2)
    close(each[0], wanted[0.7][0], 5e-5)
    close(each[1], wanted[0.2][1], 5e-5)
    # Off bit for bit: no weight of the adapter matters.
    off = ours(loaded.unet.params, 0, 0)
    spoiled = jax.tree_util.tree_map_with_path(lambda p, a: a + 1 if "processor" in str(p) else a, loaded.unet.params)
    np.testing.assert_array_equal(ours(spoiled, 0, 0), off)
    close(off, without, 5e-5)
    close(ours(loaded.unet.params, 0.7, 0.7, until=100), np.stack([wanted[0.7][0], without[1]]), 5e-5)
    # One number is that of all examples.
    seen = lambda params, x, noise, cond, *, key=None: cond["image_scale"]  # noqa: E731
    shared = jd.networks.image_prompted(seen, 0.5)({}, X, NOISE, {"image_prompt": (EMBEDDED,)})
    np.testing.assert_array_equal(shared, np.float32([[0.5, 0.5]]))


FACE, RANK = 7, 3


def face_adapter(model):
    """FaceID's weights by the file's names: changes of low rank for all attentions."""
    generator = torch.Generator().manual_seed(2)
    normal = lambda *shape: torch.randn(shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    projection = {"proj.0.weight": normal(2 * FACE, FACE), "proj.0.bias": normal(2 * FACE)}
    projection |= {"proj.2.weight": normal(4 * TEXT, 2 * FACE), "proj.2.bias": normal(4 * TEXT)}
    projection |= {"norm.weight": 1 + normal(TEXT), "norm.bias": normal(TEXT)}
    own = adapter(model)["ip_adapter"]
    for i, name in enumerate(model.attn_processors):
        attention = model.get_submodule(name.removesuffix(".processor"))
        layers = {to: getattr(attention, f"to_{to}") for to in "qkv"} | {"out": attention.to_out[0]}
        for to, layer in layers.items():
            own[f"{i}.to_{to}_lora.down.weight"] = normal(RANK, layer.in_features)
            own[f"{i}.to_{to}_lora.up.weight"] = normal(layer.out_features, RANK)
    return {"image_proj": projection, "ip_adapter": own}


@pytest.mark.slow
def test_two_at_once_of_which_one_is_of_a_face(tmp_path, x64, monkeypatch):
    """In float64. diffusers takes the low-rank changes as LoRA; ours are on where the scale is not 0."""
    pytest.importorskip("peft")
    lift(monkeypatch)
    model = unet().double()
    model.save_pretrained(tmp_path / "unet")
    loaded = jd.interop.load(tmp_path / "unet", dtype=jnp.float64, param_dtype=jnp.float64)
    weights = [{part: {k: v.double() for k, v in kept.items()} for part, kept in make(model).items()}
               for make in (adapter, face_adapter)]  # fmt: skip
    ours = []
    for i, held in enumerate(weights):
        tensors = {f"{part}.{k}": v for part, kept in held.items() for k, v in kept.items()}
        safetensors.save_file(tensors, tmp_path / f"{i}.safetensors")
        before = ours[-1].unet if ours else loaded
        ours.append(jd.interop.load_ip_adapter(tmp_path / f"{i}.safetensors", before, dtype=jnp.float64))
    faces = np.random.default_rng(3).standard_normal((2, FACE))
    given = [np.float64(a) for a in (X, NOISE, TOKENS)]

    @jax.jit
    def by(params, scales):
        prompts = [a.projection.apply(a.projection.params, e) for a, e in zip(ours, (EMBEDDED, faces), strict=True)]
        cond = {"tokens": given[2], "image_prompt": prompts}
        return jd.networks.image_prompted(ours[1].unet.apply, list(scales))(params, *given[:2], cond)

    with torch.no_grad():
        torch_given = nchw(given[0]), torch.from_numpy(NOISE).int(), torch.from_numpy(given[2])
        without = nhwc(model(*torch_given).sample)
        model._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
        lora = model._load_ip_adapter_loras(weights)[1]
        diffusers.StableDiffusionPipeline.load_lora_into_unet(
            {name.replace(".processor", ""): value for name, value in lora.items()}, None, model, adapter_name="face"
        )
        model.double()

        def reference(*scales):
            for processor in model.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = list(scales)
            embeds = {"image_embeds": [torch.from_numpy(np.float64(e))[:, None] for e in (EMBEDDED, faces)]}
            return nhwc(model(*torch_given, added_cond_kwargs=embeds).sample)

        want = {scales: reference(*scales) for scales in ((0.7, 0.4), (0.0, 0.4), (0.0, 0.0))}
        assert np.abs(want[0.0, 0.0] - without).max() > 0.05  # diffusers' changes of low rank are always on
    params = ours[1].unet.params
    for scales in ((0.7, 0.4), (0.0, 0.4)):
        both = by(params, np.tile(np.float64(scales)[:, None], 2))
        close(both, want[scales], 1e-12)
        assert np.abs(want[scales] - want[0.0, 0.0]).max() > 0.05
    # Off bit for bit, and what the U-Net is without both; of one example alone, too.
    off = by(params, np.zeros((2, 2)))
    np.testing.assert_allclose(off, without, atol=1e-12)
    np.testing.assert_array_equal(by(params, np.float64([[0.0, 0.0], [0.4, 0.0]]))[1], off[1])
    spoiled = jax.tree_util.tree_map_with_path(lambda p, a: a + 1 if "processor" in str(p) else a, params)
    np.testing.assert_array_equal(by(spoiled, np.zeros((2, 2))), off)


def face_plus_adapter(model):
    """FaceID Plus: its projection, of one head and four layers as the reference has, and FaceID's attentions."""
    generator = torch.Generator().manual_seed(4)
    normal = lambda *shape: torch.randn(shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    both = face_adapter(model)
    affine = lambda name, width: {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}  # noqa: E731
    resampler = {"proj_in.weight": normal(TEXT, EMBEDDING), "proj_in.bias": normal(TEXT), **affine("norm_out", TEXT)}
    resampler |= {"proj_out.weight": normal(TEXT, TEXT), "proj_out.bias": normal(TEXT)}
    for i in range(4):
        layer = {"0.to_q.weight": normal(64, TEXT), "0.to_kv.weight": normal(128, TEXT), **affine("0.norm1", TEXT)}
        layer |= {"0.to_out.weight": normal(TEXT, 64), **affine("0.norm2", TEXT), **affine("1.0", TEXT)}
        layer |= {"1.1.weight": normal(4 * TEXT, TEXT), "1.3.weight": normal(TEXT, 4 * TEXT)}
        resampler |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    both["image_proj"] |= {f"perceiver_resampler.{name}": value for name, value in resampler.items()}
    return both


@pytest.mark.slow
def test_a_face_and_its_patches(tmp_path, x64, monkeypatch):
    """FaceID Plus, and Plus v2 at two weights, in float64; one per example as each alone."""
    lift(monkeypatch)
    model = unet().double()
    plain = roundtrip(model, tmp_path / "unet")
    weights = {part: {k: v.double() for k, v in kept.items()} for part, kept in face_plus_adapter(model).items()}
    file = tmp_path / "faceid-plusv2.safetensors"
    safetensors.save_file({f"{part}.{k}": v for part, kept in weights.items() for k, v in kept.items()}, file)
    loaded = jd.interop.load_ip_adapter(file, plain, dtype=jnp.float64)
    assert {name: loaded.projection.config[name] for name in ("projects", "features", "rank")} == {
        "projects": "face and patches", "features": FACE, "rank": RANK
    }  # fmt: skip
    rng = np.random.default_rng(5)
    face, patches = rng.standard_normal((2, FACE)), rng.standard_normal((2, 9, EMBEDDING))
    with torch.no_grad():
        model._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
        projection = model.encoder_hid_proj.image_projection_layers[0].double()
        projection.clip_embeds = torch.from_numpy(patches)[:, None]
        want = {}
        for shortcut in (None, 1.0, 0.3):
            projection.shortcut, projection.shortcut_scale = shortcut is not None, shortcut
            want[shortcut] = projection(torch.from_numpy(face)[:, None]).numpy()
    project = jax.jit(loaded.projection.apply)
    for shortcut, tokens in want.items():
        both = None if shortcut is None else np.full(2, shortcut)
        close(project(loaded.projection.params, face, patches, both), tokens, 1e-12)
    each = project(loaded.projection.params, face, patches, np.array([1.0, 0.3]))
    close(each, np.stack([want[1.0][0], want[0.3][1]]), 1e-12)
    assert np.abs(want[1.0] - want[None]).max() > 0.05


def test_a_pickled_adapter_is_converted_as_its_error_says(tmp_path):
    """The command in the message makes a file of the same tensors, which is read; the pickle is not."""
    weights, file = face_adapter(unet()), tmp_path / "faceid.bin"
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r"faceid.bin is pickled, .* convert it with PyTorch") as error:
        jd.interop.load_ip_adapter(file, jd.interop.Pretrained(None, {}, {"_class_name": "UNet2DConditionModel"}))
    load, parts = re.search(r"`(state = [^;]*); .*by `(\{.*\})`", str(error.value)).groups()
    scope = {"torch": torch, "FILE": file}
    exec(load, scope)
    converted = eval(parts, scope)
    safetensors.save_file(converted, tmp_path / "faceid.safetensors")
    assert is_ip_adapter(tmp_path / "faceid.safetensors") and not is_ip_adapter(file)
    np.testing.assert_array_equal(converted["ip_adapter.3.to_v_ip.weight"], weights["ip_adapter"]["3.to_v_ip.weight"])
