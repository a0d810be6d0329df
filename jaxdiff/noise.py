"""Gaussian noise from one key, or one key per example: independent at each step, or increments of a Brownian path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import factory
from jaxdiff.levels import Level, append_axes, check_grid
from jaxdiff.types import NoiseSampler

__all__ = ["brownian", "check_key", "fold_in", "normal_like", "prior", "white"]

# A path is resolved down to 2 _EDGE / 2^_DEPTH = 0.00015 in lam, and linear below that: an increment over h lacks about
# 0.00005 / h of its variance, which its neighbours have. A sampler with 1,000 steps has h = 0.01.
_EDGE, _DEPTH = 10.0, 17


def check_key(key: Array, batch: tuple[int, ...] | None = None) -> None:
    """Raise ValueError unless `key` is a typed JAX key, or one per example; `batch` = (B,) is their number if known."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or key.ndim > 1:
        raise ValueError(f"expected a key of jax.random.key(seed), or a vector of one key per example, got {key!r:.80}")
    if batch is not None and key.ndim and key.shape != batch:
        raise ValueError(f"one key per example: got {key.shape[0]} keys for {batch[0] if batch else 'no'} examples")


def normal_like(key: Array, x: Array) -> Array:
    """Standard normal noise with the shape and dtype of x.

    With one key per example, an example's noise depends on its own key only: not on its index in the batch, the size of
    the batch, or the sharding.

    Args:
        key: one key, or [B] keys.
        x: [B, ...].

    Returns:
        noise like x.

    Raises:
        ValueError: `key` is not a typed key, or the number of keys differs from that of examples.
    """
    return _normal(key, x.shape, x.dtype)


