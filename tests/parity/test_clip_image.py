"""CLIP's image encoder and its pictures against transformers'."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity.checkpoints import close, gradients, nchw, randomize, roundtrip  # noqa: E402
from PIL import Image  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff import text  # noqa: E402

FIELDS = {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 12, "num_hidden_layers": 3}
FIELDS |= {"num_attention_heads": 2, "image_size": 12, "patch_size": 4}
PIXELS = np.random.default_rng(0).standard_normal((2, 12, 12, 3), np.float32)


def reference(act):
    config = transformers.CLIPVisionConfig(**FIELDS, hidden_act=act)
    return randomize(transformers.CLIPVisionModelWithProjection(config))


def answers(model, pixels=PIXELS):
    with torch.no_grad():
        out = model(nchw(pixels).to(model.dtype), output_hidden_states=True)
    return [h.numpy() for h in out.hidden_states], out.image_embeds.numpy()


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_equal_in_float64(tmp_path, act, x64):
    model = reference(act)
    model.save_pretrained(tmp_path)
    loaded = jd.interop.load(tmp_path, dtype=jnp.float64, param_dtype=jnp.float64)
    states, pooled = answers(model.double())
    for layer in (-1, -2):  # IP-Adapter Plus takes the layer before the last
        got = jax.jit(partial(loaded.apply, layer=layer))(loaded.params, PIXELS)
        assert got.hidden.dtype == jnp.float64
        close(got.hidden, states[layer], 1e-12)
        close(got.pooled, pooled, 1e-12)
    jd.interop.save(loaded, tmp_path / "ours")
    back = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    np.testing.assert_array_equal(answers(back)[1], pooled)


def test_equal_gradients(tmp_path):
    model = reference("gelu")
    loaded = roundtrip(model, tmp_path)
    model(nchw(PIXELS)).image_embeds.square().sum().backward()
    got = gradients(loaded, lambda params: jnp.square(loaded.apply(params, PIXELS).pooled).sum())
    want = {key: p.grad.numpy() for key, p in model.named_parameters()}
    assert got.keys() == want.keys()
    for key in want:
        # The keys' biases move all logits of a query alike: no gradient but rounding.
        if not key.endswith("k_proj.bias"):
            close(got[key] / np.abs(want[key]).max(), want[key] / np.abs(want[key]).max(), 5e-5)


@pytest.mark.parametrize("size", [(12, 12), (40, 61), (61, 40), (9, 30)], ids=str)
def test_pictures_are_resized_cropped_and_normalized(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = np.random.default_rng(1).integers(80, 176, (*size, 3), np.uint8)  # no value is clipped
    process = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    want = process(Image.fromarray(picture), return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    got = text.clip_pixels(jnp.asarray(picture[None], jnp.float32) / 255, 12)[0]
    # The reference rounds after each of its two passes: by up to 1 of 255 levels, or not at all.
    levels = 1e-5 if size == (12, 12) else 1 / 255
    assert want.shape == got.shape and want.std() > 0.1
    assert (np.abs(got - want) * np.asarray(text.clip_image.STD)).max() < levels
