"""Checkpoints in one file against diffusers' converters: what they make of a file is what we read of it."""

import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.loaders import single_file_utils as reference  # noqa: E402
from parity import single_files as made  # noqa: E402
from parity.pipelines import clip_tokenizer, t5  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from jaxdiff.interop.formats.files import open_tensors  # noqa: E402
from jaxdiff.interop.models.single_file import read_single  # noqa: E402

SCALES = {"sd3": {"scale": 1.5305, "shift_factor": 0.0609}, "flux": {"scale": 0.3611, "shift_factor": 0.1159}}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}


def read(tensors, path):
    """Our parts of a file: (config, tensors) by name."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    single = read_single(open_tensors(path))
    return single, {name: part.read({}) for name, part in single.parts.items()}


def network_of(config):
    """The network that a config describes, with every field that it computes with."""
    apply = jd.interop.architecture(config).apply
    return inspect.getclosurevars(getattr(apply, "encode", apply)).nonlocals["module"]


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
def test_stable_diffusion(kind, tmp_path):
    unet = made.unet(kind)
    vae = made.vae(scale=0.13025 if kind == "xl" else 0.18215)
    first = made.clip(1, layers=23 if kind == "2" else 2, act="gelu" if kind == "2" else "quick_gelu")
    models = {"unet": unet, "vae": vae, "text_encoder": first}
    held = made.original_unet(unet) | made.original_vae(vae)
    # What beside the models lies in such files.
    held |= {"model_ema.decay": torch.ones(()), "alphas_cumprod": torch.ones(3)}
    want = {"unet": reference.convert_ldm_unet_checkpoint(dict(held), unet.config)}
    want["vae"] = reference.convert_ldm_vae_checkpoint(dict(held), vae.config)
    if kind == "2":
        # The layer before the last is the last.
        held |= made.original_open_clip(first, "cond_stage_model.model.", more_layers=1)
        held["cond_stage_model.model.text_projection"] = torch.ones(64, 64)
        want["text_encoder"] = reference.convert_open_clip_checkpoint(first, held)
    else:
        prefix = "conditioner.embedders.0.transformer." if kind == "xl" else "cond_stage_model.transformer."
        held |= made.state(first, prefix)
        want["text_encoder"] = reference.convert_ldm_clip_checkpoint(held)
    if kind == "xl":
        models["text_encoder_2"] = second = made.clip(2, projection=12, act="gelu")
        prefix = "conditioner.embedders.1.model."
        held |= made.original_open_clip(second, prefix)
        want["text_encoder_2"] = reference.convert_open_clip_checkpoint(second, held, prefix)
    single, parts = read(held, tmp_path / "x.safetensors")
    check(parts, models, want)
    if kind == "2":
        assert single.scheduler["prediction_type"] == "v_prediction" and parts["unet"][0]["sample_size"] == 96


def check(parts, models, want):
    assert parts.keys() == models.keys() == want.keys()
    for name, (config, tensors) in parts.items():
        made.equal(tensors, made.state(models[name]))
        made.equal(tensors, want[name])
        theirs = getattr(models[name].config, "to_dict", lambda own=models[name].config: dict(own))()
        assert network_of(config) == network_of(theirs | {"_class_name": type(models[name]).__name__})
        if name == "vae":
            own = models[name].config
            assert config["scaling_factor"] == own.scaling_factor and config.get("shift_factor") == own.shift_factor


@pytest.mark.parametrize("more", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}], ids=["3", "3.5"])
def test_stable_diffusion_3(more, tmp_path):
    transformer, vae = made.sd3(16, **more), made.vae(16, **SCALES["sd3"], **NO_QUANT)
    first, second, third = made.clip(1, projection=64), made.clip(2, projection=12, act="gelu"), t5(64)
    with torch.no_grad():
        first.text_projection.weight.copy_(torch.eye(64))
    held = made.original_transformer(transformer)
    want = {"transformer": reference.convert_sd3_transformer_checkpoint_to_diffusers(dict(held))}
    held |= made.original_vae(vae)
    want["vae"] = reference.convert_ldm_vae_checkpoint(dict(held), vae.config)
    for encoder, kind in ((first, "clip_l"), (second, "clip_g"), (third, "t5xxl")):
        held |= made.state(encoder, f"text_encoders.{kind}.transformer.")
    # The smaller one's projection changes nothing, whatever is written there.
    held["text_encoders.clip_l.transformer.text_projection.weight"] = torch.ones(64, 64)
    held["text_encoders.clip_l.logit_scale"] = torch.ones(())
    want["text_encoder"] = made.state(first)
    want["text_encoder_2"] = reference.convert_ldm_clip_checkpoint(held, "text_encoders.clip_g.transformer.")
    want["text_encoder_3"] = reference.convert_sd3_t5_checkpoint_to_diffusers(held)
    models = {"transformer": transformer, "vae": vae, "text_encoder": first, "text_encoder_2": second}
    _, parts = read(held, tmp_path / "x.safetensors")
    check(parts, models | {"text_encoder_3": third}, want)


def converted_flux(held, width):
    """The reference's converter, in which the published models' width is written."""
    source = inspect.getsource(reference.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("inner_dim = 3072") == 1
    space = dict(vars(reference))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)
    return space["convert_flux_transformer_checkpoint_to_diffusers"](dict(held))


@pytest.mark.parametrize(("guidance", "prefix"), [(True, ""), (False, "model.diffusion_model.")])
def test_flux(guidance, prefix, tmp_path):
    model = made.flux(guidance_embeds=guidance)
    held = made.original_transformer(model, prefix)
    single, parts = read(held, tmp_path / "x.safetensors")
    check(parts, {"transformer": model}, {"transformer": converted_flux(held, 64)})
    assert single.scheduler.get("use_dynamic_shifting", False) is guidance


def test_a_whole_pipeline(tmp_path, monkeypatch):
    """XL in one file: parameters, schedule and size are those of its directory; the vocabularies are the base's."""
    second, first, vae = made.clip(2, projection=12, act="gelu"), made.clip(1), made.vae(scale=0.13025)
    unet = made.unet("xl", sample_size=128)
    held = made.original_unet(unet) | made.original_vae(vae)
    held |= made.state(first, "conditioner.embedders.0.transformer.")
    file, base = tmp_path / "xl.safetensors", tmp_path / "base"
    save_file(held | made.original_open_clip(second, "conditioner.embedders.1.model."), file)
    with pytest.raises(ValueError, match=r"holds unet, vae, .*, and lacks tokenizer, tokenizer_2: give a base"):
        jd.text_to_image.load(file)
    with pytest.raises(ValueError, match=r"holds unet, vae, .*: name one of them, as in .*xl.safetensors/unet"):
        jd.interop.load(file)
    base.mkdir()
    clip_tokenizer(base / "tokenizer").save_pretrained(base / "tokenizer")
    clip_tokenizer(base / "tokenizer_2", pad="!</w>").save_pretrained(base / "tokenizer_2")

    pipe = jd.text_to_image.load(file, base=base, steps=3)
    assert pipe.size == (256, 256) and pipe.steps == 3 and pipe.zero_negative and pipe.negative
    for name, model in (("unet", unet), ("vae", vae), ("text_encoder", first), ("text_encoder_2", second)):
        want = made.state(model)
        built = jd.interop.architecture(pipe.models[name].config)
        got = dict(jd.interop.flatten(pipe.params[name], built.rename))
        made.equal(got, want)
    tokens = pipe.tokenize(["a cat"])
    assert tokens["text_encoder"][0, -1] != tokens["text_encoder_2"][0, -1] == 52

    levels, _ = pipe.generate.args[0].prepared
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )  # as in stable-diffusion-xl-base-1.0
    scheduler.set_timesteps(3)
    np.testing.assert_allclose(levels.sigma / levels.alpha, scheduler.sigmas, rtol=1e-5)

    # The block of docs/checkpoints.md.
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "base=" in text]
    file.rename(tmp_path / "sd_xl_base_1.0.safetensors")
    base.rename(tmp_path / "stable-diffusion-xl-base-1.0")
    monkeypatch.chdir(tmp_path)
    scope = {"jd": jd}
    exec(block, scope)
    jax.tree.map(np.testing.assert_array_equal, scope["pipe"].params, pipe.params)
    jax.tree.map(np.testing.assert_array_equal, scope["vae"].params, pipe.params["vae"])


