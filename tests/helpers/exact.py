"""Oracles: data whose denoiser, score, density and probability-flow trajectory are known exactly.

A mixture of K Gaussians noised to x_t = alpha x_0 + sigma eps is again a mixture: component k has mean alpha m_k and
covariance alpha^2 C_k + sigma^2 I. Everything is written in each component's eigenbasis, in which C_k is diagonal.
Nothing here uses jaxdiff but the type `Level`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.levels import Level


class Mixture(NamedTuple):
    """A mixture of K Gaussians in d dimensions; fields are float64 and take the type of x where they meet it.

    Attributes:
        weights: [K].
        means: [K, d].
        values: [K, d] eigenvalues of the covariances.
        vectors: [K, d, d] eigenvectors, in columns.
    """

    weights: np.ndarray
    means: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, weights, means, covs) -> Mixture:
        """The mixture of weights [K], means [K, d] and covariances [K, d, d]."""
        values, vectors = np.linalg.eigh(np.asarray(covs, np.float64))
        return cls(np.asarray(weights, np.float64), np.asarray(means, np.float64), values, vectors)

    def denoise(self, x: Array, level: Level) -> Array:
        """E[x_0 | x_t] of x [B, ...] with d numbers an example, at a scalar level or one level per example."""
        return self._each(_denoise, x, level).reshape(x.shape)

    def score(self, x: Array, level: Level) -> Array:
        """grad log p(x_t), like x."""
        return self._each(_score, x, level).reshape(x.shape)

    def log_density(self, x: Array, level: Level) -> Array:
        """log p(x_t), [B]."""
        return self._each(_log_density, x, level)

    def log_component(self, x: Array, level: Level) -> Array:
        """log p(k | x_t), [B, K]: the exact classifier of noisy data."""
        return self._each(_log_component, x, level)

    def component(self, k: int) -> Mixture:
        """Component k alone."""
        return Mixture(np.ones(1), self.means[k : k + 1], self.values[k : k + 1], self.vectors[k : k + 1])

    def draw(self, rng: np.random.Generator, n: int, level: Level | None = None) -> np.ndarray:
        """n examples of x_t (of x_0 without a level), [n, d] float64."""
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = np.sqrt(self.values[k]) * rng.standard_normal((n, self.means.shape[1]))
        x0 = self.means[k] + np.einsum("bij,bj->bi", self.vectors[k], z)
        if level is None:
            return x0
        return float(level.alpha) * x0 + float(level.sigma) * rng.standard_normal(x0.shape)

    def flow(self, x: Array, cur: Level, nxt: Level) -> Array:
        """The probability-flow ODE's exact map of x [B, d] from one level to another; for a single Gaussian only.

        In the eigenbasis the coordinates are independent and each keeps its quantile.
        """
        assert len(self.weights) == 1
        mean, values, vectors = (jnp.asarray(field[0], x.dtype) for field in self[1:])
        z = (x - (cur.alpha * mean)[None]) @ vectors
        var = [level.alpha**2 * values + level.sigma**2 for level in (cur, nxt)]
        return (nxt.alpha * mean)[None] + (z * jnp.sqrt(var[1] / var[0])[None]) @ vectors.T

    def moments(self, level: Level) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] of x_t."""
        alpha, sigma = float(level.alpha), float(level.sigma)
        mean = self.weights @ self.means
        covs = np.einsum("kij,kj,klj->kil", self.vectors, self.values, self.vectors)
        spread = self.means - mean
        cov = np.einsum("k,kij->ij", self.weights, covs) + np.einsum("k,ki,kj->ij", self.weights, spread, spread)
        return alpha * mean, alpha**2 * cov + sigma**2 * np.eye(len(mean))

    def _each(self, f, x: Array, level: Level) -> Array:
        flat = x.reshape(x.shape[0], -1)
        of_type = Mixture(*(jnp.asarray(field, x.dtype) for field in self))
        alpha, sigma = (jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape[:1]) for a in (level.alpha, level.sigma))
        return _vmapped(f, of_type, flat, alpha, sigma)


def gaussian(mean, cov) -> Mixture:
    """N(mean [d], cov [d, d])."""
    return Mixture.of([1.0], np.asarray(mean)[None], np.asarray(cov)[None])


@partial(jax.jit, static_argnums=0)
def _vmapped(f, m: Mixture, x: Array, alpha: Array, sigma: Array):
    return jax.vmap(lambda x, alpha, sigma: f(m, x, alpha, sigma))(x, alpha, sigma)


def _log_joint(m: Mixture, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array, Array]:
    # log p(k, x_t) [K]; x_t - alpha m_k in eigenbasis [K, d]; eigenvalues of the noised covariances [K, d]
    z = jnp.einsum("kij,ki->kj", m.vectors, x[None] - alpha * m.means)
    var = alpha**2 * m.values + sigma**2
    return jnp.log(m.weights) - 0.5 * jnp.sum(z**2 / var + jnp.log(2 * np.pi * var), axis=1), z, var


def _log_density(*args) -> Array:
    return jax.nn.logsumexp(_log_joint(*args)[0])


def _log_component(*args) -> Array:
    return jax.nn.log_softmax(_log_joint(*args)[0])


def _denoise(m: Mixture, x: Array, alpha: Array, sigma: Array) -> Array:
    joint, z, var = _log_joint(m, x, alpha, sigma)
    each = m.means + jnp.einsum("kij,kj->ki", m.vectors, alpha * m.values / var * z)
    return jax.nn.softmax(joint) @ each


def _score(m: Mixture, x: Array, alpha: Array, sigma: Array) -> Array:
    joint, z, var = _log_joint(m, x, alpha, sigma)
    return -jax.nn.softmax(joint) @ jnp.einsum("kij,kj->ki", m.vectors, z / var)


def rational(x, level: Level):
    """A denoiser of nothing in particular, in plain arithmetic: for an algorithm's transcription in numpy and for JAX.

    It depends on x / alpha and sigma / alpha only, as a true one does.
    """
    alpha, sigma = (a[:, None] if np.ndim(a) else a for a in (level.alpha, level.sigma))  # one level per example
    return alpha * (x + 0.3 * x[..., ::-1]) / (alpha**2 + sigma**2 + 0.1 * x**2)


BLOB = gaussian([0.7, -0.4], [[0.5, 0.3], [0.3, 0.4]])
CLUSTERS = Mixture.of(
    [0.3, 0.5, 0.2],
    [[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]],
    [[[0.20, 0.05], [0.05, 0.10]], [[0.15, -0.05], [-0.05, 0.20]], [[0.10, 0.0], [0.0, 0.25]]],
)
