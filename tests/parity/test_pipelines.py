"""Parity of whole text-to-image pipelines with diffusers': the same prompts and noise give the same images.

Departure of ours, on purpose: the latents of an image are the mean of their posterior, where diffusers draws them.
"""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity import pipelines as tiny  # noqa: E402
from parity.checkpoints import nhwc  # noqa: E402

import jaxdiff as jd  # noqa: E402

N = 4
KEYS = jax.random.split(jax.random.key(0), 2)
DDIM = {**tiny.SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def theirs(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(tiny.PROMPTS, num_inference_steps=N, output_type="np", **options).images


def ours(folder, pipe, build=(), negative=False, **options):
    pipe.save_pretrained(folder / "model")
    made = jd.interop.text_to_image(folder / "model", steps=N, **dict(build))
    if negative:
        options["negative"] = made.tokenize(tiny.NEGATIVE)
    options = {name: jnp.asarray(nhwc(v)) if torch.is_tensor(v) else v for name, v in options.items()}
    return jax.jit(made.generate)(made.params, made.tokenize(tiny.PROMPTS), KEYS, **options)


def same(got, want, tolerance=2e-5):
    assert np.mean((want > 0) & (want < 1)) > 0.5, "images that are all black or white compare nothing"
    assert want.std() > 0.1 and np.abs(want[0] - want[1]).max() > 0.1
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=tolerance)


SCHEDULERS = {
    "pndm": lambda: diffusers.PNDMScheduler(**tiny.SD, skip_prk_steps=True, steps_offset=1),
    "ddim-v": lambda: diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**tiny.SD, use_karras_sigmas=True),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**tiny.SD),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**tiny.SD),
}


def fast(one, *slow):
    return [one, *(pytest.param(other, marks=pytest.mark.slow) for other in slow)]


@pytest.mark.parametrize("name", fast("ddim-v", *(name for name in SCHEDULERS if name != "ddim-v")))
def test_stable_diffusion(name, tmp_path):
    pipe, z = tiny.stable_diffusion(tmp_path, SCHEDULERS[name]()), tiny.latents()
    want = theirs(pipe, latents=z, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE, guidance_rescale=0.7)
    same(ours(tmp_path, pipe, guidance=3.0, negative=True, rescale=0.7, noise=z), want)


@pytest.mark.slow
def test_stable_diffusion_without_guidance_of_another_size_by_another_scheduler(tmp_path):
    pipe, z = tiny.stable_diffusion(tmp_path, SCHEDULERS["ddim-v"]()), tiny.latents(12, 4)
    build = {"size": (24, 8), "kind": "EulerDiscreteScheduler"}
    got = ours(tmp_path, pipe, build, noise=z)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    same(got, theirs(pipe, latents=z, guidance_scale=1.0, height=24, width=8))


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [True, False])
def test_stable_diffusion_xl(zeros, tmp_path):
    scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1)
    pipe, z = tiny.xl(tmp_path, scheduler, zeros), tiny.latents()
    negative = {} if zeros else {"negative_prompt": tiny.NEGATIVE}
    want = theirs(pipe, latents=z, guidance_scale=4.0, guidance_rescale=0.5, **negative)
    same(ours(tmp_path, pipe, guidance=4.0, negative=not zeros, rescale=0.5, noise=z), want)


@pytest.mark.slow
@pytest.mark.parametrize("with_t5", [True, False])
def test_stable_diffusion_3(with_t5, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe, z = tiny.sd3(tmp_path, scheduler, with_t5), tiny.latents()
    want = theirs(pipe, latents=z, guidance_scale=4.0, negative_prompt=tiny.NEGATIVE, max_sequence_length=14)
    same(ours(tmp_path, pipe, {"length": 14}, guidance=4.0, negative=True, noise=z), want)


@pytest.mark.parametrize("told", fast(True, False))
def test_flux(told, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=told)
    pipe, z = tiny.flux(tmp_path, scheduler, told), tiny.latents(8, 12)
    packed = pipe._pack_latents(z, 2, tiny.CHANNELS, 8, 12)
    want = theirs(pipe, latents=packed, guidance_scale=3.5, height=16, width=24, max_sequence_length=14)
    same(ours(tmp_path, pipe, {"length": 14, "size": (16, 24)}, guidance=3.5 if told else None, noise=z), want)


@pytest.mark.slow
def test_latent_consistency_is_told_its_guidance(tmp_path, monkeypatch):
    pipe = tiny.stable_diffusion(tmp_path, diffusers.LCMScheduler(**tiny.SD), time_cond_proj_dim=8)
    z, drawn = tiny.latents(), torch.randn((N, *tiny.latents().shape))
    rest = iter(drawn)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **kwargs: next(rest))
    want = theirs(pipe, latents=z, guidance_scale=5.0)
    monkeypatch.setattr(import_module("jaxdiff.sample"), "fold_in", lambda key, i: i)
    numbers = jnp.asarray(np.stack([nhwc(one) for one in drawn]))
    monkeypatch.setattr(jd.noise, "_normal", lambda i, shape, dtype: numbers[i])
    same(ours(tmp_path, pipe, guidance=5.0, noise=z), want)


# With an image.


@pytest.fixture
def picture(monkeypatch):
    """An image [B, 3, 16, 16], a mask, and the same noise for both sides; theirs takes the mean of latents, too."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    generator = torch.Generator().manual_seed(4)
    image = torch.rand((2, 3, 16, 16), generator=generator) * 2 - 1
    mask = torch.zeros((2, 1, 16, 16))
    mask[0, :, 4:, :9], mask[1, :, :7] = 1, 1
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    for name in ("img2img", "inpaint"):
        path = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{name}.randn_tensor"
        monkeypatch.setattr(path, lambda *args, **kwargs: tiny.latents())
    return image, mask


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", ["ddim-v", "euler"])
def test_image_to_image(name, strength, picture, tmp_path):
    image, _ = picture
    pipe = tiny.stable_diffusion(tmp_path, SCHEDULERS[name](), kind=diffusers.StableDiffusionImg2ImgPipeline)
    want = theirs(pipe, image=(image + 1) / 2, strength=strength, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE)
    options = {"image": image, "strength": strength, "guidance": 3.0}
    same(ours(tmp_path, pipe, negative=True, noise=tiny.latents(), **options), want)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [tiny.CHANNELS, 2 * tiny.CHANNELS + 1])
def test_inpainting(channels, strength, picture, tmp_path):
    image, mask = picture
    kind = diffusers.StableDiffusionInpaintPipeline
    pipe = tiny.stable_diffusion(tmp_path, SCHEDULERS["euler"](), channels, kind)
    options = {"strength": strength, "guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE, "height": 16, "width": 16}
    want = theirs(pipe, image=(image + 1) / 2, mask_image=mask, **options)
    options = {"image": image, "mask": jnp.asarray(mask[:, 0].numpy()), "strength": strength, "guidance": 3.0}
    same(ours(tmp_path, pipe, negative=True, noise=tiny.latents(), **options), want)
