"""What a kind of pipeline asks of its network's config, and what its condition makes of a prompt."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.text_to_image.parts import _condition
from jaxdiff.text_to_image.prompts import LAYOUTS, Models


def test_a_pipeline_asks_its_network_s_config():
    layout = LAYOUTS["StableDiffusionXLPipeline"]
    held = {"in_channels": 4, "out_channels": 4, "addition_time_embed_dim": 256}
    layout.check(held | {"projection_class_embeddings_input_dim": 2816})
    for value in ({}, {"projection_class_embeddings_input_dim": None}):
        with pytest.raises(ValueError, match="config of unet must give projection_class_embeddings_input_dim"):
            layout.check(held | value)


def condition(kind, config, zeros=False):
    """Of a pipeline whose text encoder returns the tokens, and whose network is told which prompts are negative."""
    encode = lambda models, params, tokens: {"tokens": params * tokens["text_encoder"]}  # noqa: E731
    complete = lambda models, cond, size, negative: cond | {"score": jnp.where(negative, size[1], size[0])}  # noqa: E731
    layout = LAYOUTS[kind]._replace(encode=encode, add_size_cond=complete)
    models = Models({}, {layout.network: config}, 0)
    tokenize = lambda prompts: {"text_encoder": np.array([[len(p), 1] for p in prompts], np.int32)}  # noqa: E731
    return _condition(layout, models, tokenize, (6, 2), zero_negative=zeros)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_null_condition_is_an_empty_prompt_or_zeros(zeros):
    made = condition("StableDiffusionXLPipeline", {}, zeros)
    cond = {name: np.repeat(a, 2, axis=0) for name, a in made.parse("a fox").items()}
    got, null = made.encode(3, cond), made.encode(3, made.without(cond))
    np.testing.assert_array_equal(got["tokens"], [[15, 3]] * 2)
    np.testing.assert_array_equal(null["tokens"], [[0, 0 if zeros else 3]] * 2)
    assert list(got["score"]) == [6, 6] and list(null["score"]) == [2, 2]
    assert made.spec.keys() == cond.keys() and made.choose(np.arange(3))["text_encoder"].shape == (3, 2)


def test_a_distilled_network_is_told_the_usual_guidance():
    made = condition("FluxPipeline", {"guidance_embeds": True})
    told = made.encode(1, made.parse("a fox"))
    assert made.null is None and told["guidance"].dtype == np.float32 and list(told["guidance"]) == [3.5]
    assert condition("FluxPipeline", {}).spec.keys() == {"text_encoder"}
