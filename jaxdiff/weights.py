"""Weights of the loss by level.

Each is a factor of the squared error of x_0, w(level) |x0_hat - x_0|^2, for any prediction. The squared error of eps is
SNR times that of x_0; the squared error of v is SNR + 1 times that of x_0, if variance is preserved.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process, to_float
from jaxdiff.types import Weight

__all__ = [
    "edm",
    "likelihood",
    "min_snr",
    "p2",
    "sigmoid",
    "simple",
    "snr_plus_one",
    "soft_min_snr",
    "truncated_snr",
]


def simple(level: Level) -> Array:
    """SNR: |eps_hat - eps|^2 unweighted, the simple loss of Ho et al. 2020 (arXiv:2006.11239, eq. 14)."""
    return level.snr


def snr_plus_one(level: Level) -> Array:
    """SNR + 1: |v_hat - v|^2 unweighted (Salimans and Ho 2022, arXiv:2202.00512, sec. 4)."""
    return level.snr + 1


@factory
def truncated_snr(floor: float = 1.0) -> Weight:
    """max(SNR, floor) (Salimans and Ho 2022, sec. 4, with floor 1).

    Args:
        floor: the least weight.
    """
    return lambda level: jnp.maximum(level.snr, floor)


@factory
def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556, eq. 7).

    Args:
        gamma: the largest weight.
    """
    return lambda level: jnp.minimum(level.snr, gamma)


@factory
def soft_min_snr(gamma: float = 4.0) -> Weight:
    """1 / (1/SNR + 1/gamma), a smooth min-SNR (Crowson et al. 2024, arXiv:2401.11605, sec. 3.4).

    Args:
        gamma: the weight's limit as the SNR grows.
    """
    return lambda level: 1 / (jnp.exp(-level.log_snr) + 1 / gamma)


@factory
def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma (Choi et al. 2022, arXiv:2204.00227, eq. 8, which weights the error of eps).

    Args:
        gamma: how much less levels with little noise count; 0 is `simple`.
        k: the SNR at which that begins.
    """
    return lambda level: level.snr / (k + level.snr) ** gamma


@factory
def sigmoid(bias: float = 2.0) -> Weight:
    """SNR sigmoid(bias - log SNR) (Kingma and Gao 2023, arXiv:2303.00848, table 1, which weights the error of eps).

    The paper's weighting is over log SNR; it equals this one if times are uniform in log SNR.

    Args:
        bias: the log SNR at which the weight is half that of `simple`.
    """
    return lambda level: level.snr * jax.nn.sigmoid(bias - level.log_snr)


@factory
def edm(sigma_data: float = 0.5) -> Weight:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, arXiv:2206.00364, table 1): 1 on F.

    Args:
        sigma_data: standard deviation of the data.
    """
    return lambda level: level.snr + 1 / sigma_data**2


@factory
def likelihood(process: Process) -> Weight:
    """-SNR'(t) / 2: the variational bound in nats, for uniform t (Kingma et al. 2021, arXiv:2107.00630, eq. 13).

    On the error of the score it is g(t)^2 / 2 (Song et al. 2021, arXiv:2101.09258, theorem 1).

    Args:
        process: the process of the loss.

    Raises:
        ValueError: a process without `sde`.
    """
    check_process(process, "sde")

    def weight(level: Level) -> Array:
        # At pure noise the SNR is 0 and g infinite: the slope is taken a millionth before it.
        noise_only, t = level.alpha == 0, to_float(level.t)
        near = process(jnp.where(noise_only, (1 - 1e-6) * t, t))
        snr, sigma = (jnp.where(noise_only, at, own) for at, own in ((near.snr, level.snr), (near.sigma, level.sigma)))
        return snr * jnp.square(process.sde(near.t)[1] / sigma) / 2

    return weight
