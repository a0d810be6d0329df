"""Embeddings of the noise level, the class and condition vectors: [B] or [B, D] to [B, features]."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.initializers import kernel_init, param, table_init, zeros_init
from jaxdiff.networks.layers import Dense, activation, at_least_float32
from jaxdiff.sharding import constrain, gathered_weight


@dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, sec. 3.5).

    Frequencies are max_period^(-i / (dim/2 - shift)), i = 0..dim/2 - 1, in radians per unit of noise.

    Attributes:
        cos_first: [cos, sin], as in ADM; False: [sin, cos], as in Ho et al. 2020.
        shift: 1 makes the last frequency exactly 1 / max_period, as in Ho et al. 2020; 0 as in ADM.
        max_period: inverse of the lowest frequency (with shift 0: of the one after the lowest).
    """

    cos_first: bool = True
    shift: int = 0
    max_period: float = 10_000.0

    def __call__(self, noise: Array, dim: int) -> Array:
        """Embed noise[B] in [B, dim], dim even."""
        half = dim // 2
        frequencies = self.max_period ** (-np.arange(half) / max(half - self.shift, 1))
        return _sin_cos(noise, frequencies, self.cos_first)


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features (Tancik et al. 2020, eq. 5) of normal frequencies, in float32 at least.

    The frequencies are constants of the architecture, drawn from the seed; they are not parameters.

    Attributes:
        scale: standard deviation of the frequencies, in cycles per unit of noise.
        cos_first: [cos, sin] or [sin, cos].
        seed: seed of the frequencies.
    """

    scale: float = 16.0
    cos_first: bool = True
    seed: int = 0

    def __call__(self, noise: Array, dim: int) -> Array:
        """Embed noise[B] in [B, dim], dim even."""
        # RandomState draws the same numbers in all versions of numpy, as stored networks need.
        frequencies = 2 * np.pi * self.scale * np.random.RandomState(self.seed).standard_normal(dim // 2)
        return _sin_cos(noise, frequencies, self.cos_first)


@dataclass(frozen=True)
class StoredFourier:
    """Random Fourier features whose frequencies are a parameter of the network, as in some checkpoints.

    The gradient of this parameter is zero.

    Attributes:
        scale: standard deviation of the frequencies, in cycles per unit of noise.
        cos_first: [cos, sin] or [sin, cos].
    """

    scale: float = 1.0
    cos_first: bool = True


@dataclass(frozen=True)
class LearnedTimes:
    """A table of learned embeddings, one row for each noise input 0, 1, ..., steps - 1 of a discrete process.

    A noise input between two of them is rounded; one outside gives NaN, since a compiled program can't raise.

    Attributes:
        steps: number of rows.
    """

    steps: int


TimeEmbedding = Sinusoidal | Fourier | StoredFourier | LearnedTimes


def noise_embedding(time: TimeEmbedding, name: str) -> Callable[[Array, int], Array]:
    """Return the function (noise[B], dim) -> [B, dim] that a module embeds noise levels by.

    Args:
        time: the kind of embedding.
        name: of its parameter within the calling module, if it has one; all calls of the function share it.
    """
    if isinstance(time, StoredFourier):
        return Frequencies(time.scale, cos_first=time.cos_first, name=name)
    return TimeTable(time.steps, name=name) if isinstance(time, LearnedTimes) else time


class TimeTable(nn.Module):
    """The embedding of `LearnedTimes`, whose rows are the parameter "embedding".

    Attributes:
        steps: number of rows.
    """

    steps: int

    @nn.compact
    def __call__(self, noise: Array, dim: int) -> Array:
        """Look up noise[B] in [steps, dim]; float32 at least."""
        return _row(self, (self.steps, dim), jnp.round(noise).astype(jnp.int32), at_least_float32(noise.dtype))


class Frequencies(nn.Module):
    """Random Fourier features whose frequencies are the parameter "weight", as in some checkpoints.

    The gradient of this parameter is zero.

    Attributes:
        scale: standard deviation of the frequencies, in cycles.
        log: embed the logarithm of the noise.
        cos_first: [cos, sin] or [sin, cos].
    """

    scale: float = 16.0
    log: bool = False
    cos_first: bool = False

    @nn.compact
    def __call__(self, noise: Array, dim: int) -> Array:
        """Embed noise[B] in [B, dim], dim even; float32 at least."""

        def start(key: Array, shape: tuple[int, ...]) -> Array:
            return self.scale * jax.random.normal(key, shape, jnp.float32)

        frequencies = jax.lax.stop_gradient(param(self, "weight", start, (dim // 2,))).astype(
            at_least_float32(noise.dtype)
        )
        return _sin_cos(jnp.log(noise) if self.log else noise, 2 * jnp.pi * frequencies, self.cos_first)


def _sin_cos(noise: Array, frequencies: np.ndarray | Array, cos_first: bool) -> Array:
    dtype = at_least_float32(noise.dtype)
    angle = noise.astype(dtype)[:, None] * jnp.asarray(frequencies, dtype)[None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([cos, sin] if cos_first else [sin, cos], axis=-1)


class EmbeddingMLP(nn.Module):
    """Linear, activation, linear; float32 at least, since all information about the noise level passes through it.

    Attributes:
        features: width of both layers.
        dtype: type of the network's computation.
        act: the activation; see `layers.activation`.
        zero: initialize the second layer with zeros, so that a network of which this becomes a part is unchanged.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    act: str = "silu"
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [B, D] to [B, features]."""
        dtype = at_least_float32(self.dtype)
        x = Dense(self.features, dtype=dtype, name="linear_1")(x.astype(dtype))
        kernel = zeros_init if self.zero else kernel_init
        return Dense(self.features, dtype=dtype, kernel_init=kernel, name="linear_2")(activation(self.act)(x))


def embed_guidance(scale: Array, dim: int, features: int, name: str) -> Array:
    """Embed the scale of a distilled guidance, [B], in [B, features], which are zero at initialization.

    A linear layer on sines and cosines, as in guidance-distilled networks (Luo et al. 2023, arXiv:2310.04378, sec.
    4.2).

    Args:
        scale: [B], 1 is no guidance; float32 at least.
        dim: number of sines and cosines.
        features: length of the result.
        name: of the layer, within the calling module.
    """
    waves = Sinusoidal(cos_first=False, shift=1)(1000 * (scale - 1), dim)
    return Dense(features, bias=False, dtype=waves.dtype, kernel_init=zeros_init, name=name)(waves)


class ClassEmbedding(nn.Module):
    """A table of num_classes + 1 rows, the last for the null class of classifier-free guidance.

    A label outside 0..num_classes gives NaN, since a compiled program can't raise.

    Attributes:
        num_classes: number of classes.
        features: length of a row.
        dtype: type of the network's computation.
    """

    num_classes: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, label: Array) -> Array:
        """Look up label[B]; returns [B, features]."""
        return _row(self, (self.num_classes + 1, self.features), label, at_least_float32(self.dtype))


def _row(module: nn.Module, shape: tuple[int, int], index: Array, dtype: jnp.dtype) -> Array:
    """Look up index[B] in the module's table of that shape; NaN for an index outside of it."""
    table = gathered_weight((*module.path, "embedding"), param(module, "embedding", table_init, shape), dtype)
    table = constrain(table, None, None)  # its gradient is summed where it is: rows are scattered by example
    # Negative indices would count from the end, so they are moved out of range.
    return jnp.take(table, jnp.where(index < 0, shape[0], index), axis=0, mode="fill", fill_value=jnp.nan)
