"""Gauss-Hermite quadrature: expectations over normal noise as weighted sums, exact for polynomials."""

import numpy as np


def hermite(n, axes=1):
    """Nodes [axes, n^axes] of independent standard normal variables and their weights [n^axes], which add up to 1."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    grid = np.meshgrid(*[z] * axes, indexing="ij")
    weight = np.prod(np.meshgrid(*[w / w.sum()] * axes, indexing="ij"), axis=0)
    return np.stack([g.ravel() for g in grid]), weight.ravel()
