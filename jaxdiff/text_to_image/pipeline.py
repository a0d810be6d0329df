"""Text-to-image directories as parameters and one pure function: encode, sample with guidance, decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import guidance as guides
from jaxdiff import parameterize
from jaxdiff.autoencoders import Codec
from jaxdiff.interop.checkpoint import load as load_model
from jaxdiff.interop.models.architecture import Loaded
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.schedulers import Sampling, network_sampling
from jaxdiff.interop.sources import read_fields
from jaxdiff.levels import Level, q_sample
from jaxdiff.networks.layers import wide
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.parameterize import Denoiser
from jaxdiff.sample import sample
from jaxdiff.solvers import Solver
from jaxdiff.text_to_image.index import read_index, tokenizers
from jaxdiff.text_to_image.prompts import Cond, Layout, Models

__all__ = ["Pipeline", "load"]

Tokens = Mapping[str, Array]


class Pipeline(NamedTuple):
    """A text-to-image directory.

    Attributes:
        models: each by the name of its directory.
        generate: see `load`.
        tokenize: prompts -> tokens, int32[B, L] by the name of the text encoder.
        size: (height, width) of the images.
        steps: number of steps.
        guidance: the reference's usual scale; None where there is none.
        negative: whether guidance is classifier-free, and takes negative tokens.
        zeros: whether it does without them, with a condition of zeros.
    """

    models: dict[str, Loaded]
    generate: Callable[..., Array]
    tokenize: Callable[[Sequence[str]], dict[str, Any]]
    size: tuple[int, int]
    steps: int
    guidance: float | None
    negative: bool
    zeros: bool

    @property
    def params(self) -> dict[str, Any]:
        """Of each model, by the same names."""
        return {name: model.params for name, model in self.models.items()}


class _Made(NamedTuple):
    """What `generate` closes over: no arrays of parameters."""

    layout: Layout
    models: Models
    sampling: Sampling
    solver: Solver
    steps: int  # N; a list of levels may have more
    levels: Level
    size: tuple[int, int]
    dtype: Any  # of the steps
    zeros: bool  # no prompt is a condition of zeros
    progress: Callable[[Array], None] | None

    @property
    def codec(self) -> Codec:
        return self.models.apply["vae"]

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the network that denoises."""
        return self.models.config[self.layout.network]

    @property
    def distilled(self) -> bool:
        """Whether the network is told the guidance."""
        return bool(self.config.get("guidance_embeds") or self.config.get("time_cond_proj_dim"))

    @property
    def inpaints(self) -> bool:
        """Whether the network sees the mask and the picture around it."""
        return self.layout.network == "unet" and self.config["in_channels"] > self.config["out_channels"]


