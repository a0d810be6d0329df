"""Pictures of prompts as one pure function: guidance by one evaluation, pictures to begin with, and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import guidance as guides
from jaxdiff import inverse
from jaxdiff.guidance.base import Scale
from jaxdiff.levels import Level, q_sample
from jaxdiff.parameterize import Denoiser, denoiser
from jaxdiff.sampler import Begin, cast_for_loop, first_step, solve
from jaxdiff.solvers import Solver
from jaxdiff.text_to_image.control import check_hints, controlled_apply, encode_hints
from jaxdiff.text_to_image.parts import NEGATIVE, Parts, complete
from jaxdiff.text_to_image.prompts import Cond
from jaxdiff.types import Params

__all__ = ["generate_images"]

Tokens = Mapping[str, Array]


def generate_images(
    parts: Parts, progress: Callable[[Array], None] | None, params: Params, tokens: Tokens, keys: Array,
    guidance: Any = None, *, negative: Tokens | None = None, rescale: Any = None, image: Array | None = None,
    mask: Array | None = None, strength: float | Array = 1.0, noise: Array | None = None,
    hints: Sequence[Array] = (), control_scale: Scale | Sequence[Scale] = 1.0,
) -> Array:  # fmt: skip
    """Draw pictures; `pipeline.load` describes the arguments from `params` on, and what they return."""
    batch = _check_tokens(parts, tokens, negative)
    if (mask is not None or parts.inpaints) and (image is None or mask is None):
        raise ValueError("inpainting needs an image and a mask")  # also where the network does nothing else
    if image is None and (not isinstance(strength, (int, float)) or strength != 1):
        raise ValueError("strength is of an image to begin with, and there is none")
    check_hints(parts.models, parts.controls, hints, (batch, *parts.size))
    shape = (batch, *parts.medium.shape)
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise must have shape {shape}, got {noise.shape}")
    begin: Begin | None = None
    extra: dict[str, Any] = {}
    if image is not None:
        begin, extra = _begin(parts, params, image, mask, strength, batch)
    steering, away = encode_hints(parts.models, params, parts.controls, hints)
    of_cond = partial(_conditional, parts, params, control_scale)
    denoise = _denoiser(
        parts, params, tokens, guidance,
        negative=negative, rescale=rescale, extra=(extra | steering, extra | away), of_cond=of_cond,
    )  # fmt: skip
    x = solve(
        denoise, parts.sampling, keys, shape,
        prepared=parts.prepared, dtype=parts.dtype, noise=noise, begin=begin, progress=progress,
    )  # fmt: skip
    return parts.medium.decode(params, x)


def _denoiser(
    parts: Parts, params: Params, tokens: Tokens, guidance: Any, *, negative: Tokens | None, rescale: Any,
    extra: tuple[Cond, Cond], of_cond: Callable[[Cond], Denoiser],
) -> Denoiser:  # fmt: skip
    """The guided denoiser; extra is of a prompt's condition, and of its negative one's."""
    if parts.distilled or guidance is None:
        _check_unguided(parts, guidance, negative, rescale)
        asked = dict(tokens)
        if parts.distilled:
            batch = len(jax.tree.leaves(asked)[0])
            asked["guidance"] = jnp.broadcast_to(jnp.asarray(guidance, parts.dtype), (batch,))
        cond = parts.condition.encode(params, asked)
        return of_cond(cond | extra[0])
    both = _encode_both(parts, params, tokens, negative) | _pairs(*extra)
    predict_both = of_cond(both)

    def guide(cond: Denoiser, null: Denoiser) -> Denoiser:
        guided = lambda cond: parts.sampling.guide(cond, null, guidance)  # noqa: E731
        return guided(cond) if rescale is None else guides.rescale(guided, cond, rescale, parts.model.prediction)

    def denoise(x: Array, level: Level) -> Array:
        predicted = predict_both(_pairs(x, x), level).reshape(len(x), 2, *x.shape[1:])
        cond, null = (lambda x, level, i=i: predicted[:, i] for i in range(2))
        return guide(cond, null)(x, level)

    return denoise


def _conditional(parts: Parts, params: Params, scale: Scale | Sequence[Scale], cond: Cond) -> Denoiser:
    """The denoiser of an encoded condition, with what steers the network where there is any."""
    model, at = parts.model, lambda level: parts.model.apply
    if parts.controls:
        at = controlled_apply(parts.models, parts.layout.network, parts.controls, scale)

    def of(params: Params) -> Denoiser:
        return lambda x, *levels: denoiser(at(levels[0]), params, model.prediction, cond)(x, *levels)

    x = jnp.zeros((len(jax.tree.leaves(cond)[0]), *parts.medium.shape), parts.dtype)
    return of(cast_for_loop(lambda params: [of(params)], params, x, _at(parts.prepared[0], 0, parts.dtype)))


def _encode_both(parts: Parts, params: Params, tokens: Tokens, negative: Tokens | None) -> Cond:
    """The network's condition for each prompt and its negative one, [2 B, ...]."""
    batch = len(jax.tree.leaves(dict(tokens))[0])
    flags = {NEGATIVE: _pairs(jnp.zeros(batch, bool), jnp.ones(batch, bool))}
    if negative is not None:
        return parts.condition.encode(params, _pairs(dict(tokens), dict(negative)) | flags)
    if not parts.zero_negative:
        raise ValueError('guidance needs negative tokens, such as tokenize([""] * B); or None for no guidance')
    encoded = parts.layout.encode(parts.models, params, tokens)  # the zeros are not encoded
    both = _pairs(encoded, jax.tree.map(jnp.zeros_like, encoded))
    return complete(parts.layout, parts.models, parts.size, both, flags)


