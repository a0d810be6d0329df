"""Phantoms of magnetic resonance imaging and tomography: pictures made of ellipses. Not for clinical use.

Coordinates are x to the right and y upwards in [-1, 1]^2, the square that the picture fills.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxdiff.checks import check_number

__all__ = ["Ellipses", "Phantoms", "coverage", "draw_phantom", "shepp_logan"]


class Ellipses(NamedTuple):
    """K ellipses.

    Attributes:
        centre: x and y, [K, 2].
        axes: the semi-axes, [K, 2].
        angle: of the first semi-axis to x, counterclockwise, [K] radians.
    """

    centre: np.ndarray
    axes: np.ndarray
    angle: np.ndarray


# Value, semi-axes, centre, degrees (Shepp and Logan 1974, table 1, with the contrasts of Toft 1996, table B.3).
SHEPP_LOGAN = np.array([
    [1.0, 0.69, 0.92, 0, 0, 0],
    [-0.8, 0.6624, 0.874, 0, -0.0184, 0],
    [-0.2, 0.11, 0.31, 0.22, 0, -18],
    [-0.2, 0.16, 0.41, -0.22, 0, 18],
    [0.1, 0.21, 0.25, 0, 0.35, 0],
    [0.1, 0.046, 0.046, 0, 0.1, 0],
    [0.1, 0.046, 0.046, 0, -0.1, 0],
    [0.1, 0.046, 0.023, -0.08, -0.605, 0],
    [0.1, 0.023, 0.023, 0, -0.606, 0],
    [0.1, 0.023, 0.046, 0.06, -0.605, 0],
])  # fmt: skip


def coverage(ellipses: Ellipses, size: int) -> np.ndarray:
    """The share of each pixel that lies within each ellipse, from the distance of its middle to the edge.

    To first order in the distance, and as if the edge were straight within a pixel: semi-axes are a pixel or more.

    Args:
        ellipses: K of them.
        size: side of the picture in pixels.

    Returns:
        float64 [K, size, size], the top line first.
    """
    at = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = at - ellipses.centre[:, :1], -at - ellipses.centre[:, 1:]  # [K, size]
    cos, sin = np.cos(ellipses.angle)[:, None, None], np.sin(ellipses.angle)[:, None, None]
    a, b = ellipses.axes[:, :1, None], ellipses.axes[:, 1:, None]
    u = (cos * x[:, None] + sin * y[:, :, None]) / a
    v = (cos * y[:, :, None] - sin * x[:, None]) / b
    radius = np.sqrt(u * u + v * v)
    # It is 1 at the edge. In the very middle it has no slope, and the edge is far.
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) / np.maximum(radius, 1e-9)
    distance = (1 - radius) / np.maximum(slope, 1e-9)
    return np.clip(0.5 + distance * size / 2, 0, 1)


def shepp_logan(size: int) -> np.ndarray:
    """The phantom of Shepp and Logan 1974 with the contrasts of Toft 1996, in [0, 1].

    Args:
        size: side of the picture in pixels.

    Returns:
        float64 [size, size].
    """
    value, a, b, x, y, degrees = SHEPP_LOGAN.T
    ellipses = Ellipses(np.stack([x, y], 1), np.stack([a, b], 1), np.radians(degrees))
    return np.clip(np.tensordot(value, coverage(ellipses, size), 1), 0, 1)


def draw_phantom(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random head: an ellipse, half of the time with a rim, and three to ten ellipses in it that add or take away.

    Args:
        rng: decides everything.
        size: side of the picture in pixels.

    Returns:
        float64 [size, size] in [0, 1]; 0 outside of the head, which lies within the circle of radius 1.
    """
    uniform = rng.uniform
    head = uniform(0.55, 0.9) * np.array([uniform(0.7, 1.0), 1.0])
    rim = uniform(0.04, 0.12) if rng.random() < 0.5 else 0.0
    place, tilt = uniform(-0.05, 0.05, 2), uniform(-0.5, 0.5)
    count = int(rng.integers(3, 11))
    distance, direction = 0.75 * np.sqrt(uniform(size=count)), uniform(-np.pi, np.pi, count)
    spread = np.stack([np.cos(direction), np.sin(direction)], 1) * distance[:, None] * head
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    axes = np.exp(uniform(np.log(0.04), np.log(0.35), (count, 2)))
    both = np.stack([head, head - rim])
    ellipses = Ellipses(
        np.concatenate([np.stack([place, place]), place + spread @ turn]),
        np.concatenate([both, axes]),
        np.concatenate([[tilt, tilt], uniform(0, np.pi, count)]),
    )
    outer, inner, *parts = coverage(ellipses, size)
    value = uniform(0.1, 0.4, count) * rng.choice([-1, 1], count)
    tissue = np.clip(uniform(0.2, 0.7) + np.tensordot(value, np.array(parts), 1), 0, 1)
    bright = uniform(0.7, 1.0)
    return uniform(0.6, 1.0) * (bright * (outer - inner) + tissue * inner)


class Phantoms:
    """A random-access sequence of random phantoms, each drawn when it is read.

    Attributes:
        shape: (size, size, 1).
        num_classes: 0, without labels.
        class_names: none.
    """

    num_classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, size: int, *, seed: int = 0, count: int = 2**18):
        """Describe them.

        Args:
            size: side in pixels.
            seed: those of another seed are others.
            count: how many.

        Raises:
            ValueError: a size or count below 1, or a negative seed.
        """
        for name, value, low in (("size", size, 1), ("seed", seed, 0), ("count", count, 1)):
            check_number(name, value, low=low)
        self.shape, self.seed, self.count = (size, size, 1), seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read {"x": uint8 [size, size, 1]}, a function of the size, the seed and the index."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be in 0..{self.count - 1}, got {index}")
        drawn = draw_phantom(np.random.default_rng((self.seed, int(index))), self.shape[0])
        return {"x": np.round(255 * drawn).astype(np.uint8)[..., None]}
