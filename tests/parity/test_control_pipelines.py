"""ControlNets and T2I-Adapters within text-to-image pipelines: prompts, hints and noise give diffusers' images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity import pipelines as tiny  # noqa: E402
from parity.checkpoints import nhwc, randomize  # noqa: E402

import jaxdiff as jd  # noqa: E402

N = 4
SCALES = 0.8, 0.5
KEYS = jax.random.split(jax.random.key(0), 2)
HINTS = torch.rand((2, 2, 3, 16, 16), generator=torch.Generator().manual_seed(4))


def control(unet, seed):
    made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6))
    return randomize(made, seed)


def written(folder, pipe):
    """(pipe, its directory, the plain pictures of ours)."""
    pipe.save_pretrained(folder / "model")
    made = jd.text_to_image.load(folder / "model", steps=N)
    base = jax.jit(made.generate)(
        made.params, made.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=made.tokenize(tiny.NEGATIVE),
        noise=jnp.asarray(nhwc(tiny.latents())),
    )  # fmt: skip
    return pipe, folder / "model", base


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """`written` of Stable Diffusion XL."""
    folder = tmp_path_factory.mktemp("xl")
    scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1)
    return written(folder, tiny.xl(folder, scheduler, False))


def answer(pipe, **options):
    """The reference's pictures."""
    pipe.set_progress_bar_config(disable=True)
    given = {"latents": tiny.latents(), "num_inference_steps": N, "guidance_scale": 3.0}
    with torch.no_grad():
        return pipe(tiny.PROMPTS, negative_prompt=tiny.NEGATIVE, output_type="np", **given, **options).images


def follows(plain, folder, hints, want, scales):
    """Ours are the reference's pictures, and at scales of 0 the plain pipeline's."""
    _, directory, base = plain
    z, controls = tiny.latents(), [folder / f"control-{i}" for i in range(len(hints))]
    made = jd.text_to_image.load(directory, steps=N, controls=controls)
    times = made.sampling.grid(N).t
    until = lambda scale, last: lambda level: jnp.where(level.t >= times[last], scale, 0)  # noqa: E731
    generate = jax.jit(
        lambda params, scale: made.generate(
            params, made.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=made.tokenize(tiny.NEGATIVE),
            noise=jnp.asarray(nhwc(z)), hints=[jnp.asarray(nhwc(h)) for h in hints], control_scale=scales(scale, until),
        )
    )  # fmt: skip
    got, off = generate(made.params, jnp.float32(SCALES[0])), generate(made.params, jnp.float32(0))
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=5e-5)
    assert np.mean((want > 0) & (want < 1)) > 0.5 and want.std() > 0.1 and np.abs(got - base).max() > 0.1
    np.testing.assert_allclose(off, base, atol=1e-5)