def test_an_autoencoder_in_its_authors_names_beside_another(tmp_path):
    """In a directory of diffusers its own file is meant; the other, by its path, is told its factor by the config."""
    vae = made.vae(scale=0.13025)
    vae.save_pretrained(tmp_path)
    save_file(
        {name: 2 * value for name, value in made.original_vae(vae, "").items()}, tmp_path / "sdxl_vae.safetensors"
    )
    plain, other = jd.interop.load(tmp_path), jd.interop.load(tmp_path / "sdxl_vae.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), plain.params, other.params)
    assert plain.apply.scale == other.apply.scale == 0.13025
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"sdxl_vae.safetensors: .*give scaling_factor.*0.13025 for XL"):
        jd.interop.load(tmp_path / "sdxl_vae.safetensors")
    given = jd.interop.load(tmp_path / "sdxl_vae.safetensors", config={"scaling_factor": 0.5})
    assert given.apply.scale == 0.5


WIDE = {"block_out_channels": (320, 640, 1280, 1280), "sample_size": 64}
DEEP = {"use_linear_projection": True, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
LARGE = {
    "sample_size": 128, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "use_linear_projection": True, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
REFINER = LARGE | {
    "block_out_channels": (384, 768, 1536, 1536), "attention_head_dim": (6, 12, 24, 24), "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": (1, 4, 4, 4),  # published as 4, which says nothing where nothing attends
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
MEDIUM = {"pooled_projection_dim": 2048, "joint_attention_dim": 4096, "in_channels": 16, "out_channels": 16}
# The published configs, as far as they differ from the classes' defaults.
PUBLISHED = {
    "1.5": ("UNet2DConditionModel", WIDE | {"cross_attention_dim": 768, "attention_head_dim": 8}),
    "1.5 inpainting": ("UNet2DConditionModel", WIDE | {"cross_attention_dim": 768, "in_channels": 9}),
    "2.1": ("UNet2DConditionModel", WIDE | DEEP | {"sample_size": 96}),
    "xl": ("UNet2DConditionModel", LARGE),
    "refiner": ("UNet2DConditionModel", REFINER),
    "3": ("SD3Transformer2DModel", MEDIUM | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}),
    "3.5 medium": ("SD3Transformer2DModel", MEDIUM | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}),
    "3.5 large": ("SD3Transformer2DModel", MEDIUM | {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm"}),
    "flux dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux schnell": ("FluxTransformer2DModel", {"guidance_embeds": False}),
    "flux fill": ("FluxTransformer2DModel", {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_told_by_their_shapes(name):
    kind, fields = PUBLISHED[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**fields)
    original = made.original_unet if kind.startswith("UNet") else made.original_transformer
    single = read_single(original(model))
    (part,) = single.parts.values()
    config, tensors = part.read({})
    assert network_of(config) == network_of({**model.config, "_class_name": kind})
    assert config.get("sample_size") == model.config.get("sample_size")
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state(model).items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
