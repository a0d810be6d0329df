"""The experiment of a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxdiff import conditions, distill, networks, train
from jaxdiff.experiment import Experiment
from jaxdiff.few_steps.method import Method
from jaxdiff.few_steps.teacher import Teacher
from jaxdiff.options import Run
from jaxdiff.seeds import seed_key
from jaxdiff.types import Cond, Loss, Params

__all__ = ["experiment_of"]

Wrap = Callable[[Loss], Loss]


class _Trained(NamedTuple):
    """What is trained: the student alone, or the student and other players.

    Attributes:
        begin: (key, first parameters of the student) -> those of all.
        student: parameters of all -> those of the student.
        averaged: parameters of all -> the tree that is averaged; None: all.
        loss, optimizer, given: as for `train.make_step`.
    """

    begin: Callable[[Any, Any], Any]
    student: Callable[[Any], Any]
    averaged: Callable[[Any], Any] | None
    loss: Any
    optimizer: Any
    given: Any


def experiment_of(teacher: Teacher, method: Method, run: Run, *, optimizer: Callable[[int, float], Any]) -> Experiment:
    """Make the experiment of a student, which begins with the teacher's weights.

    Args:
        teacher: the trained run.
        method: what is trained.
        run: the common knobs.
        optimizer: (number of updates that it makes, of a stage or of a player; factor of the learning rate) -> an optax
            optimizer.
    """
    given, network, shared = teacher.experiment, method.network, teacher.frozen
    apply = teacher.apply(network)
    # Guidance is distilled or left out: the student never sees the null condition.
    condition = replace(given.condition, null=None, encode=_encode(teacher))
    if getattr(network, "guidance_dim", None) is not None:
        condition = conditions.guidance_scale(condition, teacher.guidance, teacher.max_guidance)
    make = _players if isinstance(method.loss, Mapping) else _alone
    trained = make(method, teacher.of_batches, run.steps, optimizer)

    def init(key: Any) -> Any:
        return trained.begin(key, teacher.init(network, key))

    def pretrained() -> Any:
        key = seed_key(run.seed)
        first = teacher.init(network, key)
        return trained.begin(key, first if method.new else networks.start_from(first, teacher.parameters()))

    def of_student(params: Params, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
        return apply(trained.student(params if shared is None else params[0]), x, noise, cond, **options)

    model = replace(
        given.model, init=init, apply=of_student, pretrained=pretrained, export={}, network=network, network_key=None,
        frozen=shared, learned_variance=False,
    )  # fmt: skip
    training = replace(
        given.training,
        loss=trained.loss,
        optimizer=trained.optimizer,
        ema=method.ema,
        steps=run.steps,
        frozen=lambda mesh: {"teacher": teacher.parameters(mesh), "model": shared},
        given=trained.given,
        averaged=trained.averaged,
        snapshot_every=0,
        save_every=None,
    )
    return Experiment(model, training, method.sampling, condition, given.medium, run.seed)


def _encode(teacher: Teacher) -> Callable[[Params, Cond], Cond]:
    """The encoding of a student's condition, by the arrays that it shares with its teacher."""
    return lambda params, cond: teacher.encode(None if teacher.frozen is None else params[1], cond)


def _alone(method: Method, of_batches: Wrap, steps: int, optimizer: Callable[[int, float], Any]) -> _Trained:
    made = optimizer(method.stage_updates or steps, 1.0)
    if method.stage_updates:
        made = train.restarting(made, method.stage_updates)
    given = distill.context(ema=True)
    loss = of_batches(cast(Loss, method.loss))
    return _Trained(lambda key, params: params, lambda params: params, None, loss, made, given)


def _players(method: Method, of_batches: Wrap, steps: int, optimizer: Callable[[int, float], Any]) -> _Trained:
    losses, turn, others = cast(Any, (method.loss, method.turn, method.others))  # a method of players has them all
    turns = jax.vmap(turn)(np.arange(steps))
    made = {name: optimizer(int(np.sum(turns[name])), method.rates.get(name, 1.0)) for name in losses}
    each = {name: train.Player(of_batches(loss), made[name]) for name, loss in losses.items()}
    game = train.players(each, turn, given=distill.context())

    def begin(key: Any, params: Params) -> Any:
        return {method.drawn: params, **others(jax.random.fold_in(key, 1), params)}

    def averaged(params: Params) -> Any:
        return {method.drawn: params[method.drawn]}

    return _Trained(begin, lambda params: params[method.drawn], averaged, game.loss, game.optimizer, game.given)
