"""Text-to-image directories as parameters and one pure function: encode, sample with guidance, decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff import quantize
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Model
from jaxdiff.interop import Pretrained, architecture, network_scheduler
from jaxdiff.interop import load as load_model
from jaxdiff.interop.adapters.ip_adapter import describe_ip_adapter, image_prompted_unet, load_own
from jaxdiff.interop.sources import read_fields
from jaxdiff.media import Medium
from jaxdiff.networks.layers import at_least_float32
from jaxdiff.sampling import Sampling
from jaxdiff.text_to_image.control import IMAGE_PROMPTED, HintShape, check_controls, find_controls, hint_shape, is_image
from jaxdiff.text_to_image.generate import generate_images
from jaxdiff.text_to_image.index import Index, read_index, tokenizers
from jaxdiff.text_to_image.parts import Parts, make_parts
from jaxdiff.text_to_image.prompts import Models, PipelineSpec

__all__ = ["Pipeline", "describe", "load"]


class Pipeline(NamedTuple):
    """A text-to-image directory.

    `sampler.sampler(pipe.model, pipe.sampling, pipe.condition, pipe.medium)` draws from its parts as from those of an
    experiment. `generate` also begins with pictures, and evaluates the network once for both halves of guidance.

    Attributes:
        models: each by the name of its directory.
        generate: see `load`.
        tokenize: prompts -> tokens, int32[B, L] by the name of the text encoder.
        size: (height, width) of the images.
        steps: number of steps.
        guidance: the reference's usual scale; None where there is none.
        negative: whether guidance is classifier-free, and takes negative tokens.
        zero_negative: whether it does without them, with a condition of zeros.
        model: the network, as a function of the parameters of all models.
        sampling: the scheduler's.
        condition: tokens by the names of the text encoders, and flags or the guidance that they come with.
        medium: images, of latents that the autoencoder decodes.
        hint_shapes: of each control's picture, (height, width, channels), or None: any, in colour; (D,): the
            embedding of a face; a dict of both: of a face and its picture.
    """

    models: dict[str, Pretrained]
    generate: Callable[..., Array]
    tokenize: Callable[[Sequence[str]], dict[str, Any]]
    size: tuple[int, int]
    steps: int
    guidance: float | None
    negative: bool
    zero_negative: bool
    model: Model
    sampling: Sampling
    condition: Condition
    medium: Medium
    hint_shapes: tuple[HintShape, ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """Of each model, by the same names."""
        return {name: model.params for name, model in self.models.items()}


def load(
    directory: str | Path, *, steps: int | None = None, size: tuple[int, int] | None = None, kind: str | None = None,
    base: str | Path | None = None, variant: str | None = None, length: int | None = None, dtype: Any = jnp.float32,
    param_dtype: Any = None, place: Callable[[Any], Any] | None = None, progress: Callable[[Array], None] | None = None,
    controls: Sequence[str | Path] = (),
) -> Pipeline:  # fmt: skip
    """Load a directory of Stable Diffusion 1, 2, XL, 3 or Flux.

    The pipeline's function, to be put into `jax.jit` whole, is

        generate(params, tokens, keys, guidance=None, *, negative=None, rescale=None,
                 image=None, mask=None, strength=1.0, noise=None, hints=(), control_scale=1.0) -> images

    with

        tokens: of B prompts; see `Pipeline.tokenize`.
        keys: one key, or [B] keys, and then an image depends on its own key, prompt and picture alone.
        guidance: scale of classifier-free guidance, a number or [B]; or the input of a distilled network (Flux.1 dev,
            latent consistency models). None: off.
        negative: tokens of negative prompts, e.g. `tokenize([""] * B)`; needed for classifier-free guidance, other than
            with Stable Diffusion XL, where zeros may replace the encoded empty prompt.
        rescale: phi of `guidance.rescale`, of what the network predicts. None: off.
        image: [B, height, width, 3] in [-1, 1] to begin with; its latents are the mean of their posterior.
        mask: [B, height, width], 1 where the image is painted anew, else 0. An input of networks for inpainting; with
            others the rest of the image is put back after each step, with the noise of the next level.
        strength: how much of the image is changed, in [0, 1]: the last strength N steps are taken, rounded down, but
            up for Stable Diffusion 3 and Flux, as the references do; without any, the image is encoded and
            decoded. May be traced.
        noise: [B, height / factor, width / factor, D], standard normal, in place of the keys' at the beginning.
        hints: for each of `controls` [B, height, width, C] in [0, 1], what its pictures follow; see `conditions.hints`.
            That of an IP-Adapter is an image of any size, which shows what they show, the embedding of a face, [B, D],
            or (FaceID Plus) a dict of its "embedding" and its "picture", and for Plus v2 of "shortcut", [B], 1 as
            published; see `networks.FacePlusProjection`.
        control_scale: of the controls, a number or one for each, or functions of the level that return one. 0 is off.
            May be traced.
        images: [B, height, width, 3] in [-1, 1], float32 at least.

    With a file of low-rank adapters, at a scale, the parameters are

        networks.lora.merge(pipe.params, interop.load_lora(file, pipe.models), scale)

    Args:
        directory: with model_index.json, or a checkpoint in one file. A safety checker in it is not read.
        steps: N; by default the reference's 50, or 28 for Stable Diffusion 3 and Flux.
        size: (height, width) of the images; by default the network's own, 1024 for Flux.
        kind: class of the scheduler, in place of the directory's; see `interop.scheduler`.
        base: a directory that has what the other lacks: for a file, which has no vocabularies, "tokenizer" folders,
            and a scheduler and models where there are any.
        variant: of the weights in a directory, such as "fp16".
        length: of T5's text in tokens; by default 256 for Stable Diffusion 3 and 512 for Flux.
        dtype: of the networks' computation. The steps are taken in float32 at least; an autoencoder whose config says
            "force_upcast" computes in float32 in place of float16.
        param_dtype: of the parameters; None: as in the files. "int8" or "float8": kernels of all models but the
            autoencoder in 8 bits; see `quantize.quantize`.
        place: tree of shapes -> tree of shardings, for each model; see `interop.load`.
        progress: called on the host with the number of steps done, after each step.
        controls: directories of ControlNets of a U-Net, whose residuals are added (Zhang et al. 2023,
            arXiv:2302.05543), and of T2I-Adapters, whose features are (Mou et al. 2023, arXiv:2302.08453), and files of
            IP-Adapters, whose attentions are (Ye et al. 2023, arXiv:2308.06721), with their image encoder in the folder
            "image_encoder" near them or of the pipeline; those of faces need none.

    Returns:
        the models, the function, the tokenizer, and the parts of an experiment.

    Raises:
        ValueError: the pipeline's class is not known, a model is missing or not supported, the size is not one that
            the networks can make, or a control is for another network. All configs are checked before weights are read.
    """
    index, names, found = _index(directory, base, controls)
    parts = _parts(index, steps=steps, size=size, kind=kind, length=length, dtype=dtype, controls=names)
    of_vae = None if quantize.is_8_bit(param_dtype) else param_dtype  # it is small, and its errors are seen
    loaded: dict[str, Pretrained] = {}
    read: dict[Path, Pretrained] = {}  # IP-Adapters may share an image encoder
    for part, path in index.models.items():
        stored = of_vae if part == "vae" else param_dtype
        if path not in read and is_image(part):
            read[path] = load_own(path, parts.config, dtype=dtype, param_dtype=stored, place=place)
        elif path not in read:
            own = None if part in found else variant  # a variant is of the pipeline's own weights
            of_part = _dtype(parts.models.config[part], dtype)
            read[path] = load_model(path, variant=own, dtype=of_part, param_dtype=stored, place=place)
        loaded[part] = read[path]
    generate = partial(generate_images, parts, progress)
    return Pipeline(
        loaded, generate, parts.tokenize, parts.size, len(parts.prepared[0].t) - 1, parts.guidance,
        parts.classifier_free, parts.zero_negative, parts.model, parts.sampling, parts.condition, parts.medium,
        tuple(hint_shape(parts.models, name, parts.size) for name in names),
    )  # fmt: skip


def describe(
    directory: str | Path, *, steps: int | None = None, size: tuple[int, int] | None = None, kind: str | None = None,
    base: str | Path | None = None, length: int | None = None, dtype: Any = jnp.float32,
    controls: Sequence[str | Path] = (),
) -> Parts:  # fmt: skip
    """Make the parts of a pipeline without its parameters, e.g. for other sizes of its pictures.

    Args:
        directory, steps, size, kind, base, length, dtype, controls: as for `load`.

    Returns:
        the parts, whose functions take `Pipeline.params`. `steering.steered` puts the controls into them.

    Raises:
        ValueError: as by `load`.
    """
    index, names, _ = _index(directory, base, controls)
    return _parts(index, steps=steps, size=size, kind=kind, length=length, dtype=dtype, controls=names)


def _index(
    directory: str | Path, base: str | Path | None, controls: Sequence[str | Path]
) -> tuple[Index, tuple[str, ...], dict[str, Path]]:
    """Where a pipeline's models lie, with those that steer it; the names of the controls; and where these alone lie."""
    index = read_index(directory, base)
    names, found = find_controls(controls, Path(directory), index.models[index.layout.network])
    # An adapter's names are checked before large files are read.
    return index._replace(models=found | index.models), names, found


