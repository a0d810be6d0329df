"""The state of a training run: a pytree that is born sharded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdiff.sharding import shard_params


class TrainState(NamedTuple):
    """Everything that a step changes; the random key and the data position follow from `step`."""

    step: jax.Array  # int32 scalar: updates made so far
    params: Any  # float32
    ema: Any  # like params: their moving average
    opt: Any  # the optimizer's state


def create(
    init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> TrainState:
    """Make the first state directly where it will live, so that no device ever holds all of a sharded model.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        key: random key of the parameters.
        mesh: from `make_mesh`.

    Returns:
        The state at step 0; the average starts as a copy of the parameters.

    Raises:
        ValueError: a large array cannot be split over the mesh (see `shard_params`).
    """
    build = _builder(init, optimizer)
    shardings = shard_params(jax.eval_shape(build, key), mesh)
    return jax.jit(build, out_shardings=shardings)(key)


def adopt(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Make the first state of parameters that exist already, read from a file, say.

    Args:
        params: tree of arrays; they are donated.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.

    Returns:
        The state at step 0, like `create`'s.

    Raises:
        ValueError: a large array cannot be split over the mesh (see `shard_params`).
    """
    params = jax.device_put(params, shard_params(params, mesh), may_alias=True)
    build = lambda params: _first(params, optimizer)  # noqa: E731
    return jax.jit(build, donate_argnums=0, out_shardings=shard_params(jax.eval_shape(build, params), mesh))(params)


def abstract(init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Describe the state that `create` would make (shapes, dtypes, shardings) without making it.

    Args:
        init: key -> parameters.
        optimizer: an optax optimizer.
        mesh: from `make_mesh`.

    Returns:
        A `TrainState` of `jax.ShapeDtypeStruct`: what a checkpoint is restored onto.
    """
    shapes = jax.eval_shape(_builder(init, optimizer), jax.random.key(0))
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, shard_params(shapes, mesh))


def _builder(init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    return lambda key: _first(init(key), optimizer)


def _first(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    # A copy: the average and the parameters are donated separately, so they may not share a buffer.
    average = jax.tree.map(lambda x: jnp.copy(x).astype(jnp.float32), params)
    return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))
