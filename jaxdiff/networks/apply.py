"""Linen modules as pure functions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.dtypes import canonicalize_dtype

from jaxdiff.messages import listed
from jaxdiff.networks.embed import Sinusoidal
from jaxdiff.quantize import kept_in_loops

Shape = tuple[int | None, ...]


def as_apply(module: nn.Module) -> Callable[..., Any]:
    """Turn a network into a pure function, which denoisers and losses take.

    Args:
        module: a network called as module(x, noise, cond, train=...).

    Returns:
        apply(params, x, noise, cond=None, *, key=None) -> the network's output. With a key, the network applies
        dropout. Its attribute `expects_hundreds` says whether the network embeds noise inputs by sinusoids made for
        hundreds, which are almost constant over [0, 1]; see `parameterize.with_network_time`. It raises ValueError
        where the parameters are those of data of another shape.
    """

    def apply(params, x, noise, cond=None, *, key=None):
        rngs = None if key is None else {"dropout": key}
        params, x = kept_in_loops(params, x)
        with _fitting(x):
            return module.apply({"params": params}, x, noise, cond, train=key is not None, rngs=rngs)

    time = getattr(module, "time", None)
    by_sinusoids = isinstance(time, Sinusoidal) and time.max_period > 1
    apply.expects_hundreds = getattr(module, "expects_hundreds", by_sinusoids)  # type: ignore[attr-defined]
    return apply


def as_features(module: nn.Module, names: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Turn a network into a pure function that returns the outputs of inner layers, e.g. for a critic.

    Args:
        module: a network called as module(x, noise, cond, train=...).
        names: the layers, by the keys of their parameters joined by slashes, e.g. "blocks.0.linear_1". The star of a
            loop over blocks stands for an index, e.g. "transformer_blocks.3" or "transformer_blocks.3/ff".

    Returns:
        features(params, x, noise, cond=None, *, key=None) -> a dict of the layers' outputs by name; of a block in a
        loop, what it hands to the next. A compiled program contains only what these need; of a loop, all blocks, whose
        outputs it keeps. With a key, the network applies dropout.

    Raises:
        ValueError: `names` is empty; when called, there is no such layer, or it is called more than once.
    """
    wanted = {names} if isinstance(names, str) else set(names)
    if not wanted:
        raise ValueError("features need the name of at least one layer")

    def captured(params, x, noise, cond, key, keep):
        rngs = None if key is None else {"dropout": key}
        options = {"capture_intermediates": keep, "mutable": ["intermediates"]}
        with _fitting(x):
            _, state = module.apply({"params": params}, x, noise, cond, train=key is not None, rngs=rngs, **options)
        return _by_layer(state.get("intermediates", {}))

    def features(params, x, noise, cond=None, *, key=None):
        found = captured(params, x, noise, cond, key, _only(wanted))
        if wanted - found.keys():
            known = jax.eval_shape(lambda p, x, n, c: captured(p, x, n, c, None, True), params, x, noise, cond)
            missing = ", ".join(sorted(wanted - found.keys()))
            raise ValueError(f"the network has no layer {missing}; its layers are: {listed(sorted(known))}")
        for name, outputs in found.items():
            if len(outputs) > 1:
                raise ValueError(f"the layer {name} is called {len(outputs)} times in one evaluation, not once")
        return {name: found[name][0] for name in wanted}

    return features


@contextmanager
def _fitting(x: Any) -> Iterator[None]:
    """Raise ValueError for parameters whose shapes are not those that a network has for x."""
    try:
        yield
    except ScopeParamShapeError as error:
        shape = jax.tree.map(jnp.shape, x)
        raise ValueError(f"the network's parameters are not for x of shape {shape}: {error}") from error


def _only(names: set[str]) -> Callable[[nn.Module, str], bool]:
    def keep(layer: nn.Module, method: str) -> bool:
        pattern = re.escape("/".join(layer.path)).replace(r"\.\*", r"\.\d+")
        return method == "__call__" and any(re.fullmatch(pattern, name) for name in names)

    return keep


def _by_layer(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, tuple[Any, ...]]:
    """Return the tuple of outputs of each call, by the layer's path."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, entry in tree.items():
        if name == "__call__" and path:  # the network itself is not one of its layers
            found["/".join(path)] = entry
        elif isinstance(entry, Mapping):
            for key, layer in _blocks(name, entry).items():
                found |= _by_layer(layer, (*path, key))
    return found


def _blocks(name: str, entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a layer's entry by its name; of a loop over blocks, see `scan_layers`, that of each block."""
    if not name.endswith(".*"):
        return {name: entry}
    if "__call__" in entry:
        entry = {**entry, "__call__": tuple(carry for carry, _ in entry["__call__"])}
    count = jax.tree.leaves(entry)[0].shape[0]
    return {f"{name[:-1]}{i}": jax.tree.map(lambda a, i=i: a[i], entry) for i in range(count)}


