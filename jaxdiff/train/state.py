"""The state of a training run: a pytree, sharded from its creation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdiff.sharding import shard_params
from jaxdiff.train import ema as averages
from jaxdiff.train.layouts import PLATFORM, format_of
from jaxdiff.types import Params

# Default of functions for which only the number of decays matters: one average.
DEFAULT_DECAY = averages.constant(0.0)

Averaged = Callable[[Any], Any] | None  # parameters -> the tree to average; None: all parameters


class TrainState(NamedTuple):
    """The state of training; the random key and the position in the data follow from `step`."""

    step: jax.Array  # int32 scalar: number of batches so far
    params: Params  # float32
    ema: Any  # moving average of params or of a part of them; a tuple of trees for several averages
    opt: Any  # the optimizer's state
    skipped: jax.Array  # int32 scalar: number of skipped updates; step - skipped is the number of updates


def init_state(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    *,
    ema: averages.Decays = DEFAULT_DECAY,
    ema_memory: str = "device",
    averaged: Averaged = None,
) -> TrainState:
    """Create the initial state with its final sharding, so that no device ever holds all of a sharded model.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        key: random key of the parameters.
        mesh: from `make_mesh`.
        ema: as for `make_step`; a tuple of decays has one average for each.
        ema_memory: "device", or "pinned_host": the average is kept in the host's memory between updates.
        averaged: parameters -> the tree to average, e.g. the student of several players; None: all parameters.

    Returns:
        the state at step 0; the average is a copy of the parameters.

    Raises:
        ValueError: a large array cannot be split over the mesh (see `shard_params`), the devices have no such memory,
            or `averaged` returns a tree without names at its top level.
    """
    build = _builder(init, optimizer, ema, averaged)
    return jax.jit(build, out_shardings=_places(jax.eval_shape(build, key), mesh, ema_memory))(key)


def state_from_params(
    params: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: averages.Decays = DEFAULT_DECAY,
    ema_memory: str = "device",
    averaged: Averaged = None,
) -> TrainState:
    """Create the initial state of given parameters, e.g. from a file.

    Args:
        params: tree of arrays; they are donated.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.
        ema: as for `init_state`.
        ema_memory: as for `init_state`.
        averaged: as for `init_state`.

    Returns:
        the state at step 0, like `init_state`'s.

    Raises:
        ValueError: as for `init_state`.
    """
    params = jax.device_put(params, shard_params(params, mesh), may_alias=True)
    build = lambda params: new_state(params, optimizer, ema=ema, averaged=averaged)  # noqa: E731
    places = _places(jax.eval_shape(build, params), mesh, ema_memory)
    return jax.jit(build, donate_argnums=0, out_shardings=places)(params)


def state_shapes(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: averages.Decays = DEFAULT_DECAY,
    ema_memory: str = "device",
    averaged: Averaged = None,
) -> TrainState:
    """Return the shapes, dtypes and shardings of the state of `init_state`, without computing it.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.
        ema: as for `init_state`.
        ema_memory: as for `init_state`.
        averaged: as for `init_state`.

    Returns:
        a `TrainState` of `jax.ShapeDtypeStruct`, e.g. to restore a checkpoint.
    """
    shapes = jax.eval_shape(_builder(init, optimizer, ema, averaged), jax.random.key(0))
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, _places(shapes, mesh, ema_memory))


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    ema: averages.Decays = DEFAULT_DECAY,
    averaged: Averaged = None,
) -> TrainState:
    """Create the initial state of given parameters: pure, for `make_update` inside `jit`, `vmap` and `scan`.

    Args:
        params: tree of arrays.
        optimizer: an optax optimizer; its numbers may be traced, e.g. a learning rate under `vmap`.
        ema: as for `init_state`.
        averaged: as for `init_state`.

    Returns:
        the state at step 0, on the devices of the parameters; the average is a copy of them.

    Raises:
        ValueError: `averaged` returns a tree without names at its top level.
    """
    part = params if averaged is None else averaged(params)
    if averaged is not None:
        _check_names(part)
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  # two: they are donated separately
    return TrainState(zero(), params, averages.init(part, ema), optimizer.init(params), zero())


def ema_params(state: TrainState) -> Any:
    """Return the averaged parameters, the first of several averages, on the devices."""
    first = state.ema[0] if isinstance(state.ema, tuple) else state.ema
    return jax.device_put(first, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), first))


def _places(shapes: TrainState, mesh: Mesh, ema_memory: str) -> TrainState:
    places = shard_params(shapes, mesh)
    device = mesh.devices.flat[0]
    # Described GPUs list no memories.
    kinds = [memory.kind for memory in device.addressable_memories()] or ["device", "pinned_host"]
    if ema_memory not in kinds:
        raise ValueError(f"ema_memory must be a memory of {device.device_kind}: {', '.join(kinds)}; got {ema_memory!r}")
    if device.platform == PLATFORM:
        places = jax.tree.map_with_path(format_of, places, shapes)
    if ema_memory == "device":
        return places
    return places._replace(ema=jax.tree.map(lambda x: x.with_memory_kind(ema_memory), shard_params(shapes.ema, mesh)))


def _builder(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    ema: averages.Decays,
    averaged: Averaged,
) -> Callable[..., Any]:
    return lambda key: new_state(init(key), optimizer, ema=ema, averaged=averaged)


def _check_names(tree: Any) -> None:
    # "ema/0/NAME" in a checkpoint belongs to the first of several averages.
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    tops = sorted({path.split("/")[0] for path in paths})
    if all(not top or top.isdecimal() for top in tops):
        raise ValueError(f"averaged must return a tree with names at its top, such as {{'student': ...}}; got {tops}")
