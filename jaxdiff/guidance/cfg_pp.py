"""CFG++: guidance that adds the unconditional noise again."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_number
from jaxdiff.guidance.base import Scale, check_denoisers, guide, scale_at
from jaxdiff.levels import Level, check_grid
from jaxdiff.types import Denoiser

__all__ = ["cfg_pp"]


def cfg_pp(cond: Denoiser, uncond: Denoiser, scale: Scale, levels: Level) -> Denoiser:
    """CFG++: x_s = alpha_s x0_guided + sigma_s eps_uncond (Chung et al. 2024, arXiv:2406.08070).

    DDIM's step is linear in x0_hat, (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x0_hat with h = lam_s - lam_t, so
    CFG++ is DDIM with `cfg` of scale / (1 - exp(-h)), or of `scale` if h is infinite. This is exact for `ddim()` and
    `euler()` on the same levels. Other solvers are guided with the same scale; a level off the grid takes that of the
    nearest level in lam.

    Args:
        cond, uncond: as for `cfg`.
        scale: the paper's lambda, in [0, 1]; a number, [B], or a function of the level; may be traced.
        levels: the grid passed to `sample`, fields [N + 1]; may be traced.

    Returns:
        the guided denoiser, two evaluations per call.

    Raises:
        ValueError: scale is a number outside [0, 1], or `levels` is not a grid.
    """
    check_denoisers(cond=cond, uncond=uncond)
    check_number("scale", scale, low=0, high=1)
    check_grid(levels)
    lam = Level(*(jnp.asarray(field) for field in levels)).lam
    gain = -1 / jnp.expm1(lam[:-1] - lam[1:])

    def gain_at(level: Level) -> Array:
        here, grid = (jnp.clip(a, -_FAR, _FAR) for a in (level.lam, lam[:-1]))
        grid = grid.astype(here.dtype).reshape((1,) * here.ndim + (-1,))
        nearest = jnp.argmin(jnp.abs(here[..., None] - grid), axis=-1)
        return gain[nearest]

    def denoise(x: Array, level: Level) -> Any:
        w = scale_at(scale, x, level) * scale_at(gain_at, x, level)
        return guide(cond(x, level), uncond(x, level), w)

    return denoise


_FAR = 1e4  # stands for an infinite lam, whose distance to another is NaN
