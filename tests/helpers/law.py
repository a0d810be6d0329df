"""The exact law of what a sampler draws of Gaussian data, where every step is affine: no Monte-Carlo error.

Also what continuous time gives for a posterior denoiser x0_hat_y(x) = G x + g, by integrating the moments' equations in
numpy: the limit of any solver on any process. With x / alpha as x and s = sigma / alpha,

    dx = k (x - G x - g) d log s + [2 s^2 d(-log s)]^(1/2) noise

with k = 1 and no noise for the probability flow, k = 2 for the reverse SDE.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxdiff.levels import Level


class Linear(NamedTuple):
    """y = A x_0 + std n of x_0 ~ N(mean, cov), in float64."""

    mean: np.ndarray
    cov: np.ndarray
    a: np.ndarray
    std: float
    y: np.ndarray

    def posterior(self):
        """Mean and covariance of x_0 given y."""
        inner = self.a @ self.cov @ self.a.T + self.std**2 * np.eye(len(self.a))
        gain = self.cov @ self.a.T @ np.linalg.inv(inner)
        return self.mean + gain @ (self.y - self.a @ self.mean), self.cov - gain @ self.a @ self.cov

    def noised(self, level):
        """Mean and covariance of x_t given y."""
        mean, cov = self.posterior()
        alpha, sigma = float(level.alpha), float(level.sigma)
        return alpha * mean, alpha**2 * cov + sigma**2 * np.eye(len(mean))

    def denoised(self, method, s):
        """G and g of a method's denoiser at x / alpha with s = sigma / alpha."""
        eye, inv = np.eye(len(self.mean)), np.linalg.inv
        keep = self.cov @ inv(self.cov + s**2 * eye)  # J, and C = s^2 J
        c, noise = s**2 * keep, self.std**2 * np.eye(len(self.a))
        gain = {
            "none": lambda: np.zeros_like(self.a.T),
            "tmpd": lambda: c @ self.a.T @ inv(self.a @ c @ self.a.T + noise),
            "pigdm": lambda: c @ self.a.T @ inv(s**2 / (1 + s**2) * self.a @ self.a.T + noise),
            "dps": lambda: c @ self.a.T @ inv(noise),
            "diffpir": lambda: s**2 * self.a.T @ inv(s**2 * self.a @ self.a.T + noise),
            "diffpir, prior": lambda: self.a.T @ inv(self.a @ self.a.T + (1 + s**2) / s**2 * noise),
            "ddnm": lambda: np.linalg.pinv(self.a),
        }[method]()
        inner = (eye - keep) @ self.mean
        return keep - gain @ self.a @ keep, inner + gain @ (self.y - self.a @ inner)

    def limit(self, method, first, last, *, stochastic):
        """Mean and covariance of x / alpha at s = last, from x_t given y at s = first: in continuous time."""
        n, k = len(self.mean), 2 if stochastic else 1
        mean, cov = self.posterior()

        def slope(u, state):
            m, p, s = state[:n], state[n:].reshape(n, n), np.exp(u)
            matrix, offset = self.denoised(method, s)
            drift = np.eye(n) - matrix
            change = k * (drift @ p + p @ drift.T) - (2 * s**2 * np.eye(n) if stochastic else 0)
            return np.concatenate([k * (drift @ m - offset), change.ravel()])

        begin = np.concatenate([mean, (cov + first**2 * np.eye(n)).ravel()])
        end = solve_ivp(slope, np.log([first, last]), begin, method="LSODA", rtol=1e-9, atol=1e-11).y[:, -1]
        return end[:n], end[n:].reshape(n, n)


def affine(step, mean, cov, noises=None):
    """The law of step(x, z), x ~ N(mean, cov), z ~ N(0, I), for an affine step of x [B, n] and z [B, noises or n]."""
    n = len(mean)
    k = noises or n
    basis = jnp.concatenate([jnp.zeros((1, n)), jnp.eye(n), jnp.zeros((k, n))])
    noise = jnp.concatenate([jnp.zeros((1 + n, k)), jnp.eye(k)])
    moved = step(basis, noise)
    m, s = (moved[1:] - moved[:1])[:n].T, (moved[1:] - moved[:1])[n:].T
    return m @ mean + moved[0], m @ cov @ m.T + s @ s.T


def law(denoise, make_solver, levels, mean, cov):
    """Mean and covariance at the end of a grid, of a solver without a state: make_solver takes its noise sampler."""

    def body(moments, pair):
        def step(x, z):
            solver = make_solver(lambda key, x, cur, nxt: z)
            return solver.step(denoise, jax.random.key(0), x, (), *pair)[0]

        return affine(step, *moments), None

    pairs = levels.at(slice(None, -1)), levels.at(slice(1, None))
    return jax.lax.scan(body, (jnp.asarray(mean), jnp.asarray(cov)), pairs)[0]


def apart(law, other):
    """Relative distances of two means and of two covariances."""
    return [float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)) for a, b in zip(law, other, strict=True)]


def problem(n=6, m=3, std=0.5, *, isotropic=False, seed=0):
    """A random problem: eigenvalues 4 to 0.05 or 1, correlated; A sees a few combinations."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    cov = np.eye(n) if isotropic else vectors @ np.diag(np.geomspace(4, 0.05, n)) @ vectors.T
    mean, a = rng.normal(size=n), rng.normal(size=(m, n)) / np.sqrt(n)
    x0 = rng.multivariate_normal(mean, cov)
    return Linear(mean, cov, a, std, a @ x0 + std * rng.normal(size=m))


def grid(process, n, first, last):
    """A grid whose sigma / alpha falls geometrically, in float64 where that is on."""
    levels = process(process.time(-jnp.log(jnp.geomspace(first, last, n + 1))))
    return Level(*(jnp.asarray(field, jnp.result_type(float)) for field in levels))
