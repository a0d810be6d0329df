"""Distances of features, for the loss, and the features that reconstructions are measured by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import interop
from jaxdiff.distill import perceptual
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.first_stage.knobs import Objective
from jaxdiff.interop.models.efficientnet import is_installed
from jaxdiff.networks.efficientnet import EfficientNetLite0
from jaxdiff.networks.lpips import LPIPS
from jaxdiff.types import Params

__all__ = ["Perceptual", "as_rgb", "efficientnet_distance", "image_features", "lpips_distance", "perceptual_of"]

SIDE, ROWS = 224, 50  # edge of the images that the features were trained on; images at a time


class Perceptual(NamedTuple):
    """A distance of images by a network that is not trained.

    Attributes:
        apply: (params, images [B, H, W, 3] in [-1, 1], targets) -> [B].
        read: reads the network's parameters.
    """

    apply: Callable[[Any, Array, Array], Array]
    read: Callable[[], Any]


def perceptual_of(objective: Objective) -> Perceptual | None:
    """Make the distance that the knobs ask for; None: there is none, or its package is not installed.

    Raises:
        UserError: LPIPS without its files.
    """
    if not objective.perceptual_weight or objective.perceptual == "none":
        return None
    if objective.perceptual == "efficientnet":
        return efficientnet_distance() if is_installed() else None
    files = objective.vgg, objective.lpips
    if not all(name and Path(name).is_file() for name in files):
        raise UserError(
            "--perceptual lpips needs the files --vgg (torchvision's vgg16-397923af.pth) and --lpips (the authors' "
            f"weights/v0.1/vgg.pth), got {files[0]!r} and {files[1]!r}"
        )
    return lpips_distance(*files)


def lpips_distance(vgg: str, linear: str) -> Perceptual:
    """LPIPS from its two files, see `interop.lpips`."""
    network = LPIPS(compute_dtype())
    return Perceptual(
        lambda params, a, b: network.apply({"params": params}, a, b),  # type: ignore[arg-type, return-value]
        lambda: interop.lpips(vgg, linear).params,
    )


def efficientnet_distance() -> Perceptual:
    """The distance of EfficientNet-Lite0's features at five resolutions, of unit length at each place.

    It is LPIPS's (Zhang et al. 2018, eq. 1) with another network and without weights fitted to people's judgements.
    """
    network = EfficientNetLite0(dtype=compute_dtype())

    def apply(params: Params, a: Array, b: Array) -> Array:
        stages = lambda x: network.apply({"params": params}, x, method="stages")  # noqa: E731
        return perceptual(stages)(a, b)

    return Perceptual(apply, lambda: interop.efficientnet_lite0().params)


def image_features() -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-Lite0's last features of images in [-1, 1] of any size, resized to 224 x 224."""
    loaded = interop.efficientnet_lite0()

    @jax.jit
    def features(params: Params, x: Array) -> Array:
        resized = jax.image.resize(x, (x.shape[0], SIDE, SIDE, x.shape[-1]), "cubic")
        return loaded.apply(params, as_rgb(resized))[1]

    def of(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), ROWS):
            part = images[start : start + ROWS]
            padded = np.pad(part, [(0, ROWS - len(part))] + [(0, 0)] * 3)  # one shape: one compilation
            parts.append(np.asarray(features(loaded.params, padded))[: len(part)])
        return np.concatenate(parts)

    return of


def as_rgb(x: Array) -> Array:
    """Repeat the channel of grey images."""
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
