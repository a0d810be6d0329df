"""Networks that compute some layers once in a while, and keep what these gave (DeepCache, TeaCache)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.quantize import kept_in_loops

__all__ = ["Cached", "as_cached"]


class Cached(NamedTuple):
    """A network as two functions.

    Attributes:
        keep: (params, x, noise, cond) -> (the network's output, cache).
        reuse: (params, x, noise, cond, cache) -> output, with the layers as they were.
    """

    keep: Callable[..., tuple[Any, Any]]
    reuse: Callable[..., Any]


def as_cached(module: nn.Module, names: Sequence[str], *, change: bool = False) -> Cached:
    """Turn a network into a function that keeps the outputs of layers, and one that takes them as they were.

    What only these layers need is not computed again, for a compiled program holds nothing that is not used. Of a U-Net
    with L levels, "up_blocks.{L-2}.upsamplers.0" leaves the blocks of the highest resolution alone (Ma et al. 2023,
    DeepCache, arXiv:2312.00858), "up_blocks.{L-3}.upsamplers.0" those of the two highest. Of a `DiT`, "blocks" with
    `change` adds what all blocks changed the last time (Liu et al. 2024, TeaCache, arXiv:2411.19108).

    Args:
        module: a network called as module(x, noise, cond, train=...).
        names: the layers, by the keys of their parameters joined by slashes, not inside of a loop over layers or of
            what the backward pass recomputes; or methods of the network.
        change: keep the difference from a layer's input, instead of its output.

    Returns:
        the two functions. An example's cache depends on the example alone.

    Raises:
        ValueError: `names` is empty; when called, there is no such layer.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    if not wanted:
        raise ValueError("a cache needs the name of at least one layer")

    def apply(params: Any, x: Any, noise: Any, cond: Any) -> Any:
        params, x = kept_in_loops(params, x)
        return module.apply({"params": params}, x, noise, cond, train=False)

    def keep(params: Any, x: Any, noise: Any, cond: Any = None) -> tuple[Any, Any]:
        cache: dict[str, Any] = {}

        def record(name: str, given: Any, compute: Callable[[], Any]) -> Any:
            out = compute()
            cache[name] = jax.tree.map(jnp.subtract, _carry(out), given) if change else out
            return out

        with _at_layers(wanted, record):
            out = apply(params, x, noise, cond)
        if missing := sorted(set(wanted) - cache.keys()):
            raise ValueError(f"the network has no layer {', '.join(missing)}")
        return out, cache

    def reuse(params: Any, x: Any, noise: Any, cond: Any, cache: Any) -> Any:
        def replace(name: str, given: Any, compute: Callable[[], Any]) -> Any:
            if not change:
                return cache[name]
            out = compute()  # only its structure is used
            moved = jax.tree.map(jnp.add, given, cache[name])
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        with _at_layers(wanted, replace):
            return apply(params, x, noise, cond)

    return Cached(keep, reuse)


def _carry(out: Any) -> Any:
    """What a layer makes of its first argument: of a loop over layers the carry."""
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def _at_layers(names: Sequence[str], handle: Callable[[str, Any, Callable[[], Any]], Any]) -> Iterator[None]:
    """Call handle(name, first argument, compute) for the outermost call of each layer."""
    within: list[str] = []

    def intercept(call: Callable[..., Any], args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        method = context.method_name
        name = "/".join([*context.module.path, *([] if method == "__call__" else [method])])
        if name not in names or name in within:
            return call(*args, **options)
        within.append(name)
        try:
            return handle(name, args[0], lambda: call(*args, **options))
        finally:
            within.remove(name)

    with nn.intercept_methods(intercept):
        yield