@pytest.mark.slow
def test_two_of_stable_diffusion(tmp_path):
    """The second in the first half of the steps alone."""
    scheduler = diffusers.DDIMScheduler(**tiny.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    plain = written(tmp_path, tiny.stable_diffusion(tmp_path, scheduler))
    controls = [control(plain[0].unet, seed) for seed in (21, 22)]
    for i, each in enumerate(controls):
        each.save_pretrained(tmp_path / f"control-{i}")
    parts = plain[0].components | {"controlnet": diffusers.MultiControlNetModel(controls)}
    want = answer(
        diffusers.StableDiffusionControlNetPipeline(**parts), image=[*HINTS], control_guidance_end=[1.0, 0.5],
        controlnet_conditioning_scale=[*SCALES],
    )  # fmt: skip
    scales = lambda scale, until: [scale, until(SCALES[1] / SCALES[0] * scale, N // 2 - 1)]  # noqa: E731
    follows(plain, tmp_path, HINTS, want, scales)


@pytest.mark.slow
def test_one_of_stable_diffusion_xl(tmp_path, xl):
    """In all steps but the last."""
    steers = control(xl[0].unet, 21)
    steers.save_pretrained(tmp_path / "control-0")
    want = answer(
        diffusers.StableDiffusionXLControlNetPipeline(**xl[0].components | {"controlnet": steers}), image=HINTS[0],
        control_guidance_end=0.75, controlnet_conditioning_scale=SCALES[0],
    )  # fmt: skip
    follows(xl, tmp_path, HINTS[:1], want, lambda scale, until: [until(scale, N - 2)])


@pytest.mark.slow
def test_a_mask_and_a_hint_at_once(tmp_path, monkeypatch):
    """A part of a picture is painted anew, along a hint."""
    path = "diffusers.pipelines.controlnet.pipeline_controlnet_inpaint.randn_tensor"
    monkeypatch.setattr(path, lambda shape, **kwargs: tiny.latents(channels=shape[1]))
    scheduler = diffusers.DDIMScheduler(**tiny.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = tiny.stable_diffusion(tmp_path, scheduler)
    steers, z = control(pipe.unet, 21), tiny.latents()
    steers.save_pretrained(tmp_path / "control")
    pipe.save_pretrained(tmp_path / "model")
    theirs = diffusers.StableDiffusionControlNetInpaintPipeline(**pipe.components | {"controlnet": steers})
    theirs.set_progress_bar_config(disable=True)
    # Theirs draws of the latents' distribution, which the mode stands for.
    kind = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mode())
    picture, mask = HINTS[1].flip(-1), torch.zeros((2, 1, 16, 16))
    mask[0, :, 4:, :9], mask[1, :, :7] = 1, 1
    with torch.no_grad():
        want = theirs(
            tiny.PROMPTS, image=picture, mask_image=mask, control_image=HINTS[0], height=16, width=16, strength=0.75,
            num_inference_steps=N, guidance_scale=3.0, negative_prompt=tiny.NEGATIVE, output_type="np",
            controlnet_conditioning_scale=0.8,
        ).images  # fmt: skip
    made = jd.text_to_image.load(tmp_path / "model", steps=N, controls=[tmp_path / "control"])
    generate = jax.jit(
        lambda params, scale: made.generate(
            params, made.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=made.tokenize(tiny.NEGATIVE), strength=0.75,
            noise=jnp.asarray(nhwc(z)), image=jnp.asarray(nhwc(2 * picture - 1)), mask=jnp.asarray(mask[:, 0].numpy()),
            hints=[jnp.asarray(nhwc(HINTS[0]))], control_scale=[scale],
        )
    )  # fmt: skip
    got, off = (generate(made.params, jnp.float32(scale)) for scale in (0.8, 0.0))
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=5e-5)
    assert np.mean((want > 0) & (want < 1)) > 0.5 and np.abs(got - off).max() > 0.1


def adapter(seed, **fields):
    return randomize(diffusers.T2IAdapter(channels=fields.pop("channels"), num_res_blocks=1, **fields), seed)


@pytest.mark.slow
def test_adapters_of_stable_diffusion(tmp_path):
    """Two of them, in colour and grey, added."""
    scheduler = diffusers.DDIMScheduler(**tiny.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    # The reference adds features within attention's levels and after others: so that the first is one of the former.
    levels = {key: value[::-1] for key, value in tiny.TWO_LEVELS.items()} | {"block_out_channels": (8, 16)}
    plain = written(tmp_path, tiny.stable_diffusion(tmp_path, scheduler, **levels))
    shapes = {"channels": [8, 16], "downscale_factor": 2}
    adapters = [adapter(31 + i, in_channels=channels, **shapes) for i, channels in enumerate((3, 1))]
    for i, each in enumerate(adapters):
        each.save_pretrained(tmp_path / f"control-{i}")
    hints = [HINTS[0], HINTS[1][:, :1]]
    parts = plain[0].components | {"adapter": diffusers.MultiAdapter(adapters)}
    del parts["image_encoder"]
    steered = diffusers.StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)
    want = answer(steered, image=hints, adapter_conditioning_scale=[*SCALES], height=16, width=16)
    follows(plain, tmp_path, hints, want, lambda scale, until: [scale, SCALES[1] / SCALES[0] * scale])


@pytest.mark.slow
def test_an_adapter_of_stable_diffusion_xl(tmp_path, xl):
    """In the first half of the steps alone."""
    each = adapter(31, channels=[8], downscale_factor=2, adapter_type="full_adapter_xl")
    each.save_pretrained(tmp_path / "control-0")
    want = answer(
        diffusers.StableDiffusionXLAdapterPipeline(**xl[0].components | {"adapter": each}), image=HINTS[0],
        adapter_conditioning_scale=SCALES[0], adapter_conditioning_factor=0.5, height=16, width=16,
    )  # fmt: skip
    follows(xl, tmp_path, HINTS[:1], want, lambda scale, until: [until(scale, N // 2 - 1)])