def init(module: nn.Module, key: Array, x: Any, cond: Mapping[str, Any] | None = None) -> dict:
    """Draw a network's parameters.

    Args:
        module: a network called as module(x, noise, cond, train=...).
        key: a random key.
        x: [B, *spatial, C], or anything with its shape and dtype, or a tree of these for a `FeatureCritic`; B may be 1.
        cond: the conditions that the network is configured for, as arrays or shapes; B may be 1.

    Returns:
        a nested dict of float32 arrays.

    Raises:
        ValueError: `key` is not a typed key.
    """
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise ValueError(f"expected a key of jax.random.key(seed), got {key!r:.80}")

    def draw(key):
        # The network is only traced on zeros; compilation removes all but the parameters.
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, canonicalize_dtype(a.dtype)), dict(cond or {}))
        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), x)
        noise = jnp.zeros(jax.tree.leaves(empty)[0].shape[:1], jnp.float32)
        return module.init(key, empty, noise, zeros)["params"]

    return jax.jit(draw)(key)


def cond_shapes(
    x: Array,
    cond: Mapping[str, Any] | None,
    *,
    num_classes: int | None = None,
    context_dim: int | None = None,
    mask: bool = False,
    pooled_dim: int | None = None,
    guidance: bool = False,
    next_noise: bool = False,
    concat_channels: int | None = None,
    concat_noise: bool = False,
    augment_dim: int | None = None,
) -> dict[str, Shape]:
    """Return the shapes that a network's conditions must have.

    Args:
        x: [B, *spatial, C], the network's input.
        cond: the conditions. The shapes of "mask" and "augment", which are optional, are returned if these are given.
        num_classes: "label" [B]; None: off.
        context_dim: D of "tokens" [B, L, D]; None: off.
        mask: whether "mask" [B, L] of the tokens is allowed.
        pooled_dim: D of "vector" [B, D]; None: off.
        guidance: whether "guidance" [B] is required.
        next_noise: whether "next_noise" [B] is required.
        concat_channels: C' of "concat" [B, *spatial, C']; None: off.
        concat_noise: whether "concat_noise" [B] is required.
        augment_dim: D of the optional "augment" [B, D]; None: off.

    Returns:
        shapes by name, for `check_cond`; None stands for any length.
    """
    batch, cond = x.shape[0], cond or {}
    tokens = cond.get("tokens")
    length = tokens.shape[1] if tokens is not None and tokens.ndim == 3 else None
    shapes: dict[str, Shape | None] = {
        "label": None if num_classes is None else (batch,),
        "tokens": None if context_dim is None else (batch, None, context_dim),
        "mask": (batch, length) if mask and context_dim is not None and "mask" in cond else None,
        "vector": None if pooled_dim is None else (batch, pooled_dim),
        "guidance": (batch,) if guidance else None,
        "next_noise": (batch,) if next_noise else None,
        "concat": None if concat_channels is None else (*x.shape[:-1], concat_channels),
        "concat_noise": (batch,) if concat_noise else None,
        "augment": None if augment_dim is None or "augment" not in cond else (batch, augment_dim),
    }
    return {name: shape for name, shape in shapes.items() if shape is not None}


def check_cond(
    x: Array, noise: Array, cond: Mapping[str, Any] | None, shapes: Mapping[str, Shape]
) -> Mapping[str, Any]:
    """Check the conditions against those that a network is configured for.

    Args:
        x: [B, ...], the network's input.
        noise: the network's noise input; must be [B].
        cond: arrays by name; None: none.
        shapes: the required shape of each, see `cond_shapes`; None stands for any length.

    Returns:
        cond, or an empty dict for None.

    Raises:
        ValueError: a condition is missing, unknown or has another shape.
    """
    cond = {} if cond is None else cond
    for name in cond.keys() - shapes.keys():
        known = ", ".join(sorted(shapes)) or "none"
        raise ValueError(f"unknown condition {name!r}; this network is configured for: {known}")
    for name in shapes.keys() - cond.keys():
        raise ValueError(f"the network is configured for the condition {name!r}, which is missing")
    got, allowed = {"noise": noise, **cond}, {"noise": x.shape[:1], **shapes}
    for name, shape in allowed.items():
        got_shape = got[name].shape
        if len(got_shape) != len(shape) or any(b not in (None, a) for a, b in zip(got_shape, shape, strict=True)):
            raise ValueError(f"{name} must have shape {shape}, got {got_shape}")
    return cond


def check_spatial(x: Array) -> None:
    """Check that x is [B, *spatial, C] with one to three spatial axes.

    Raises:
        ValueError: x does not have one to three spatial axes.
    """
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x must be [B, *spatial, C], one to three spatial axes, got shape {x.shape}")


def split_output(y: Array, learned_variance: bool) -> Array | tuple[Array, Array]:
    """Split a network's output into the pair (F, frac) if it learns the variance.

    frac is v of Nichol and Dhariwal 2021, eq. 15, mapped from [-1, 1] to [0, 1] but not clipped.

    Args:
        y: [..., C], or [..., 2 C] where the variance is learned.
        learned_variance: whether the network learns the variance.

    Returns:
        y, or (F, frac), each [..., C].
    """
    if not learned_variance:
        return y
    f, v = jnp.split(y, 2, axis=-1)
    return f, (v + 1) / 2
