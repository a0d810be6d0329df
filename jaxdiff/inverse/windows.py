"""Pictures larger than those that a network was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_function
from jaxdiff.types import Apply, Cond, Params

__all__ = ["windows"]


def windows(apply: Apply, size: tuple[int, int], stride: tuple[int, int] | None = None) -> Apply:
    """A network's mean over windows that overlap, for a canvas of any size (MultiDiffusion, Bar-Tal et al. 2023).

    arXiv:2302.08113. The windows see the same x, so that the mean of what the network predicts is that of the denoised
    windows, too: each step of a solver moves the canvas as a whole, and there are no seams.

    Args:
        apply: the network, (params, x, noise, cond) -> F, for pictures of `size`.
        size: height and width of a window.
        stride: distance of windows, at most their size; None is half of it. The last window ends with the canvas.

    Returns:
        the network for x [B, H, W, C] with H and W at least the window's, evaluated once for all windows.
        `cond["concat"]` [B, H, W, C'] is cut as x is.

    Raises:
        ValueError: no pairs, or a stride below 1 or above the size; from the network, a canvas smaller than a window.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    for name, pair in (("size", size), ("stride", size if stride is None else stride)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{name} must be a pair, of height and width, got {pair!r:.80}")
    stride = (max(1, size[0] // 2), max(1, size[1] // 2)) if stride is None else stride
    if any(not 1 <= step <= side for step, side in zip(stride, size, strict=True)):
        raise ValueError(f"stride must lie between 1 and the window's size {size}, got {stride}")

    def of_canvas(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
        canvas = x.shape[1:3]
        if any(n < side for n, side in zip(canvas, size, strict=True)):
            raise ValueError(f"a canvas is at least as large as a window, {size}, got {canvas}")
        corners = [np.append(np.arange(0, n - k, s), n - k) for n, k, s in zip(canvas, size, stride, strict=True)]
        places = [np.s_[:, i : i + size[0], j : j + size[1]] for i in corners[0] for j in corners[1]]
        # A picture's windows lie next to each other, so that halves of the batch stay halves, e.g. for
        # `networks.control_attention`, and a sharded batch stays where it is.
        copies = lambda a: jnp.repeat(a, len(places), axis=0)  # noqa: E731
        cut = lambda a: jnp.stack([a[place] for place in places], 1).reshape(-1, *size, a.shape[-1])  # noqa: E731
        given = jax.tree.map(copies, cond)
        if isinstance(cond, Mapping) and "concat" in cond:
            given = {**given, "concat": cut(cond["concat"])}
        out = apply(params, cut(x), copies(noise), given, **options)
        count = np.zeros((1, *canvas, 1))
        for place in places:
            count[place] += 1

        def mean(out: Array) -> Array:
            total = jnp.zeros((*x.shape[:3], out.shape[-1]), out.dtype)
            out = out.reshape(len(x), len(places), *out.shape[1:])
            for i, place in enumerate(places):
                total = total.at[place].add(out[:, i])
            return total / count.astype(out.dtype)

        return jax.tree.map(mean, out)  # two outputs with a learned variance

    return of_canvas
