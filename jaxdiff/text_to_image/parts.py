"""The parts of a text-to-image pipeline, as an experiment has them: model, sampling, condition and medium."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.autoencoders import Codec
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Model
from jaxdiff.interop import Scheduler
from jaxdiff.levels import Level, append_axes
from jaxdiff.media import Medium, images
from jaxdiff.sampling import Sampling
from jaxdiff.solvers import Solver
from jaxdiff.text_to_image.prompts import Cond, Models, PipelineSpec
from jaxdiff.types import Params

__all__ = ["NEGATIVE", "Parts", "complete", "make_parts"]

Tokenize = Callable[[Sequence[str]], dict[str, Any]]
# Entries of a condition, bool [B]: whether a prompt is a negative one, an input of some networks, and whether zeros
# replace it once it is encoded.
NEGATIVE, ZERO = "negative", "zero"


class Parts(NamedTuple):
    """A pipeline without its parameters.

    Attributes:
        layout: the kind of pipeline.
        models: its networks, autoencoder and text encoders.
        model, sampling, condition, medium: the parts of an experiment.
        prepared: levels and solver, `sampling.prepare()`.
        size: (height, width) of the images.
        dtype: of the steps.
        zero_negative: whether a condition of zeros may replace the encoded empty prompt.
        tokenize: prompts -> tokens, int32 [B, L] by the name of the text encoder.
        controls: names of what steers the network, among the models.
    """

    layout: PipelineSpec
    models: Models
    model: Model
    sampling: Sampling
    condition: Condition
    medium: Medium
    prepared: tuple[Level, Solver]
    size: tuple[int, int]
    dtype: Any
    zero_negative: bool
    tokenize: Tokenize
    controls: tuple[str, ...] = ()

    @property
    def codec(self) -> Codec:
        """The autoencoder."""
        return self.models.apply["vae"]

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the network that denoises."""
        return self.models.config[self.layout.network]

    @property
    def distilled(self) -> bool:
        """Whether the guidance scale is an input of the network."""
        return self.layout.distilled(self.config)

    @property
    def classifier_free(self) -> bool:
        """Whether guidance needs a null condition."""
        return self.layout.classifier_free(self.config)

    @property
    def guidance(self) -> float | None:
        """The reference's usual scale; None where there is none."""
        return self.layout.guidance if self.distilled or self.classifier_free else None

    @property
    def inpaints(self) -> bool:
        """Whether the mask and the masked image are inputs of the network."""
        return self.layout.network == "unet" and self.config["in_channels"] > self.config["out_channels"]

    def check_whole(self) -> None:
        """Raise ValueError unless the network draws whole pictures."""
        if self.inpaints:
            raise ValueError(
                "the network is for inpainting, and takes a picture and its mask: `jaxdiff edit` draws with it, "
                "and `edit.edit` (of_directory with inpaint=True)"
            )

    @property
    def encoders(self) -> list[str]:
        """The names of the text encoders, which are those of the tokens."""
        return [name for name in self.layout.encoders if name in self.models.apply]

    def encode_images(self, params: Params, images: Array) -> Array:
        """The latents of images, the mean of their posterior, as the network gets them."""
        mean, _ = self.codec.encode(params["vae"], images.astype(self.dtype))
        return self.codec.normalize(mean).astype(self.dtype)

    def encode_masked(self, params: Params, images: Array, mask: Array) -> Array:
        """What a network for inpainting gets as `cond["concat"]`: the mask, and the latents of the rest.

        Args:
            params: of the pipeline.
            images: [B, H, W, 3] in [-1, 1].
            mask: bool [B, H, W], where they are painted anew.
        """
        step = self.codec.factor
        coarse = mask[:, ::step, ::step, None].astype(self.dtype)
        return jnp.concatenate([coarse, self.encode_images(params, jnp.where(mask[..., None], 0, images))], axis=-1)


