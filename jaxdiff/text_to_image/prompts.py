"""Conditions of text-to-image networks, made of prompts: Stable Diffusion 1 and 2, XL, 3, and Flux."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff.conditions import Cond
from jaxdiff.networks.configs import sdxl_vector
from jaxdiff.types import Params

__all__ = ["LAYOUTS", "Cond", "Models", "PipelineSpec", "check_guided"]

SCORES = 6.0, 2.5  # the usual aesthetic scores of a prompt and of a negative one


def check_guided(scale: float | None) -> None:
    """Check the scale with which a prompt is guided by classifier-free guidance.

    Raises:
        ValueError: it is 0, with which the prompt counts nothing.
    """
    if scale == 0:
        raise ValueError("guidance 0 draws without the prompt: 1 is off, which other projects write as 0")


class Models(NamedTuple):
    """The models of a pipeline's directory, without their parameters.

    Attributes:
        apply: pure functions, by the names of the models' directories.
        config: fields of their configs, by the same names.
        length: of T5's text, in tokens.
        init: functions key -> random parameters, by the same names.
    """

    apply: Mapping[str, Any]
    config: Mapping[str, Mapping[str, Any]]
    length: int
    init: Mapping[str, Callable[[Array], Any]] = MappingProxyType({})


class PipelineSpec(NamedTuple):
    """A kind of pipeline.

    Attributes:
        network: directory of the network that denoises.
        encoders: directories of the text encoders -> whether the pipeline works without.
        encode: (models, params, tokens) -> encoded prompts; tokens are int [B, L] by the encoder's name.
        add_size_cond: (models, encoded prompts, (height, width), negative) -> the condition, with the entries that do
            not depend on the prompt; negative is bool [B], whether a prompt is a negative one.
        steps: the reference's default number of steps.
        guidance: the reference's default scale.
        length: of T5's text, in tokens.
        zero_negative: zeros may replace the encoded empty prompt.
        patch_size: latents of a token along each axis, where the network's config does not have it.
        uniform_steps: see `interop.scheduler`.
        round_up: image-to-image rounds the number of steps up.
        asks: fields of the network's config that the pipeline needs, all of which are numbers.
    """

    network: str
    encoders: Mapping[str, bool]
    encode: Callable[[Models, Any, Mapping[str, Array]], Cond]
    add_size_cond: Callable[[Models, Cond, tuple[int, int], Array], Cond] = lambda models, cond, size, negative: cond
    steps: int = 50
    guidance: float = 7.5
    length: int = 0
    zero_negative: bool = False
    patch_size: int | None = None
    uniform_steps: bool = False
    round_up: bool = False
    asks: tuple[str, ...] = ("in_channels", "out_channels")

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise ValueError unless the network's config has the fields that the pipeline needs."""
        lacking = [name for name in self.asks if not isinstance(config.get(name), int)]
        if lacking:
            raise ValueError(f"the config of {self.network} must give {', '.join(lacking)} for such a pipeline")

    def distilled(self, config: Mapping[str, Any]) -> bool:
        """Whether the guidance scale is an input of a network with this config."""
        return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))

    def classifier_free(self, config: Mapping[str, Any]) -> bool:
        """Whether guidance of a network with this config needs a null condition; Flux has its guidance as an input."""
        return not self.distilled(config) and not self.uniform_steps


def _stable_diffusion(models: Models, params: Params, tokens: Mapping[str, Array]) -> Cond:
    return {"tokens": models.apply["text_encoder"](params["text_encoder"], tokens["text_encoder"]).hidden}


def _xl(models: Models, params: Params, tokens: Mapping[str, Array]) -> Cond:
    hidden, pooled = _clips(models, params, tokens)
    return {"tokens": hidden, "vector": pooled[-1]}


