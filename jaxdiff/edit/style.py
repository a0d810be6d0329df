"""A picture in the style of another one: `--style`, by statistics of its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import inverse
from jaxdiff.conditions import Cond
from jaxdiff.edit.source import target_of
from jaxdiff.experiment import UserError
from jaxdiff.first_stage.perceptual import as_rgb
from jaxdiff.imagine import Stage
from jaxdiff.levels import q_sample
from jaxdiff.networks.efficientnet import EfficientNetLite0
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.sample import sample
from jaxdiff.sampler import first_step
from jaxdiff.types import Params

__all__ = ["gram", "style_distance", "styled"]

SMALLEST = 128  # edge to which smaller pictures are enlarged: their features would be of a few places


def gram(features: Array) -> Array:
    """Products of the channels of [B, H, W, C], meaned over the places: [B, C, C] (Gatys et al. 2016, eq. 3)."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1])
    return jnp.einsum("bnc,bnd->bcd", flat, flat) / flat.shape[1]


def style_distance(features: Callable[[Array], tuple[Array, ...]], style: Array) -> Callable[[Array], Array]:
    """How far the Gram matrices of pictures are from those of one, relative to these, meaned over the layers.

    Args:
        features: images [B, H, W, 3] -> outputs of layers, [B, h, w, c] each.
        style: the picture, [1, H', W', 3], of any size.

    Returns:
        images [B, H, W, 3] -> [B]; a picture without features, which is all 0, is at a distance of 1.
    """
    wanted = [gram(f) for f in features(style)]

    def distance(images: Array) -> Array:
        apart = [
            jnp.sum(jnp.square(gram(f) - g), axis=(1, 2)) / jnp.sum(jnp.square(g))
            for f, g in zip(features(images), wanted, strict=True)
        ]
        return jnp.mean(jnp.stack(apart), axis=0)

    return distance


def styled(stage: Stage, *, guided: bool) -> Callable[..., Array]:
    """A function that draws the pictures.

    Each step leads to where the distance of styles is smaller (`inverse.guide`), and the picture begins noised, as by
    SDEdit. The features are those of EfficientNet-Lite0 at all five resolutions.

    Args:
        stage: draws pictures.
        guided: whether the prompt is guided.

    Returns:
        (params, keys, x0, *, cond, features, style, scale, strength, weight) -> pictures. `features` are the parameters
        of EfficientNet-Lite0, and `weight` is the factor of the distance to `style`, [1, H, W, 3].

    Raises:
        UserError: a solver that jumps.
    """
    levels, solver = stage.sampling.prepare()
    if solver.next_level:
        raise UserError("a style leads at one level, and this solver jumps between two: choose another solver")
    network = EfficientNetLite0()

    def draw(
        params: Params, keys: Array, x0: Array, *, cond: Cond, features: Any, style: Array, scale: Any, strength: Any,
        weight: Any,
    ) -> Array:  # fmt: skip
        def layers(images: Array) -> tuple[Array, ...]:
            size = [max(SMALLEST, n) for n in images.shape[1:3]]
            large = jax.image.resize(as_rgb(images), (len(images), *size, 3), "linear")
            return network.apply({"params": features}, large, method="stages")  # type: ignore[return-value]

        distance = style_distance(layers, style)
        cond = stage.condition.augment(fold_in(keys, 2), cond)
        denoise = target_of(stage, params, cond, scale, guided=guided)
        led = inverse.guide(denoise, lambda x: distance(stage.medium.decode(params, x)), weight)
        start = first_step(len(levels.t) - 1, strength, round_up=True)
        x = q_sample(x0, normal_like(fold_in(keys, 0), x0), levels.at(start))
        return stage.medium.decode(params, sample(led, solver, levels, x, fold_in(keys, 1), start=start))

    return draw
