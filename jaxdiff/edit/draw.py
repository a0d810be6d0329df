"""Editing a picture with a trained run or a text-to-image directory: what it shows, a part of it, beyond its edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import interop, inverse, solvers
from jaxdiff.conditions import Cond
from jaxdiff.distributed import gather
from jaxdiff.edit.source import Method, align_tokens, editor
from jaxdiff.edit.style import styled
from jaxdiff.experiment import UserError
from jaxdiff.first_stage.perceptual import as_rgb
from jaxdiff.imagine import Generator, Hint, Stage
from jaxdiff.sampler import check_strength, sampler
from jaxdiff.schema import GUIDANCE
from jaxdiff.seeds import example_keys
from jaxdiff.sharding import num_batch_shards
from jaxdiff.types import Params

__all__ = ["STYLE_WEIGHT", "check_canvas", "check_part", "edit"]

STRENGTH = 0.6  # of the whole picture, by default; a part of it is drawn from noise alone
RESAMPLE = 4  # how often a step is taken again, so that the new goes with the old
STYLE_WEIGHT = 3000.0
MOST_PIXELS = 89_478_485  # of a canvas: as many as Pillow reads again
SOURCE_GUIDANCE = 1.0  # the picture is what it is


def edit(
    generator: Generator,
    picture: np.ndarray,
    *,
    prompt: str | None = None,
    source: str | None = None,
    method: Method | None = None,
    style: np.ndarray | None = None,
    style_weight: float = STYLE_WEIGHT,
    mask: np.ndarray | None = None,
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0),
    strength: float | None = None,
    guidance: float | None = None,
    hints: Sequence[Hint] = (),
    num: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Draw what becomes of a picture.

    With a mask or beyond the edges, the new part is drawn from noise while the old is put back after each step, and the
    step taken again (RePaint, see `inverse.replace`); a network for inpainting is given the mask and the old part
    instead. A canvas that is larger than the network's pictures is drawn by windows (`inverse.windows`). Otherwise the
    whole picture is noised and denoised again (SDEdit, Meng et al. 2021, arXiv:2108.01073), or, with a prompt of what
    it shows, moved from that prompt to the other, which keeps more.

    Args:
        generator: of a run or a directory, see `imagine.of_run` and `imagine.of_directory`.
        picture: uint8 [H, W, C], of the size that the generator draws.
        prompt: what it shall show; None for what the condition has without words.
        source: what it shows.
        method: by which it is moved from the source to the prompt, see `source.editor`; None is "flow_edit".
        style: uint8 [H', W', C], a picture of any size in whose style the whole picture is drawn, see
            `style.style_distance`; the package with the features' weights is needed.
        style_weight: factor of that distance, which is about 1 for pictures of different styles.
        mask: bool [H, W], where it is drawn anew.
        outpaint: pixels to add on the left, right, top and bottom.
        strength: share of the steps that are taken, in [0, 1]; None is 1 for a part of the picture, else 0.6. 0 is the
            picture itself, or what an autoencoder makes of it.
        guidance: scale; None is the generator's.
        hints: what the new picture follows, one for each of the generator's controls; see `imagine.make_hint`.
        num: number of versions.
        seed: version i depends on the seed and i alone.

    Returns:
        the pictures, float32 [num, H', W', C] in [-1, 1]; where nothing was to be drawn they are the picture's pixels.

    Raises:
        UserError: a picture or mask of another size, a mask of other values than 0 and 1, edges that the network does
            not draw or of too many pixels, a source together with a part of the picture or without a prompt, a
            condition that does not parse, a model without a null condition where there is no prompt, guidance without
            a prompt, a style together with a source or a part of the picture, a weight without a style, a method
            without a source, another number of hints, a hint of the size of the network's pictures for a larger
            canvas, or a network for inpainting without a part of the picture to draw.
        ValueError: the package of the features is not installed; a strength outside [0, 1], guidance that is no scale,
            or another method.
    """
    if guidance is not None:
        GUIDANCE.check("guidance", guidance)
    stage = generator.stage(1)
    canvas, inpaint_mask = _canvas(stage, picture, mask, outpaint)
    partly = bool(inpaint_mask.any())
    _check(
        prompt=prompt, source=source, method=method, style=style, style_weight=style_weight, partly=partly,
        guidance=guidance,
    )  # fmt: skip
    check_part(partly, inpaints=stage.encode_masked is not None)
    strength = (1.0 if partly else STRENGTH) if strength is None else strength
    check_strength(strength)
    shards = 1 if generator.mesh is None else num_batch_shards(generator.mesh)
    batch = -(-num // shards) * shards
    repeat = lambda cond: jax.tree.map(lambda a: np.repeat(a, batch, axis=0), cond)  # noqa: E731
    ask = partial(_condition, generator, hints=hints)
    _check_hints(stage, canvas.shape)
    cond, scale = ask(prompt, guidance)
    x0 = generator.compiled(_encoder)(stage.params, repeat(canvas[None]))
    keys, guided = example_keys(seed, batch), scale != 1
    if source is not None and strength > 0:
        where, _ = ask(source, SOURCE_GUIDANCE)
        both = repeat(cond), repeat(where), align_tokens(where, cond)
        move = generator.compiled(editor, method or "flow_edit", guided=guided)
        drawn = move(stage.params, keys, x0, conditions=both, scale=scale, strength=strength)
    elif style is not None and strength > 0:
        drawn = generator.compiled(styled, guided=guided)(
            stage.params, keys, x0, cond=repeat(cond), features=interop.efficientnet_lite0().params,
            style=as_rgb(jnp.asarray(style[None] / 127.5 - 1, jnp.float32)), scale=scale, strength=strength,
            weight=style_weight,
        )  # fmt: skip
    else:
        known, concat = _coarse(~inpaint_mask, x0.shape[1:3]) if partly else None, {}
        if known is not None and stage.encode_masked is not None:
            encode = generator.compiled(_masked_encoder)
            concat = {
                "concat": encode(stage.params, repeat(canvas[None]), repeat(~_fine(known, canvas.shape[:2])[None]))
            }
            known = None  # the network sees it
        redraw = generator.compiled(_redrawn, guided=guided, mesh=generator.mesh)
        drawn = redraw(stage.params, keys, x0, cond=repeat(cond) | concat, scale=scale, strength=strength, known=known)
    drawn = np.asarray(gather(drawn))[:num]
    return np.where(inpaint_mask[..., None], drawn, canvas) if partly else drawn


def check_canvas(size: tuple[int, ...], outpaint: tuple[int, int, int, int]) -> None:
    """Check what is added at the edges of a picture.

    Args:
        size: (height, width) of the picture, or the least that it can be.
        outpaint: pixels to add on the left, right, top and bottom.

    Raises:
        UserError: they are no numbers of pixels, or the canvas would have too many.
    """
    left, right, top, bottom = outpaint
    if min(outpaint) < 0:
        raise UserError(f"what is added at the edges is a number of pixels, at least 0, got {outpaint}")
    height, width = size[0] + top + bottom, size[1] + left + right
    if height * width > MOST_PIXELS:
        raise UserError(f"a canvas has at most {MOST_PIXELS:,} pixels, got {width:,} x {height:,}")


def check_part(partly: bool, *, inpaints: bool) -> None:
    """Raise UserError if a network for inpainting has no part of a picture to draw.

    Args:
        partly: whether there are a mask or edges.
        inpaints: whether the network is for inpainting.
    """
    if inpaints and not partly:
        raise UserError("the network is for inpainting: it draws a part of a picture, by a mask or beyond the edges")


def _check(
    *,
    prompt: str | None,
    source: str | None,
    method: Method | None,
    style: np.ndarray | None,
    style_weight: float,
    partly: bool,
    guidance: float | None,
) -> None:
    """Check what goes together."""
    if style is None and style_weight != STYLE_WEIGHT:
        raise UserError("a style's weight goes with a style")
    if guidance is not None and prompt is None:
        raise UserError("guidance leads to a prompt, and there is none")
    if style is not None and (partly or source is not None):
        raise UserError("a style is of the whole picture: it goes without source, mask and edges")
    if source is not None and (partly or prompt is None):
        raise UserError("a source says what the whole picture shows, beside a prompt: it goes without mask and edges")
    if method is not None and source is None:
        raise UserError("a method moves a picture from its source to the prompt: it goes with a source")


def _canvas(
    stage: Stage, picture: np.ndarray, mask: np.ndarray | None, outpaint: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The picture in [-1, 1] with what is added at its edges, and where it is drawn anew."""
    left, right, top, bottom = outpaint
    check_canvas(picture.shape[:2], outpaint)
    if mask is not None and not np.isin(mask, (0, 1)).all():
        raise UserError("a mask is 1 where the picture is drawn anew and else 0, and this one has other values")
    inpaint_mask = np.zeros(picture.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    if inpaint_mask.shape != picture.shape[:2]:
        raise UserError(f"a mask has the size of its picture, {picture.shape[:2]}, got {inpaint_mask.shape}")
    edges = (top, bottom), (left, right)
    if mask is not None and not inpaint_mask.any():
        raise UserError("the mask is black everywhere: white is where the picture is drawn anew")
    x = np.float32(picture) / 127.5 - 1
    return np.pad(x, (*edges, (0, 0)), mode="edge"), np.pad(inpaint_mask, edges, constant_values=True)


def _check_hints(stage: Stage, canvas: tuple[int, ...]) -> None:
    for name, shape in stage.controls.items():
        if isinstance(shape, tuple) and len(shape) == 3 and shape[:2] != canvas[:2]:
            raise UserError(
                f"{name} takes hints of {shape[1]} x {shape[0]} pixels, and the canvas is larger: beyond the edges a "
                "picture is steered by IP-Adapters alone"
            )


def _condition(
    generator: Generator, prompt: str | None, guidance: float | None, *, hints: Sequence[Hint]
) -> tuple[Cond, float]:
    scale = generator.history.guidance if guidance is None else guidance
    if prompt is not None:
        return generator.cond(1, prompt, scale, hints)
    condition, steer = generator.stage(1).condition, generator.steer(1, hints)
    needed = sorted(condition.spec.keys() - (condition.null or {}).keys() - steer.keys())
    if needed:
        raise UserError(
            f"this model draws nothing without a prompt, which gives it {', '.join(needed)}: say what to show"
        )
    return {**(condition.null or {}), **steer}, 1.0


def _encoder(stage: Stage) -> Callable[[Any, Array], Array]:
    """Images to x0: as the stage encodes them, or, where it has nothing to encode, as they are."""

    def encode(params: Params, images: Array) -> Array:
        x0 = images if stage.encode is None else stage.encode(params, images)
        shape = jax.eval_shape(stage.medium.decode, params, x0).shape
        if shape != images.shape or x0.shape[-1] != stage.medium.shape[-1]:
            height, width = (a // b for a, b in zip(stage.picture_shape[:2], stage.medium.shape[:2], strict=True))
            raise UserError(
                f"pictures are drawn of shape {stage.picture_shape}, or of another height and width that are multiples "
                f"of {height} and {width}, got {images.shape[1:]}"
            )
        return x0

    return encode


def _masked_encoder(stage: Stage) -> Callable[[Any, Array, Array], Array]:
    """What a network for inpainting is given of a picture and its mask."""
    assert stage.encode_masked is not None
    return stage.encode_masked


def _redrawn(stage: Stage, *, guided: bool, mesh: Mesh | None) -> Callable[..., Array]:
    """A function that noises and denoises x0, or what goes with the known part of it."""

    def draw(params: Params, keys: Array, x0: Array, *, cond: Cond, scale: Any, strength: Any, known: Any) -> Array:
        wide = _widened(stage, x0.shape[1:])
        if known is not None:
            wide = _keeping(wide, x0, known)
        with jax.ensure_compile_time_eval():  # levels are numbers
            made = sampler(*wide[1:5], guided=guided, mesh=mesh)
        return made(params, keys, cond, scale, image=(x0, strength))

    return draw


def _widened(stage: Stage, shape: tuple[int, ...]) -> Stage:
    """A stage that draws pictures of a larger shape, by windows of its own."""
    size = stage.medium.shape
    if tuple(shape) == tuple(size):
        return stage
    if len(size) != 3 or shape[2] != size[2] or any(n < k for n, k in zip(shape[:2], size[:2], strict=True)):
        raise UserError(f"the network draws {size}, and a picture or its canvas of {tuple(shape)} is not as large")
    apply = inverse.windows(stage.model.apply, (size[0], size[1]))
    return stage._replace(model=replace(stage.model, apply=apply), medium=replace(stage.medium, shape=tuple(shape)))


def _keeping(stage: Stage, x0: Array, known: Array) -> Stage:
    """A stage that draws what goes with the known part of x0."""
    operator = inverse.operators.mask(jnp.asarray(known[..., None]))
    solver = inverse.replace(solvers.ddim(1.0), operator, operator.apply(x0), resample=RESAMPLE)
    return stage._replace(sampling=replace(stage.sampling, solver=solver))


def _coarse(known: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where all pixels of a latent are known."""
    factors = [n // k for n, k in zip(known.shape, size, strict=True)]
    blocks = known[: size[0] * factors[0], : size[1] * factors[1]].reshape(size[0], factors[0], size[1], factors[1])
    return np.asarray(blocks.all((1, 3)))


def _fine(known: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The pixels of the latents that are known."""
    height, width = (n // k for n, k in zip(size, known.shape, strict=True))
    return known.repeat(height, 0).repeat(width, 1)
