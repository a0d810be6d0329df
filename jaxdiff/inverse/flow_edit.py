"""Editing by the difference of two denoisers, without inversion (FlowEdit)."""

from __future__ import annotations

from jax import Array

from jaxdiff.guidance.base import check_denoisers, split_variance
from jaxdiff.levels import Level, q_sample
from jaxdiff.types import Denoiser

__all__ = ["flow_edit"]


def flow_edit(target: Denoiser, source: Denoiser, x0: Array, noise: Array) -> Denoiser:
    """D_target(x_t + d) - D_source(x_t), the denoiser of a picture's edit d (FlowEdit, Kulikov et al. 2024).

    arXiv:2412.08629, algorithm 1, whose step is DDIM's on d, for any process: x_t = alpha x_0 + sigma eps is the
    picture noised, and x_t + d is what it becomes. The edit begins as 0 and ends as what is added to the picture:

        d = sample(flow_edit(target, source, x0, noise), solver, levels, jnp.zeros_like(x0), key, start=start)
        edited = x0 + d

    A later `start` keeps more of the picture. The paper draws the noise anew at each step; here it is given, so that
    any solver of the ODE will do.

    Args:
        target: denoiser of what the picture shall show, guided or not.
        source: denoiser of what it shows.
        x0: the picture, [B, ...].
        noise: standard normal, like x0.

    Returns:
        the denoiser of d.

    Raises:
        ValueError: not denoisers, or a noise of another shape.
    """
    check_denoisers(target=target, source=source)
    if noise.shape != x0.shape:
        raise ValueError(f"the noise has the shape of the picture, {list(x0.shape)}, got {list(noise.shape)}")

    def denoise(d: Array, level: Level) -> Array:
        x = q_sample(x0, noise, level)
        return split_variance(target(x + d, level))[0] - split_variance(source(x, level))[0]

    return denoise