def prior(levels: Level, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw x_T: noise with the standard deviation of the grid's noisiest level.

    Args:
        levels: a grid, noisiest first; fields [N + 1].
        key: one key, or [B] keys.
        shape: of x_T, [B, ...].
        dtype: of x_T.

    Returns:
        x_T ~ N(0, sigma_0^2 I). The mean alpha_0 x_0 is left out, as in all samplers: start where it is small.

    Raises:
        ValueError: `levels` is not a grid; an untyped key; the number of keys differs from that of examples.
    """
    check_grid(levels)
    return levels.sigma[0].astype(dtype) * _normal(key, tuple(shape), dtype)


def fold_in(key: Array, data: Array | int) -> Array:
    """Apply `jax.random.fold_in` to one key, or to each key of a vector."""
    return jax.random.fold_in(key, data) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def white(key: Array, x: Array, cur: Level, nxt: Level) -> Array:
    """Noise that is independent at each step: `normal_like`."""
    return normal_like(key, x)


@factory
def brownian(path: Array) -> NoiseSampler:
    """Increments of one Brownian path: all numbers of steps follow the same path, and refining the grid converges.

    The noise that a reverse SDE adds from level t to s is an increment of a Brownian motion W with time SNR = exp(2
    lam), since sigma_s sqrt(1 - SNR_t / SNR_s) z = sigma_s (W(SNR_s) - W(SNR_t)) / sqrt(SNR_s), and these increments
    add up along a grid. W is a virtual tree of Brownian bridges (Li et al. 2020, arXiv:2001.01328, sec. 4), bisected in
    lam. A step that is taken again draws the same noise, which is wrong in `solvers.restart`.

    Args:
        path: one key, or [B] keys; the same key gives the same path.

    Returns:
        (key, x, cur, nxt) -> the standardized increment from `cur` to `nxt`, like x; the key of the step is not used.
        Levels are scalars or broadcast against x, [B] or [B, 1, ...]; others than scalars need [B] keys.

    Raises:
        ValueError: `path` is not a typed key; from the increments, one key with one level per example.
    """
    check_key(path)

    def at(lam: Array, x: Array) -> Array:
        if lam.size == 1:
            return _path(path, x.shape, lam.reshape(()))
        if path.ndim == 0:
            raise ValueError(
                "a Brownian path at one level an example, as adaptive solvers need, takes one key an example"
            )
        lam = append_axes(lam, x.ndim)
        lam = jnp.broadcast_to(lam, (len(x), *lam.shape[1:]))
        return jax.vmap(lambda key, lam: _path_at(key, x.shape[1:], lam))(path, lam)

    def increment(key: Array, x: Array, cur: Level, nxt: Level) -> Array:
        # In units of the end's alpha / sigma, so that nothing overflows; lam of clean data is clipped to the end of the
        # tree. At least float32: in bfloat16 the tree's intervals would be empty.
        dtype = jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype
        lam = lambda level: Level(*(jnp.asarray(field).astype(dtype) for field in level)).lam  # noqa: E731
        end = jnp.minimum(lam(nxt), _EDGE)
        begin = jnp.minimum(lam(cur), end)
        w_end, w_begin = at(end, x), at(begin, x)
        shrink = append_axes(begin - end, x.ndim)
        variance = -jnp.expm1(2 * shrink)
        safe = jnp.where(variance > 0, variance, 1)
        change = w_end - jnp.exp(shrink) * w_begin
        return jnp.where(variance > 0, change / jnp.sqrt(safe), 0).astype(x.dtype)

    return increment


def _path_at(key: Array, shape: tuple[int, ...], lam: Array) -> Array:
    """`_path` at levels that broadcast against `shape`: of a path for each of them, the places that are at it."""
    if lam.size == 1:
        return _path(key, shape, lam.reshape(()))
    paths = jax.vmap(lambda lam: _path(key, shape, lam))(lam.reshape(-1))
    which = jnp.broadcast_to(jnp.arange(lam.size).reshape(lam.shape), shape)
    return jnp.take_along_axis(paths, which[None], axis=0)[0]


def _path(key: Array, shape: tuple[int, ...], lam: Array) -> Array:
    """W(exp(2 lam)) / exp(lam), a standard normal at each lam: by bisection of [-_EDGE, _EDGE]."""
    edge = jnp.asarray(_EDGE, lam.dtype)
    at = jnp.clip(lam, -edge, edge)
    left = _normal(fold_in(key, 0), shape, lam.dtype)
    shrink = jnp.exp(-2 * edge)
    right = shrink * left + jnp.sqrt(1 - jnp.square(shrink)) * _normal(fold_in(key, 1), shape, lam.dtype)

    def halve(_, interval):
        node, low, high, left, right = interval
        mid = 0.5 * (low + high)
        near, far, std = _bridge(low, mid, high)
        middle = near * left + far * right + std * _normal(fold_in(key, node), shape, lam.dtype)
        up = at > mid
        choose = lambda a, b: jnp.where(up, a, b)  # noqa: E731
        return (
            2 * node + up.astype(node.dtype),
            choose(mid, low),
            choose(high, mid),
            choose(middle, left),
            choose(right, middle),
        )

    node = jnp.asarray(2, jnp.int32)
    _, low, high, left, right = jax.lax.fori_loop(0, _DEPTH, halve, (node, -edge, edge, left, right))
    near, far, _ = _bridge(low, at, high)
    # Before the tree begins (pure noise has lam = -inf) the path is constant, which keeps its distribution at each lam.
    return near * left + far * right


def _bridge(low: Array, mid: Array, high: Array) -> tuple[Array, Array, Array]:
    """Weights of the two ends in the mean of W(exp(2 mid)) / exp(mid), and its standard deviation."""
    total = -jnp.expm1(2 * (low - high))
    before, after = -jnp.expm1(2 * (low - mid)) / total, -jnp.expm1(2 * (mid - high)) / total
    # With tau = exp(2 lam): weights (tau_h - tau_m) and (tau_m - tau_l) over tau_h - tau_l, each in its own unit.
    return jnp.exp(low - mid) * after, jnp.exp(mid - high) * before, jnp.sqrt(before * after * total)


def _normal(key: Array, shape: tuple[int, ...], dtype) -> Array:
    check_key(key, shape[:1])
    if key.ndim == 0:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)
