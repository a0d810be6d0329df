"""The twisted diffusion sampler: sequential Monte Carlo whose weights make up for what a posterior denoiser is off by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function
from jaxdiff.guidance.base import split_variance
from jaxdiff.inverse.base import check_operator, check_std, measure, variance_of
from jaxdiff.inverse.operators.base import Operator
from jaxdiff.inverse.posterior import pigdm, spread, tmpd
from jaxdiff.levels import Level, posterior
from jaxdiff.noise import check_key, fold_in, normal_like
from jaxdiff.solvers.base import Solver
from jaxdiff.types import Denoiser