def _complete_xl(models: Models, cond: Cond, size: tuple[int, int], negative: Array) -> Cond:
    config, vector = models.config["unet"], cond["vector"]
    features = config["addition_time_embed_dim"]
    # An image whose original had this size, and that is not cropped; then the size aimed at, in place of which the
    # refiner has an aesthetic score.
    last = jnp.tile(jnp.asarray([size], jnp.float32), (len(vector), 1))
    if config["projection_class_embeddings_input_dim"] == vector.shape[-1] + 5 * features:
        last = jnp.where(negative, jnp.float32(SCORES[1]), jnp.float32(SCORES[0]))[:, None]
    original = jnp.tile(jnp.asarray([[*size, 0, 0]], jnp.float32), (len(vector), 1))
    numbers = jnp.concatenate([original, last], axis=1)
    return cond | {"vector": sdxl_vector(vector, numbers, features)}


def _sd3(models: Models, params: Params, tokens: Mapping[str, Array]) -> Cond:
    hidden, pooled = _clips(models, params, tokens)
    width = models.config["transformer"]["joint_attention_dim"]
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, width - hidden.shape[-1])))
    if "text_encoder_3" in models.apply:
        third = models.apply["text_encoder_3"](params["text_encoder_3"], tokens["text_encoder_3"]).hidden
    else:
        third = jnp.zeros((len(hidden), models.length, width), hidden.dtype)
    return {"tokens": jnp.concatenate([hidden, third], axis=1), "vector": jnp.concatenate(pooled, axis=-1)}


def _flux(models: Models, params: Params, tokens: Mapping[str, Array]) -> Cond:
    first = models.apply["text_encoder"](params["text_encoder"], tokens["text_encoder"])
    second = models.apply["text_encoder_2"](params["text_encoder_2"], tokens["text_encoder_2"])
    return {"tokens": second.hidden, "vector": first.pooled}


def _clips(models: Models, params: Params, tokens: Mapping[str, Array]) -> tuple[Array, list[Array]]:
    """Of both CLIPs, or the refiner's one, the layer before the last, side by side, and the vectors of the texts."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in models.apply]
    encoded = [models.apply[name](params[name], tokens[name], layer=-2, norm=False) for name in names]
    return jnp.concatenate([text.hidden for text in encoded], axis=-1), [text.pooled for text in encoded]


SD = PipelineSpec("unet", {"text_encoder": False}, _stable_diffusion)
XL = PipelineSpec("unet", {"text_encoder": True, "text_encoder_2": False}, _xl, _complete_xl, guidance=5.0,
            asks=(*SD.asks, "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
            zero_negative=True)  # fmt: skip
SD3 = PipelineSpec(
    "transformer",
    {"text_encoder": False, "text_encoder_2": False, "text_encoder_3": True},
    _sd3,
    steps=28,
    guidance=7.0,
    length=256,
    round_up=True,
    asks=("in_channels", "joint_attention_dim"),
)
FLUX = PipelineSpec(
    "transformer",
    {"text_encoder": False, "text_encoder_2": False},
    _flux,
    steps=28,
    guidance=3.5,
    length=512,
    patch_size=2,
    uniform_steps=True,
    round_up=True,
    asks=("in_channels",),
)

# By the class in model_index.json; those that begin with an image differ in defaults, and in no file of the directory.
LAYOUTS = {
    "FluxImg2ImgPipeline": FLUX._replace(guidance=7.0),
    "FluxInpaintPipeline": FLUX._replace(guidance=7.0),
    "FluxPipeline": FLUX,
    "LatentConsistencyModelPipeline": SD._replace(steps=4, guidance=8.5),
    "StableDiffusion3Img2ImgPipeline": SD3._replace(steps=50),
    "StableDiffusion3InpaintPipeline": SD3._replace(steps=50),
    "StableDiffusion3Pipeline": SD3,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "StableDiffusionPipeline": SD,
    "StableDiffusionXLImg2ImgPipeline": XL,
    "StableDiffusionXLInpaintPipeline": XL._replace(guidance=7.5),
    "StableDiffusionXLPipeline": XL,
}
