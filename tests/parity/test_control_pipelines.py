"""ControlNets within text-to-image pipelines: the same prompts, hints and noise give diffusers' images."""

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
KEYS = jax.random.split(jax.random.key(0), 2)
HINTS = torch.rand((2, 2, 3, 16, 16), generator=torch.Generator().manual_seed(4))


def control(unet, seed):
    made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6))
    return randomize(made, seed)


def compare(folder, kind, pipe, *, end, **options):
    """Both answers of two ControlNets, the second of which is off from `end` on, and the plain pipeline's."""
    controls = [control(pipe.unet, seed) for seed in (21, 22)]
    for i, each in enumerate(controls):
        each.save_pretrained(folder / f"control-{i}")
    pipe.save_pretrained(folder / "model")
    z, scales = tiny.latents(), [0.8, 0.5]
    steered = kind(**pipe.components | {"controlnet": diffusers.MultiControlNetModel(controls)}, **options)
    steered.set_progress_bar_config(disable=True)
    given = {"latents": z, "num_inference_steps": N, "guidance_scale": 3.0, "negative_prompt": tiny.NEGATIVE}
    with torch.no_grad():
        want = steered(
            tiny.PROMPTS, image=[*HINTS], controlnet_conditioning_scale=scales, control_guidance_end=[1.0, end],
            output_type="np", **given,
        ).images  # fmt: skip
    made = jd.text_to_image.load(folder / "model", steps=N, controls=[folder / "control-0", folder / "control-1"])
    last = made.sampling.grid(N).t[round(end * N) - 1]  # of the last step that the second steers
    generate = jax.jit(
        lambda params, scale: made.generate(
            params, made.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=made.tokenize(tiny.NEGATIVE),
            noise=jnp.asarray(nhwc(z)), hints=[jnp.asarray(nhwc(h)) for h in HINTS],
            control_scale=[scale, lambda level: jnp.where(level.t >= last, 0.5 / 0.8 * scale, 0)],
        )
    )  # fmt: skip
    got, off = generate(made.params, jnp.float32(scales[0])), generate(made.params, jnp.float32(0))
    plain = jd.text_to_image.load(folder / "model", steps=N)
    base = jax.jit(plain.generate)(
        plain.params, plain.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=plain.tokenize(tiny.NEGATIVE),
        noise=jnp.asarray(nhwc(z)),
    )  # fmt: skip
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=5e-5)
    assert np.mean((want > 0) & (want < 1)) > 0.5 and want.std() > 0.1 and np.abs(got - base).max() > 0.1
    np.testing.assert_allclose(off, base, atol=1e-5)


@pytest.mark.slow
def test_stable_diffusion(tmp_path):
    scheduler = diffusers.DDIMScheduler(**tiny.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = tiny.stable_diffusion(tmp_path, scheduler)
    compare(tmp_path, diffusers.StableDiffusionControlNetPipeline, pipe, end=0.5)


@pytest.mark.slow
def test_stable_diffusion_xl(tmp_path):
    scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1)
    pipe = tiny.xl(tmp_path, scheduler, False)
    compare(tmp_path, diffusers.StableDiffusionXLControlNetPipeline, pipe, end=0.75)
