"""IP-Adapters within text-to-image pipelines: the same prompts, pictures and noise give diffusers' images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from parity import pipelines as tiny  # noqa: E402
from parity.checkpoints import nhwc, randomize  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

import jaxdiff as jd  # noqa: E402

N, SIDE, INNER = 4, 12, 8
KEYS = jax.random.split(jax.random.key(0), 2)
PICTURES = np.random.default_rng(5).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
SCALES = 0.9, 0.3  # of the first half of the steps, and of the second
VISION = {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 12, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 4, "hidden_act": "gelu"}


def projection(width, *, patches):
    """The shapes of a projection's tensors; diffusers knows resamplers of four layers alone."""
    norms = lambda features, *names: {f"{n}.{w}": (features,) for n in names for w in ("weight", "bias")}  # noqa: E731
    if not patches:
        given = VISION["projection_dim"]
        return {"proj.weight": (4 * width, given), "proj.bias": (4 * width,), **norms(width, "norm")}
    shapes = {"latents": (1, 3, INNER), "proj_in.weight": (INNER, VISION["hidden_size"]), "proj_in.bias": (INNER,)}
    shapes |= {"proj_out.weight": (width, INNER), "proj_out.bias": (width,), **norms(width, "norm_out")}
    for i in (f"layers.{layer}" for layer in range(4)):
        shapes |= {f"{i}.0.to_q.weight": (128, INNER), f"{i}.0.to_kv.weight": (256, INNER)}
        shapes |= {f"{i}.0.to_out.weight": (INNER, 128), **norms(INNER, f"{i}.0.norm1", f"{i}.0.norm2", f"{i}.1.0")}
        shapes |= {f"{i}.1.1.weight": (4 * INNER, INNER), f"{i}.1.3.weight": (INNER, 4 * INNER)}
    return shapes


def write(folder, unet, *, patches):
    """An adapter's file for a U-Net with random weights, beside its image encoder."""
    folder.mkdir()
    width = unet.config.cross_attention_dim
    shapes = {f"image_proj.{name}": shape for name, shape in projection(width, patches=patches).items()}
    widths = [unet.get_submodule(name.removesuffix(".processor")).to_q.out_features for name in unet.attn_processors]
    shapes |= {
        f"ip_adapter.{i}.to_{to}_ip.weight": (w, width) for i, w in enumerate(widths) if i % 2 for to in ("k", "v")
    }
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    safetensors.save_file(tensors, folder / "ip.safetensors")
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
    randomize(vision, 6).save_pretrained(folder / "image_encoder")


def compare(folder, pipe, *, patches):
    pipe.save_pretrained(folder / "model")
    write(folder / "adapter", pipe.unet, patches=patches)
    z = tiny.latents()
    process = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pipe.register_modules(feature_extractor=process)
    pipe.set_progress_bar_config(disable=True)

    def later(pipe, step, time, given):
        pipe.set_ip_adapter_scale(SCALES[step + 1 >= N // 2])
        return given

    def reference(i):
        pipe.set_ip_adapter_scale(SCALES[0])
        return pipe(
            tiny.PROMPTS[i], negative_prompt=tiny.NEGATIVE[i], ip_adapter_image=Image.fromarray(PICTURES[i]),
            latents=z[i : i + 1], num_inference_steps=N, guidance_scale=3.0, callback_on_step_end=later,
            output_type="np",
        ).images  # fmt: skip

    given = {"latents": z, "num_inference_steps": N, "guidance_scale": 3.0, "output_type": "np"}
    with torch.no_grad():
        plain = pipe(tiny.PROMPTS, negative_prompt=tiny.NEGATIVE, **given).images
        pipe.load_ip_adapter(folder / "adapter", subfolder="", weight_name="ip.safetensors")
        want = np.concatenate([reference(i) for i in range(2)])  # it takes one picture for all prompts of a batch
    made = jd.text_to_image.load(folder / "model", steps=N, controls=[folder / "adapter/ip.safetensors"])
    first = made.sampling.grid(N).t[N // 2 - 1]  # of the last step in the first half
    noise, pictures = jnp.asarray(nhwc(z)), jnp.asarray(PICTURES, jnp.float32) / 255
    follow = lambda level: jnp.where(level.t >= first, *map(jnp.float32, SCALES))  # noqa: E731
    got = jax.jit(
        lambda params, pictures: made.generate(
            params, made.tokenize(tiny.PROMPTS), KEYS, 3.0, negative=made.tokenize(tiny.NEGATIVE), noise=noise,
            hints=[pictures], control_scale=follow,
        )
    )(made.params, pictures)  # fmt: skip
    np.testing.assert_allclose((np.asarray(got) + 1) / 2, want, rtol=0, atol=5e-5)
    assert np.mean((want > 0) & (want < 1)) > 0.5 and want.std() > 0.1 and np.abs(want - plain).max() > 0.05


# A file tells what it projects, and no pipeline asks: one of each.
@pytest.mark.slow
def test_an_embedding_for_stable_diffusion(tmp_path):
    scheduler = diffusers.DDIMScheduler(**tiny.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    compare(tmp_path, tiny.stable_diffusion(tmp_path, scheduler), patches=False)


@pytest.mark.slow
def test_patches_for_stable_diffusion_xl(tmp_path):
    scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD, timestep_spacing="leading", steps_offset=1)
    compare(tmp_path, tiny.xl(tmp_path, scheduler, False), patches=True)