def _parts(
    index: Index, *, steps: int | None, size: tuple[int, int] | None, kind: str | None, length: int | None, dtype: Any,
    controls: tuple[str, ...] = (),
) -> Parts:  # fmt: skip
    layout = index.layout
    models = _described(index, dtype, layout.length if length is None else length)
    network = models.config[layout.network]
    layout.check(network)
    check_controls(layout, models, controls)
    size = _checked_size(models, layout, size)
    latents = tuple(side // models.apply["vae"].factor for side in size)
    scheduler = network_scheduler(index.scheduler, network, latents, kind)
    encoders = tokenizers(index, models)

    def tokenize(prompts: Sequence[str]) -> dict[str, Any]:
        return {encoder: encode(prompts)[0] for encoder, encode in encoders.items()}

    parts = make_parts(
        layout, models, scheduler, tokenize,
        steps=layout.steps if steps is None else steps, size=size, dtype=at_least_float32(dtype),
        zero_negative=bool(layout.zero_negative and index.fields.get("force_zeros_for_empty_prompt", True)),
    )  # fmt: skip
    _check_channels(parts)
    return parts._replace(controls=controls)


def _described(index: Index, dtype: Any, length: int) -> Models:
    """The models as their configs describe them."""
    configs = {part: read_fields(path) for part, path in index.models.items() if not is_image(part)}
    specs = {part: architecture(config, _dtype(config, dtype)) for part, config in configs.items()}
    network, images = configs[index.layout.network], list(filter(is_image, index.models))
    for part in images:
        specs[part], configs[part] = describe_ip_adapter(index.models[part], network, dtype)
    apply, init = ({part: getattr(spec, name) for part, spec in specs.items()} for name in ("apply", "init"))
    if images:
        apply[IMAGE_PROMPTED] = image_prompted_unet(network, [configs[part]["rank"] for part in images], dtype)
    return Models(apply, configs, length, init)


def _dtype(config: Mapping[str, Any], dtype: Any) -> Any:
    """In which a model computes: diffusers' "force_upcast" says that float16 is too small for it."""
    return jnp.float32 if config.get("force_upcast") and jnp.dtype(dtype) == jnp.float16 else dtype


def _checked_size(models: Models, layout: PipelineSpec, size: tuple[int, int] | None) -> tuple[int, int]:
    factor, config = models.apply["vae"].factor, models.config[layout.network]
    if size is None:
        sides = config.get("sample_size") or 128
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return height * factor, width * factor
    step = factor * (layout.patch_size or config.get("patch_size", 1))
    # Stable Diffusion 3 has a table of positions.
    most = config.get("pos_embed_max_size", 96) * step if config["_class_name"] == "SD3Transformer2DModel" else None
    integers = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not integers or any(side < 1 or side % step or (most and side > most) for side in size):
        bound = f" up to {most}" if most else ""
        raise ValueError(f"size must be (height, width) in pixels, multiples of {step}{bound}, got {size}")
    return size[0], size[1]


def _check_channels(parts: Parts) -> None:
    config, latent = parts.config, parts.codec.channels
    more = 1 + 2 * latent if parts.inpaints else latent
    given = config["in_channels"] // (parts.layout.patch_size or 1) ** 2
    if given != more:
        raise ValueError(
            f"the network takes {given} channels, which are neither the {latent} of the latents nor, with a mask and a "
            f"picture, {1 + 2 * latent}"
        )