def make_parts(
    layout: PipelineSpec, models: Models, scheduler: Scheduler, tokenize: Tokenize, *,
    steps: int, size: tuple[int, int], dtype: Any, zero_negative: bool,
) -> Parts:  # fmt: skip
    """Make the parts of a pipeline.

    Args:
        layout: the kind of pipeline.
        models: its models.
        scheduler: of the network.
        tokenize: prompts -> tokens, int32 [B, L] by the name of the text encoder.
        steps: number of steps.
        size: (height, width) of the images.
        dtype: of the steps.
        zero_negative: whether a condition of zeros may replace the encoded empty prompt.

    Raises:
        ValueError: a number of steps that the scheduler does not take.
    """
    codec = models.apply["vae"]
    network = layout.network
    guided = layout.classifier_free(models.config[network])
    sampling = replace(scheduler.sampling, steps=steps, guidance=layout.guidance if guided else 1.0)

    def init(key: Array) -> Any:
        names = sorted(models.init)
        return {name: models.init[name](k) for name, k in zip(names, jax.random.split(key, len(names)), strict=True)}

    def apply(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
        return models.apply[network](params[network], x, noise, cond, **options)

    def decode(params: Params, z: Array) -> Array:
        return jnp.clip(codec.decode(params["vae"], codec.denormalize(z)).astype(dtype), -1, 1)

    model = Model(init, apply, scheduler.process, scheduler.prediction)
    condition = _condition(layout, models, tokenize, size, zero_negative=zero_negative)
    medium = images((*(side // codec.factor for side in size), codec.channels), decode=decode, preview=4)
    return Parts(
        layout, models, model, sampling, condition, medium, sampling.prepare(), size, dtype, zero_negative, tokenize
    )


def complete(layout: PipelineSpec, models: Models, size: tuple[int, int], encoded: Cond, cond: Cond) -> Cond:
    """Add what does not depend on the prompt to a condition: sizes, scores, the guidance of a distilled network.

    Args:
        layout, models, size: see `Parts`.
        encoded: of `layout.encode`.
        cond: a condition as `Parts.condition` describes it.

    Returns:
        the network's condition.
    """
    negative = cond.get(NEGATIVE, jnp.zeros(len(jax.tree.leaves(encoded)[0]), bool))
    guidance = {"guidance": cond["guidance"]} if "guidance" in cond else {}
    return layout.add_size_cond(models, encoded, size, negative) | guidance


def _condition(
    layout: PipelineSpec, models: Models, tokenize: Tokenize, size: tuple[int, int], *, zero_negative: bool
) -> Condition:
    """A prompt; for a distilled network its guidance, for others a null condition, the empty prompt."""
    config = models.config[layout.network]

    def ask(prompts: Sequence[str], **flags: bool) -> dict[str, Any]:
        tokens = {name: np.asarray(ids) for name, ids in tokenize(prompts).items()}
        guidance = {"guidance": np.full(len(prompts), layout.guidance, np.float32)} if layout.distilled(config) else {}
        return tokens | guidance | {name: np.full(len(prompts), flag) for name, flag in flags.items()}

    flags = {NEGATIVE: False, **({ZERO: False} if zero_negative else {})} if layout.classifier_free(config) else {}
    empty = ask([""], **flags)

    def encode(params: Params, cond: Cond) -> Cond:
        tokens = {name: ids for name, ids in cond.items() if name in layout.encoders}
        encoded = layout.encode(models, params, tokens)
        if ZERO in cond:
            hide = lambda a: jnp.where(append_axes(cond[ZERO], a.ndim), 0, a)  # noqa: E731
            encoded = jax.tree.map(hide, encoded)
        concat = {"concat": cond["concat"]} if "concat" in cond else {}
        return complete(layout, models, size, encoded, cond) | concat

    return Condition(
        {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in empty.items()},
        lambda index: ask([""] * len(index), **flags),
        lambda words: ask([words], **flags),
        null=ask([""], **dict.fromkeys(flags, True)) if flags else None,
        encode=encode,
    )
