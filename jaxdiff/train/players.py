"""Several players: parts of the parameters with separate losses and optimizers, which train in turns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.train.state import TrainState
from jaxdiff.train.step import Given
from jaxdiff.types import Loss, Metrics, Params

# int32 scalar, the number of updates so far -> for each player whether the next update is its turn.
Turn = Callable[[jax.Array], Mapping[str, Any]]


class Player(NamedTuple):
    """The loss and the optimizer of one part of the parameters.

    Attributes:
        loss: ((params of all players, result of `given`), key, batch) -> (mean over the batch, dict of scalars); the
            gradient is taken with respect to this player's parameters only.
        optimizer: an optax optimizer of this player's parameters.
    """

    loss: Loss
    optimizer: optax.GradientTransformation


class Game(NamedTuple):
    """Arguments of `init_state` and `make_step` for several players, see `players`."""

    loss: Loss
    optimizer: optax.GradientTransformation
    given: Given


class Moves(NamedTuple):
    """The state of a game's optimizer."""

    made: jax.Array  # int32 scalar: number of updates so far
    inner: dict[str, Any]  # the state of each player's optimizer


def players(players: Mapping[str, Player], turn: Turn, given: Given | None = None) -> Game:
    """Train several parts of the parameters in turns, e.g. a generator and a critic, or a student and its score model.

    The parameters are a dict with a tree for each player. The loss of an idle player is not computed, and its
    parameters and its optimizer's state do not change. A turn whose update was skipped, since it was not finite, is
    repeated with the next batch. Under `vmap`, all losses are computed and those of idle players are discarded.

    Player number i uses the key `fold_in(key, i)`, where key is that of the update. The metrics are named
    "PLAYER/METRIC", including "PLAYER/loss", and are NaN (integers: 0) for idle players.

    Args:
        players: by name. Each loss trains only the parameters of its player.
        turn: number of updates so far -> for each name, whether the next update is the player's turn; several players
            may train at once.
        given: (state, frozen) -> further input of the losses, as for `make_step`; None: `frozen`.

    Returns:
        (loss, optimizer, given), the arguments of `make_step`. The loss is the sum over the players. The averages count
        all updates; a decay of 1 while a player is idle averages over its own turns only.

    Raises:
        ValueError: the names of `turn`, or (in the optimizer's init) those of the parameters, are not the players'.
    """
    _check_names("turn", jax.eval_shape(turn, jax.ShapeDtypeStruct((), jnp.int32)), players)
    return Game(_loss(players), _optimizer(players, turn), _given(turn, given))


def _given(turn: Turn, given: Given | None) -> Given:
    def both(state: TrainState, frozen: Any) -> tuple[Mapping[str, Any], Any]:
        context = frozen if given is None else given(state, frozen)
        return turn(state.step - state.skipped), context

    return both


def _loss(players: Mapping[str, Player]) -> Loss:
    def loss(inputs: Any, key: jax.Array, batch: Any) -> tuple[jax.Array, Metrics]:
        params, (turns, context) = inputs
        constants = jax.lax.stop_gradient(params)
        total: Any = 0.0
        metrics: Metrics = {}
        for i, (name, player) in enumerate(players.items()):

            def play(i: int = i, name: str = name, player: Player = player) -> Any:
                player_key = jax.random.fold_in(key, i)
                loss_of = lambda part: player.loss(({**constants, name: part}, context), player_key, batch)  # noqa: E731
                return jax.value_and_grad(loss_of, has_aux=True)(constants[name])

            # The gradient is computed inside the branch, so that no activations leave it.
            like = jax.eval_shape(play)
            (value, aux), grads = jax.lax.cond(turns[name], play, lambda like=like: _idle(like))
            total = total + _with_gradient(params[name], jnp.where(turns[name], value, 0), grads)
            metrics |= {f"{name}/{metric}": x for metric, x in {**aux, "loss": value}.items()}
        return total, metrics

    return loss


def _idle(like: Any) -> Any:
    """Return the loss and the metrics of an idle player, NaN, and its gradient, zero."""
    out, grads = like
    absent = lambda x: jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)  # noqa: E731
    return jax.tree.map(absent, out), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), grads)


@jax.custom_vjp
def _with_gradient(params: Params, value: jax.Array, grads: Any) -> jax.Array:
    """Return a value with a known gradient with respect to params."""
    return value


def _known(params: Params, value: jax.Array, grads: Any) -> tuple[jax.Array, Any]:
    return value, grads


def _scaled(grads: Any, scale: jax.Array) -> tuple[Any, None, None]:
    return jax.tree.map(lambda x: (scale * x).astype(x.dtype), grads), None, None


_with_gradient.defvjp(_known, _scaled)


def _optimizer(players: Mapping[str, Player], turn: Turn) -> optax.GradientTransformation:
    def init(params: Params) -> Moves:
        _check_names("params", params, players)
        inner = {name: player.optimizer.init(params[name]) for name, player in players.items()}
        return Moves(jnp.zeros((), jnp.int32), inner)

    def update(grads: Any, state: Moves, params: Params) -> tuple[Any, Moves]:
        turns, updates, inner = turn(state.made), {}, {}
        for name, player in players.items():
            moved, kept = player.optimizer.update(grads[name], state.inner[name], params[name])
            # Adam moves without a gradient, too. A conditional would need memory for both the old and the new moments.
            select = lambda new, old, on=turns[name]: jnp.where(on, new, old)  # noqa: E731
            updates[name] = jax.tree.map(lambda x, select=select: select(x, jnp.zeros_like(x)), moved)
            inner[name] = jax.tree.map(select, kept, state.inner[name])
        return updates, Moves(state.made + 1, inner)

    return optax.GradientTransformation(init, update)


def _check_names(what: str, tree: Any, players: Mapping[str, Player]) -> None:
    names = sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__
    if names != sorted(players):
        raise ValueError(f"{what} must have a value for each of the players {sorted(players)}, got {names}")
