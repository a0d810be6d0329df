"""A noise schedule that is trained with the network."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import concrete
from jaxdiff.levels import Level
from jaxdiff.processes.base import AutodiffSDE, UnitTime, to_float, vp_level

__all__ = ["Learned"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Learned(AutodiffSDE, UnitTime):
    """Variance preserving with a learned monotone log-SNR between fixed ends (after Kingma et al. 2021, sec. 5.1).

    lam decreases from lam_max at t = 0 to lam_min at t = 1 in K linear pieces of equal length in t, each with a learned
    share of the decrease. It is monotone, with an exact inverse, for all logits; it is linear for zero logits.

    Attributes:
        logits: [K]; their softmax is each piece's share.
        lam_max, lam_min: the ends; not differentiated.
    """

    logits: Array
    lam_max: float | Array = 5.0
    lam_min: float | Array = -5.0

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        lam_max, lam_min = self._ends()
        return vp_level(t, lam_max + (lam_min - lam_max) * jnp.interp(t, *self._knots()))

    def time(self, lam: Array) -> Array:
        lam_max, lam_min = self._ends()
        times, shares = self._knots()
        return jnp.interp((lam_max - to_float(lam)) / (lam_max - lam_min), shares, times)

    def _knots(self) -> tuple[Array, Array]:
        shares = jnp.minimum(jnp.cumsum(jax.nn.softmax(self.logits)), 1)  # a rounded sum may exceed 1
        shares = jnp.concatenate([jnp.zeros_like(shares[:1]), shares[:-1], jnp.ones_like(shares[:1])])
        return jnp.linspace(0, 1, shares.shape[0], dtype=shares.dtype), shares

    def _ends(self) -> tuple[Array, Array]:
        return jax.lax.stop_gradient((jnp.asarray(self.lam_max), jnp.asarray(self.lam_min)))