def _check_unguided(parts: Parts, guidance: Any, negative: Tokens | None, rescale: Any) -> None:
    if parts.distilled and guidance is None:
        raise ValueError("the guidance is an input of this network: give a number")
    if negative is not None or rescale is not None:
        why = "that of this network is an input" if parts.distilled else "there is no guidance"
        raise ValueError(f"negative and rescale are of classifier-free guidance, but {why}")


def _check_tokens(parts: Parts, tokens: Tokens, negative: Tokens | None) -> int:
    """The size of the batch."""
    names, shapes = parts.encoders, {name: ids.shape for name, ids in tokens.items()}
    if set(shapes) != set(names) or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"tokens must be [B, L] for {' and '.join(names)}, got {shapes}")
    others = shapes if negative is None else {name: ids.shape for name, ids in negative.items()}
    if others != shapes:
        raise ValueError(f"negative tokens must have the shapes of the others, {shapes}, got {others}")
    return shapes[names[0]][0]


def _pairs(first: Any, second: Any) -> Any:
    """One batch of twice the size, in which an example's two are neighbours: on the device that has the example."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), first, second)


def _begin(
    parts: Parts, params: Params, image: Array, mask: Array | None, strength: float | Array, batch: int
) -> tuple[Begin, Cond]:
    """How to begin with an image, and the inputs that a network for inpainting has of it."""
    known = _encode(parts, params, image, batch)
    extra: Cond = {}
    inpaint_mask: Array | None = None
    if mask is not None:
        anew, step = _painted(parts, mask, batch), parts.codec.factor
        inpaint_mask = anew[:, ::step, ::step, None].astype(parts.dtype)
        if parts.inpaints:
            extra = {"concat": parts.encode_masked(params, image, anew)}

    def begin(x: Array, noise: Array, levels: Level, solver: Solver) -> tuple[Array, Array, Solver]:
        start = first_step(parts.sampling.steps, strength, round_up=parts.layout.round_up)
        # No step is none of a longer list; and the last level may have a little noise, which a step takes away.
        still = start == parts.sampling.steps
        start = jnp.where(still, len(levels.t) - 1, start)
        noised = jnp.where(still, known, q_sample(known, noise, _at(levels, start, parts.dtype)))
        if inpaint_mask is None:
            return noised, start, solver
        if not parts.inpaints:
            solver = _keep_known(solver, known, noise, inpaint_mask, levels.t[-1])
        # Where all is painted anew, from noise alone.
        return jnp.where(start == 0, x, noised), start, solver

    return begin, extra


def _encode(parts: Parts, params: Params, image: Array, batch: int) -> Array:
    if image.shape != (batch, *parts.size, 3) or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"images must be floats in [-1, 1] of shape {(batch, *parts.size, 3)}, got {image.dtype}, {image.shape}"
        )
    return parts.encode_images(params, image)


def _painted(parts: Parts, mask: Array, batch: int) -> Array:
    """Which pixels are painted anew."""
    if mask.shape != (batch, *parts.size):
        raise ValueError(f"masks must have shape {(batch, *parts.size)}, got {mask.shape}")
    return mask.astype(parts.dtype) >= 0.5


def _keep_known(solver: Solver, known: Array, noise: Array, mask: Array, end: Array) -> Solver:
    """The solver's steps, after each of which the known part is set to what it is at that level."""
    keep = 1 - mask
    replaced = inverse.replace(solver, inverse.operators.mask(keep), keep * known, noise=noise)

    def step(denoise, key: Array, x: Array, state, cur: Level, nxt: Level):
        x, state = replaced.step(denoise, key, x, state, cur, nxt)
        # The last level may have a little noise left, which the result has not.
        return jnp.where(nxt.t == end, mask * x + keep * known, x), state

    return replaced._replace(step=step)


def _at(levels: Level, i: int | Array, dtype: Any) -> Level:
    return jax.tree.map(lambda field: field.astype(dtype), levels.at(i))
