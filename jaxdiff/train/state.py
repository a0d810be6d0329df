"""The state of a training run: a pytree that is born sharded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdiff.sharding import shard_params
from jaxdiff.train import ema as averages

# The decays that a state is made for, where only their number matters: one average.
ONE = averages.constant(0.0)


class TrainState(NamedTuple):
    """Everything that a step changes; the random key and the data position follow from `step`."""

    step: jax.Array  # int32 scalar: batches consumed so far
    params: Any  # float32
    ema: Any  # like params: their moving average; a tuple of such trees where several are tracked
    opt: Any  # the optimizer's state
    skipped: jax.Array  # int32 scalar: batches whose update was not made; step - skipped updates were


def create(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    *,
    ema: averages.Decays = ONE,
    ema_memory: str = "device",
) -> TrainState:
    """Make the first state directly where it will live, so that no device ever holds all of a sharded model.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        key: random key of the parameters.
        mesh: from `make_mesh`.
        ema: what `make_step` gets; for each of a tuple of decays there is an average.
        ema_memory: "device", or "pinned_host": the average waits in its host's memory while the device computes.

    Returns:
        The state at step 0; the average starts as a copy of the parameters.

    Raises:
        ValueError: a large array cannot be split over the mesh (see `shard_params`), or its devices have no such
            memory.
    """
    build = _builder(init, optimizer, ema)
    return jax.jit(build, out_shardings=_places(jax.eval_shape(build, key), mesh, ema_memory))(key)


def adopt(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: averages.Decays = ONE,
    ema_memory: str = "device",
) -> TrainState:
    """Make the first state of parameters that exist already, read from a file, say.

    Args:
        params: tree of arrays; they are donated.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.
        ema: as for `create`.
        ema_memory: as for `create`.

    Returns:
        The state at step 0, like `create`'s.

    Raises:
        ValueError: as by `create`.
    """
    params = jax.device_put(params, shard_params(params, mesh), may_alias=True)
    build = lambda params: _first(params, optimizer, ema)  # noqa: E731
    places = _places(jax.eval_shape(build, params), mesh, ema_memory)
    return jax.jit(build, donate_argnums=0, out_shardings=places)(params)


def abstract(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: averages.Decays = ONE,
    ema_memory: str = "device",
) -> TrainState:
    """Describe the state that `create` would make (shapes, dtypes, shardings) without making it.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.
        ema: as for `create`.
        ema_memory: as for `create`.

    Returns:
        A `TrainState` of `jax.ShapeDtypeStruct`: what a checkpoint is restored onto.
    """
    shapes = jax.eval_shape(_builder(init, optimizer, ema), jax.random.key(0))
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, _places(shapes, mesh, ema_memory))


def average(state: TrainState) -> Any:
    """Return the averaged parameters for sampling, the first of several, on the devices."""
    first = state.ema[0] if isinstance(state.ema, tuple) else state.ema
    return jax.device_put(first, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), first))


def _places(shapes: TrainState, mesh: Mesh, ema_memory: str) -> TrainState:
    places = shard_params(shapes, mesh)
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if ema_memory not in kinds:
        raise ValueError(f"ema_memory must be a memory of {device.device_kind}: {', '.join(kinds)}; got {ema_memory!r}")
    return places._replace(ema=jax.tree.map(lambda place: place.with_memory_kind(ema_memory), places.ema))


def _builder(
    init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, ema: averages.Decays
) -> Callable[..., Any]:
    return lambda key: _first(init(key), optimizer, ema)


def _first(params: Any, optimizer: optax.GradientTransformation, ema: averages.Decays) -> TrainState:
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  # two: they are donated separately
    return TrainState(zero(), params, averages.start(params, ema), optimizer.init(params), zero())
