"""A process whose noise is shifted, for another resolution."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import concrete
from jaxdiff.levels import Level
from jaxdiff.processes.base import AutodiffSDE, Process, to_float
from jaxdiff.processes.discrete import Discrete
from jaxdiff.processes.learned import Learned

__all__ = ["Shifted"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shifted(AutodiffSDE):
    """A process with sigma / alpha multiplied by `shift` at each t.

    For images with d times the side length for which the base was tuned, shift = d keeps the signal-to-noise ratio of
    coarse content (Hoogeboom et al. 2023, arXiv:2301.11093, eq. 4); of Flow it is t' = shift t / (1 + (shift - 1) t)
    (Esser et al. 2024, arXiv:2403.03206, eq. 23, shift = sqrt(m / n) pixels).

    Attributes:
        base: the process to shift; must be defined beyond its noisiest time, unlike `Discrete` and `Learned`.
        shift: factor of sigma / alpha, > 0.

    Raises:
        ValueError: the base is a `Discrete` or `Learned`, which end at their noisiest time; shift <= 0.
    """

    base: Process
    shift: float | Array

    def __post_init__(self) -> None:
        if isinstance(self.base, Discrete | Learned):
            raise ValueError(
                f"Shifted takes a process with a formula, got {type(self.base).__name__}: "
                "use Discrete.shifted(shift), or subtract log(shift) from both ends of Learned"
            )
        if isinstance(self.shift, int | float) and not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    @property
    def t_min(self) -> float | None:
        """The cleanest time, that of the base."""
        return getattr(self.base, "t_min", None)

    @property
    def t_max(self) -> float | None:
        """The noisiest time, that of the base."""
        return getattr(self.base, "t_max", None)

    @concrete
    def __call__(self, t: Array) -> Level:
        t = to_float(t)
        return self.base(self.base.time(self.base(t).lam - jnp.log(self.shift)))._replace(t=t)

    def time(self, lam: Array) -> Array:
        return self.base.time(to_float(lam) + jnp.log(self.shift))
