"""Parity of whole text-to-image pipelines with diffusers': the same prompts and noise give the same images.

Departures of ours, on purpose: the latents of an image are the mean of their posterior, where diffusers draws them;
and those of Stable Diffusion 3 get the autoencoder's shift before they are decoded, which its inpainting there forgets.
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
from jaxdiff.networks import lora  # noqa: E402

N = 4
KEYS = jax.random.split(jax.random.key(0), 2)
DDIM = {**tiny.SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def theirs(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(tiny.PROMPTS, num_inference_steps=N, output_type="np", **options).images


def loaded(folder, pipe, build=()):
    """Of a pipeline of theirs, ours: (negative, options) -> images."""
    pipe.save_pretrained(folder / "model")
    made = jd.text_to_image.load(folder / "model", steps=N, **dict(build))
    generate = jax.jit(made.generate)

    def run(negative=False, **options):
        if negative:
            options["negative"] = made.tokenize(tiny.NEGATIVE)
        options = {name: jnp.asarray(nhwc(v)) if torch.is_tensor(v) else v for name, v in options.items()}
        return generate(made.params, made.tokenize(tiny.PROMPTS), KEYS, **options)

    return run


def ours(folder, pipe, build=(), negative=False, **options):
    return loaded(folder, pipe, build)(negative, **options)


def same(got, want, tolerance=2e-5):
    assert np.mean((want > 0) & (want < 1)) > 0.5, "images that are all black or white compare nothing"
    assert want.std() > 0.1 and np.abs(want[0] - want[1]).max() > 0.1
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=tolerance)


SCHEDULERS = {
    "pndm": lambda: diffusers.PNDMScheduler(**tiny.SD, skip_prk_steps=True, steps_offset=1),
    "ddim-v": lambda: diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1),
}


def test_stable_diffusion(tmp_path):
    """By the plainest steps; of other schedulers below."""
    pipe, z = tiny.stable_diffusion(tmp_path, SCHEDULERS["ddim-v"]()), tiny.latents()
    want = theirs(pipe, latents=z, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE, guidance_rescale=0.7)
    same(ours(tmp_path, pipe, guidance=3.0, negative=True, rescale=0.7, noise=z), want)


@pytest.mark.slow
def test_stable_diffusion_without_guidance_of_another_size_by_another_scheduler(tmp_path, monkeypatch):
    # Theirs wants multiples of 8 pixels, whatever an autoencoder's factor; with a factor of 8 odd latents are common.
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "check_inputs", lambda *args, **options: None)
    pipe = tiny.stable_diffusion(tmp_path, SCHEDULERS["ddim-v"](), **tiny.TWO_LEVELS)
    z = tiny.latents(9, 5)
    build = {"size": (18, 10), "kind": "EulerDiscreteScheduler"}
    got = ours(tmp_path, pipe, build, noise=z)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    same(got, theirs(pipe, latents=z, guidance_scale=1.0, height=18, width=10))


@pytest.mark.slow
def test_stable_diffusion_xl(tmp_path):
    """Without a negative prompt, of which zeros stand in; with one from an image, below."""
    pipe, z = tiny.xl(tmp_path, SCHEDULERS["euler"](), zeros=True), tiny.latents()
    want = theirs(pipe, latents=z, guidance_scale=4.0, guidance_rescale=0.5)
    same(ours(tmp_path, pipe, guidance=4.0, rescale=0.5, noise=z), want)


@pytest.mark.slow
def test_stable_diffusion_3(tmp_path):
    """With all three text encoders; without T5 by two calls a step, below."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe, z = tiny.sd3(tmp_path, scheduler, with_t5=True), tiny.latents()
    want = theirs(pipe, latents=z, guidance_scale=4.0, negative_prompt=tiny.NEGATIVE, max_sequence_length=14)
    same(ours(tmp_path, pipe, {"length": 14}, guidance=4.0, negative=True, noise=z), want)