def load(
    directory: str | Path, *, steps: int | None = None, size: tuple[int, int] | None = None, kind: str | None = None,
    base: str | Path | None = None, variant: str | None = None, length: int | None = None, dtype: Any = jnp.float32,
    param_dtype: Any = None, place: Callable[[Any], Any] | None = None, progress: Callable[[Array], None] | None = None,
) -> Pipeline:  # fmt: skip
    """Loads a directory of Stable Diffusion 1, 2, XL, 3 or Flux.

    The pipeline's function, to be put into `jax.jit` whole, is

        generate(params, tokens, keys, guidance=None, *, negative=None, rescale=None,
                 image=None, mask=None, strength=1.0, noise=None) -> images

    with

        tokens: of B prompts; see `Pipeline.tokenize`.
        keys: one key, or [B] keys, and then an image depends on its own key, prompt and picture alone.
        guidance: scale of classifier-free guidance, a number or [B]; or what a network made for it is told of it
            (Flux.1 dev, latent consistency models). None: off.
        negative: tokens of what to keep away from, such as `tokenize([""] * B)`; needed for classifier-free guidance,
            but for Stable Diffusion XL where it was trained with zeros in their place.
        rescale: phi of `guidance.rescale`, of what the network predicts. None: off.
        image: [B, height, width, 3] in [-1, 1] to begin with; its latents are the mean of their posterior.
        mask: [B, height, width], 1 where the image is painted anew, else 0. A network for inpainting sees it. With
            others the rest of the picture is put back after each step, with the noise of the level arrived at.
        strength: how much of the image is changed, in [0, 1]: the last strength N steps are taken, rounded down, but
            up for Stable Diffusion 3 and Flux, as the references do; where that is none, the answer is what the
            autoencoder makes of the image. May be traced.
        noise: [B, height / factor, width / factor, D], standard normal, in place of the keys' at the beginning.
        images: [B, height, width, 3] in [-1, 1], float32 at least.

    With a file of low-rank adapters, at a scale, the parameters are

        networks.lora.merge(pipe.params, interop.load_lora(file, pipe.models), scale)

    Args:
        directory: with model_index.json, or a checkpoint in one file. A safety checker in it is not read.
        steps: N; by default the reference's 50, or 28 for Stable Diffusion 3 and Flux.
        size: (height, width) of the images; by default the network's own, 1024 for Flux.
        kind: class of the scheduler, in place of the directory's; see `interop.scheduler`.
        base: a directory that gives what the other lacks: for a file, which holds no vocabularies, its "tokenizer"
            folders, and its scheduler and models where there are such.
        variant: of the weights in a directory, such as "fp16".
        length: of T5's text in tokens; by default 256 for Stable Diffusion 3 and 512 for Flux.
        dtype: of the networks' computation. The steps are taken in float32 at least.
        param_dtype: of the parameters; None: as in the files.
        place: tree of shapes -> tree of shardings, for each model; see `interop.load`.
        progress: called on the host with the number of steps done, after each step.

    Returns:
        The models, the function and the tokenizer.

    Raises:
        ValueError: the pipeline's class is not known, a model is missing or not supported, or the size is not one
            that the networks can make. All but what the files of weights hold is found before they are read.
    """
    index = read_index(directory, base)
    layout = index.layout
    models = _described(index.models, dtype, layout.length if length is None else length)
    layout.check(models.config[layout.network])
    size = _checked_size(models, layout, size)
    latents = tuple(side // models.apply["vae"].factor for side in size)
    sampling = network_sampling(index.scheduler, models.config[layout.network], latents, kind)
    steps = layout.steps if steps is None else steps
    levels, solver = sampling.grid(steps), sampling.solver(steps)
    zeros = bool(layout.zeros and index.fields.get("force_zeros_for_empty_prompt", True))
    made = _Made(layout, models, sampling, solver, steps, levels, size, wide(dtype), zeros, progress)
    _check_channels(made)
    options = {"variant": variant, "dtype": dtype, "param_dtype": param_dtype, "place": place}
    loaded = {part: load_model(path, **options) for part, path in index.models.items()}

    def generate(params: Any, tokens: Tokens, keys: Array, guidance: Any = None, **options: Any) -> Array:
        return _generate(made, params, tokens, keys, guidance, **options)

    def tokenize(prompts: Sequence[str]) -> dict[str, Any]:
        return {encoder: encode(prompts)[0] for encoder, encode in tokenizers(index, models).items()}

    # Flux is guided by what it is told, or not at all.
    negative = not made.distilled and not layout.even
    scale = layout.guidance if made.distilled or negative else None
    return Pipeline(loaded, generate, tokenize, size, len(levels.t) - 1, scale, negative, zeros)


def _described(paths: Mapping[str, Path], dtype: Any, length: int) -> Models:
    """The models as their configs describe them."""
    configs = {part: read_fields(path) for part, path in paths.items()}
    return Models({part: architecture(config, dtype).apply for part, config in configs.items()}, configs, length)


def _generate(
    made: _Made, params: Any, tokens: Tokens, keys: Array, guidance: Any, *, negative: Tokens | None = None,
    rescale: Any = None, image: Array | None = None, mask: Array | None = None, strength: float | Array = 1.0,
    noise: Array | None = None,
) -> Array:  # fmt: skip
    batch, codec, levels = _check_tokens(made, tokens, negative), made.codec, made.levels
    if (mask is not None or made.inpaints) and (image is None or mask is None):
        raise ValueError("inpainting needs an image and a mask")  # also where the network does nothing else
    if image is None and (not isinstance(strength, (int, float)) or strength != 1):
        raise ValueError("strength is of an image to begin with, and there is none")
    shape = (batch, *(side // codec.factor for side in made.size), codec.channels)
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise must have shape {shape}, got {noise.shape}")
    noise = normal_like(fold_in(keys, 0), jnp.zeros(shape, made.dtype)) if noise is None else noise.astype(made.dtype)
    x, solver, start, extra = made.sampling.std(levels).astype(made.dtype) * noise, made.solver, None, {}
    if image is not None:
        known = _encode(made, params, image, batch)
        start = _first_step(made.steps, strength, made.layout.up)
        # No step is none of a longer list; and the last level may have a little noise, which a step takes away.
        still = start == made.steps
        start = jnp.where(still, len(levels.t) - 1, start)
        noised = jnp.where(still, known, q_sample(known, noise, _at(levels, start, made.dtype)))
        if mask is None:
            x = noised
        else:
            # Where all is painted anew, from noise alone.
            x = jnp.where(start == 0, x, noised)
            keep, anew = _masks(made, mask, batch)
            if made.inpaints:
                around = _encode(made, params, jnp.where(keep, image, 0), batch)
                extra = {"concat": jnp.concatenate([anew, around], axis=-1)}
            else:
                solver = _put_back(solver, known, noise, anew, levels.t[-1])
    denoise = _denoiser(made, params, tokens, guidance, negative=negative, rescale=rescale, extra=extra)
    x = sample(denoise, solver, levels, x, fold_in(keys, 1), start=start, progress=made.progress)
    return jnp.clip(codec.decode(params["vae"], codec.restore(x)).astype(made.dtype), -1, 1)


def _denoiser(
    made: _Made, params: Any, tokens: Tokens, guidance: Any, *, negative: Tokens | None, rescale: Any, extra: Cond
) -> Denoiser:
    layout, row = made.layout, made.sampling.row

    def predict(cond: Cond, guided: bool) -> Denoiser:
        apply, own = made.models.apply[layout.network], params[layout.network]
        return parameterize.denoiser(apply, own, row, layout.complete(made.models, cond, made.size, guided))

    if made.distilled or guidance is None:
        _check_unguided(made, guidance, negative, rescale)
        cond = layout.encode(made.models, params, tokens) | extra
        if made.distilled:
            cond["guidance"] = jnp.broadcast_to(jnp.asarray(guidance, made.dtype), cond["tokens"].shape[:1])
        return made.sampling.limit(predict(cond, False))

    if negative is not None:
        both = layout.encode(made.models, params, _pairs(dict(tokens), dict(negative)))
    elif made.zeros:
        cond = layout.encode(made.models, params, tokens)
        both = _pairs(cond, jax.tree.map(jnp.zeros_like, cond))
    else:
        raise ValueError('guidance needs negative tokens, such as tokenize([""] * B); or None for no guidance')
    predict_both = predict(both | _pairs(extra, extra), True)

    def denoise(x: Array, level: Level) -> Array:
        answers = predict_both(_pairs(x, x), level).reshape(len(x), 2, *x.shape[1:])
        cond, null = (lambda x, level, i=i: answers[:, i] for i in range(2))
        if rescale is None:
            return guides.cfg(cond, null, guidance)(x, level)
        return guides.rescale(lambda cond: guides.cfg(cond, null, guidance), cond, rescale, row)(x, level)

    return made.sampling.limit(denoise)


def _check_unguided(made: _Made, guidance: Any, negative: Tokens | None, rescale: Any) -> None:
    if made.distilled and guidance is None:
        raise ValueError("this network is told the guidance: give a number")
    if negative is not None or rescale is not None:
        why = "this network is told the guidance" if made.distilled else "there is no guidance"
        raise ValueError(f"negative and rescale are of classifier-free guidance, but {why}")


def _check_tokens(made: _Made, tokens: Tokens, negative: Tokens | None) -> int:
    """The size of the batch."""
    names = [name for name in made.layout.encoders if name in made.models.apply]
    shapes = {name: ids.shape for name, ids in tokens.items()}
    if set(shapes) != set(names) or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"tokens must be [B, L] for {' and '.join(names)}, got {shapes}")
    others = shapes if negative is None else {name: ids.shape for name, ids in negative.items()}
    if others != shapes:
        raise ValueError(f"negative tokens must have the shapes of the others, {shapes}, got {others}")
    return shapes[names[0]][0]


def _pairs(first: Any, second: Any) -> Any:
    """One batch of twice the size, in which an example's two are neighbours: on the device that has the example."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), first, second)


def _encode(made: _Made, params: Any, image: Array, batch: int) -> Array:
    if image.shape != (batch, *made.size, 3) or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"images must be floats in [-1, 1] of shape {(batch, *made.size, 3)}, got {image.dtype}, {image.shape}"
        )
    mean, _ = made.codec.encode(params["vae"], image.astype(made.dtype))
    return made.codec.standardize(mean).astype(made.dtype)


def _masks(made: _Made, mask: Array, batch: int) -> tuple[Array, Array]:
    """Which pixels are kept, and which latents are painted anew."""
    if mask.shape != (batch, *made.size):
        raise ValueError(f"masks must have shape {(batch, *made.size)}, got {mask.shape}")
    anew = mask.astype(made.dtype)[..., None] >= 0.5
    step = made.codec.factor
    return ~anew, anew[:, ::step, ::step].astype(made.dtype)


def _put_back(solver: Solver, known: Array, noise: Array, mask: Array, end: Array) -> Solver:
    """The solver's steps, after each of which the known part is set to what it is at that level."""

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, state = solver.step(denoise, key, x, state, cur, nxt)
        # The last level may have a little noise left, which the answer has not.
        there = jnp.where(nxt.t == end, known, q_sample(known, noise, nxt))
        return mask * x + (1 - mask) * there, state

    return solver._replace(step=step)


def _first_step(n: int, strength: float | Array, up: bool) -> Array:
    if isinstance(strength, (int, float)) and not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    if jnp.ndim(strength):
        raise ValueError(f"strength must be one number for all images, got shape {jnp.shape(strength)}")
    # Whole numbers of steps as they are meant: 0.58 of 50 is 29, whatever a product in float32 or float64 says.
    taken = jnp.ceil(n * strength - 1e-3) if up else jnp.floor(n * strength + 1e-3)
    return n - taken.astype(jnp.int32)


def _at(levels: Level, i: int | Array, dtype: Any) -> Level:
    return Level(*(field[i].astype(dtype) for field in levels))


def _checked_size(models: Models, layout: Layout, size: tuple[int, int] | None) -> tuple[int, int]:
    factor, config = models.apply["vae"].factor, models.config[layout.network]
    if size is None:
        sides = config.get("sample_size") or 128
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return height * factor, width * factor
    step = factor * (layout.patch or config.get("patch_size", 1))
    # Stable Diffusion 3 has a table of positions.
    most = config.get("pos_embed_max_size", 96) * step if config["_class_name"] == "SD3Transformer2DModel" else None
    whole = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole or any(side < 1 or side % step or (most and side > most) for side in size):
        limit = f" up to {most}" if most else ""
        raise ValueError(f"size must be (height, width) in pixels, multiples of {step}{limit}, got {size}")
    return size[0], size[1]


def _check_channels(made: _Made) -> None:
    config, latent = made.config, made.codec.channels
    more = 1 + 2 * latent if made.inpaints else latent
    given = config["in_channels"] // (made.layout.patch or 1) ** 2
    if given != more:
        raise ValueError(
            f"the network takes {given} channels, which are neither the {latent} of the latents nor, with a mask and a "
            f"picture, {1 + 2 * latent}"
        )
