"""What a method of few-step training is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jax import Array

from jaxdiff import train
from jaxdiff.experiment import Sampling
from jaxdiff.few_steps.teacher import Teacher
from jaxdiff.solvers import Solver
from jaxdiff.types import Loss

__all__ = ["Method", "method_of"]


@dataclass(frozen=True)
class Method:
    """What a method trains, and how.

    Attributes:
        network: the student, a Flax module.
        loss: its loss, of ((params, distill.Context), key, batch); or the losses of several players by name.
        sampling: how the student is drawn; in one step, unless its solver is for more.
        ema: decays of the averages; samples are made of the first.
        stage_updates: number of updates after which the optimizer begins anew; 0: never.
        others: (key, first parameters of the student) -> those of the other players, by name.
        turn: number of updates so far -> whose turn is next, see `train.players`.
        rates: factors of the players' learning rates; 1 where there is none.
        drawn: the player that makes the samples.
        new: whether the student begins with new parameters, not with the teacher's.
    """

    network: Any
    loss: Loss | dict[str, Loss] = field(repr=False)
    sampling: Sampling
    ema: Any
    stage_updates: int = 0
    others: Callable[[Array, Any], dict[str, Any]] | None = field(default=None, repr=False)
    turn: Callable[[Array], Any] | None = field(default=None, repr=False)
    rates: Mapping[str, float] = field(default_factory=dict)
    drawn: str = "student"
    new: bool = False


def method_of(
    teacher: Teacher, network: Any, loss: Any, solver: Solver | Callable[[int], Solver], **more: Any
) -> Method:
    """Make a method, with what most share: the teacher's grid, no guidance, and an average.

    Args:
        teacher: the trained run.
        network: the student.
        loss: as in `Method`.
        solver: how the student is drawn.
        **more: other attributes of `Method`.
    """
    sampling = replace(teacher.experiment.sampling, solver=solver, guidance=1.0, steps=1)
    return Method(network, loss, sampling, **{"ema": train.ema.warmup(0.99), **more})