@pytest.mark.parametrize("told", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_flux(told, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=told)
    pipe, z = tiny.flux(tmp_path, scheduler, told), tiny.latents(8, 12)
    packed = pipe._pack_latents(z, 2, tiny.CHANNELS, 8, 12)
    want = theirs(pipe, latents=packed, guidance_scale=3.5, height=16, width=24, max_sequence_length=14)
    same(ours(tmp_path, pipe, {"length": 14, "size": (16, 24)}, guidance=3.5 if told else None, noise=z), want)


@pytest.fixture
def drawn(monkeypatch):
    """Of a scheduler's class: has its step i and ours draw the same noise."""

    def inject(kind):
        numbers = torch.randn((N, *tiny.latents().shape), generator=torch.Generator().manual_seed(2))
        rest = iter(numbers)
        theirs, ours = getattr(diffusers, kind).__module__, jnp.asarray(np.stack([nhwc(one) for one in numbers]))
        monkeypatch.setattr(f"{theirs}.randn_tensor", lambda *args, **kwargs: next(rest), raising=False)
        monkeypatch.setattr(import_module("jaxdiff.sample"), "fold_in", lambda key, i: i)
        monkeypatch.setattr(jd.noise, "_normal", lambda i, shape, dtype: ours[i])

    return inject


@pytest.mark.slow
def test_latent_consistency_is_told_its_guidance(tmp_path, drawn):
    pipe, z = tiny.stable_diffusion(tmp_path, diffusers.LCMScheduler(**tiny.SD), time_cond_proj_dim=8), tiny.latents()
    drawn("LCMScheduler")
    want = theirs(pipe, latents=z, guidance_scale=5.0)
    same(ours(tmp_path, pipe, guidance=5.0, noise=z), want)


# The calls of theirs after which a step of ours is whole.
TWO_CALLS = [1, 3, 5, 6]
ENDS = {"HeunDiscreteScheduler": TWO_CALLS, "FlowMatchHeunDiscreteScheduler": TWO_CALLS}


@pytest.fixture
def by_steps(monkeypatch):
    """(theirs, ours): latents after each step, of `theirs` and `ours`."""
    kept = {"theirs": [], "ours": []}

    def sample(denoise, solver, levels, x, key, **options):
        x, path = jd.sample_path(denoise, solver, levels, x, key, **options)
        jax.debug.callback(lambda path: kept["ours"].extend(np.asarray(path)), path)
        return x

    monkeypatch.setattr(import_module("jaxdiff.sampler"), "sample", sample)

    def after(pipe, i, t, now):
        kept["theirs"].append(nhwc(now["latents"]))
        return now

    def compare(folder, pipe, z, kind, build=(), **options):
        guided = {"guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE}
        want = theirs(pipe, latents=z, callback_on_step_end=after, **guided, **options)
        rescale = {"rescale": options["guidance_rescale"]} if "guidance_rescale" in options else {}
        got = ours(folder, pipe, build, negative=True, guidance=3.0, noise=z, **rescale)
        jax.effects_barrier()
        path = [kept["theirs"][i] for i in ENDS.get(kind, range(len(kept["theirs"])))]
        assert len(kept["ours"]) == len(path)
        np.testing.assert_allclose(kept["ours"], path, rtol=0, atol=2e-5 * max(1, np.abs(path).max()))
        same(got, want, 5e-5)

    return compare


# One of each way to step through a pipeline: with noise, with two calls a step, with a longer list, by tables of
# coefficients; the plain one is above. `test_step_configs` and `test_exponential_configs` hold the steps of all.
TABLES = {
    "DDPMScheduler": {}, "HeunDiscreteScheduler": {}, "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_schedulers_step_by_step_with_guidance_and_rescale(kind, by_steps, drawn, tmp_path):
    config = diffusers.DDIMScheduler(**DDIM).config | TABLES[kind]
    pipe = tiny.stable_diffusion(tmp_path, getattr(diffusers, kind).from_config(config))
    drawn(kind)
    by_steps(tmp_path, pipe, tiny.latents(), kind, guidance_rescale=0.7)


@pytest.mark.slow
def test_a_flow_step_by_step_with_guidance(by_steps, tmp_path):
    kind = "FlowMatchHeunDiscreteScheduler"
    pipe = tiny.sd3(tmp_path, getattr(diffusers, kind)(shift=3.0), with_t5=False)
    by_steps(tmp_path, pipe, tiny.latents(), kind, {"length": 14}, max_sequence_length=14)


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
    for family in ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"):
        for name in ("img2img", "inpaint"):
            path = f"diffusers.pipelines.{family}.pipeline_{family}_{name}.randn_tensor"
            monkeypatch.setattr(path, lambda shape, **kwargs: tiny.latents(channels=shape[1]))
    return image, mask


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim-v", "pndm"])
def test_image_to_image(name, picture, tmp_path):
    image, _ = picture
    pipe = tiny.stable_diffusion(tmp_path, SCHEDULERS[name](), kind=diffusers.StableDiffusionImg2ImgPipeline)
    generate, options = loaded(tmp_path, pipe), {"guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE}
    for strength in (1.0, 0.6):
        want = theirs(pipe, image=(image + 1) / 2, strength=strength, **options)
        same(generate(True, noise=tiny.latents(), image=image, strength=strength, guidance=3.0), want)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [tiny.CHANNELS, 2 * tiny.CHANNELS + 1])
def test_inpainting(channels, picture, tmp_path):
    image, mask = picture
    kind = diffusers.StableDiffusionInpaintPipeline
    pipe = tiny.stable_diffusion(tmp_path, SCHEDULERS["euler"](), channels, kind)
    generate = loaded(tmp_path, pipe)
    options = {"guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE, "height": 16, "width": 16}
    own = {"image": image, "mask": jnp.asarray(mask[:, 0].numpy()), "guidance": 3.0, "noise": tiny.latents()}
    for strength in (1.0, 0.6):
        want = theirs(pipe, image=(image + 1) / 2, mask_image=mask, strength=strength, **options)
        same(generate(True, strength=strength, **own), want)


# A mask is the same to all, and so is none: for each kind of latents and of steps one of both.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "masked"), [("StableDiffusionXL", False), ("StableDiffusion3", True), ("Flux", True)])
def test_an_image_to_begin_with_and_a_mask_in_others(kind, masked, picture, tmp_path, monkeypatch):
    """A strength between two numbers of steps: XL takes the lower number, the flows the higher."""
    image, mask = picture
    channels = 16 if kind == "StableDiffusion3" else tiny.CHANNELS  # theirs wants as many
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    build = {"length": 14, "size": (16, 16)}
    guided, options = {"guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE}, {"max_sequence_length": 14}
    if kind == "StableDiffusionXL":
        pipe, options, build = tiny.xl(tmp_path, SCHEDULERS["euler"](), zeros=False), {}, {}
    elif kind == "StableDiffusion3":
        pipe = tiny.sd3(tmp_path, flow, with_t5=True, channels=channels)
    else:
        pipe, guided = tiny.flux(tmp_path, flow, told=True), {"guidance_scale": 3.0}
    begun = getattr(diffusers, f"{kind}{'Inpaint' if masked else 'Img2Img'}Pipeline")(**pipe.components)
    if kind == "StableDiffusion3" and masked:
        shift, decode = pipe.vae.config.shift_factor, pipe.vae.decode
        monkeypatch.setattr(pipe.vae, "decode", lambda z, **options: decode(z + shift, **options))
    options |= {"mask_image": mask} if masked else {}
    options |= {} if kind == "StableDiffusionXL" and not masked else {"height": 16, "width": 16}
    want = theirs(begun, image=(image + 1) / 2, strength=0.6, **guided, **options)
    more = {"mask": jnp.asarray(mask[:, 0].numpy())} if masked else {}
    more |= {"image": image, "strength": 0.6, "guidance": 3.0, "noise": tiny.latents(channels=channels)}
    same(ours(tmp_path, pipe, build, negative=kind != "Flux", **more), want)


@pytest.mark.slow
def test_the_refiner(picture, tmp_path):
    image, _ = picture
    pipe = tiny.refiner(tmp_path, SCHEDULERS["euler"]())
    guided = {"guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE}
    want = theirs(pipe, image=(image + 1) / 2, strength=0.5, **guided)
    same(ours(tmp_path, pipe, negative=True, image=image, strength=0.5, guidance=3.0, noise=tiny.latents()), want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["StableDiffusion", "StableDiffusion3"])
def test_adapters_of_all_models_from_our_file(kind, tmp_path):
    if kind == "StableDiffusion":
        pipe, build, options = tiny.stable_diffusion(tmp_path, SCHEDULERS["euler"]()), {}, {}
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe, build, options = tiny.sd3(tmp_path, scheduler, False), {"length": 14}, {"max_sequence_length": 14}
    z = tiny.latents()
    plain = theirs(pipe, latents=z, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE, **options)
    pipe.save_pretrained(tmp_path / "model")
    made = jd.text_to_image.load(tmp_path / "model", steps=N, **build)
    adapted = {name: made.params[name] for name in made.models if name != "vae"}
    adapters = lora.init(jax.random.key(0), adapted, 2)
    drawn = jax.random.split(jax.random.key(1), len(jax.tree.leaves(adapters)))
    keys = jax.tree.unflatten(jax.tree.structure(adapters), list(drawn))
    adapters = jax.tree.map(lambda a, key: 0.3 * jax.random.normal(key, a.shape), adapters, keys)
    file = jd.interop.save_lora(tmp_path / "lora", adapters, made.models)

    params = lora.merge(made.params, jd.interop.load_lora(file, made.models))
    more = {"guidance": 3.0, "negative": made.tokenize(tiny.NEGATIVE), "noise": jnp.asarray(nhwc(z))}
    got = jax.jit(made.generate)(params, made.tokenize(tiny.PROMPTS), KEYS, **more)
    pipe.load_lora_weights(tmp_path / "lora")
    want = theirs(pipe, latents=z, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE, **options)
    assert np.abs(want - plain).max() > 0.05
    same(got, want)
