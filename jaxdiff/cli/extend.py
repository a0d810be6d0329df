"""A run goes on with another number of steps, where that leaves what it has done as it would have been."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import train
from jaxdiff.experiment import Experiment

# Knobs that may differ from those that a run began with.
MAY_CHANGE = ("steps",)


def planned_before(workdir: Path, knobs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return these knobs with the number of steps that the run in a folder was to have until now.

    Args:
        workdir: the run's folder.
        knobs: the experiment's.

    Returns:
        None where there is no run, or it keeps its number of steps.
    """
    if not train.has_knobs(workdir):
        return None
    old = {name: value for name, value in train.read_knobs(workdir).items() if name in MAY_CHANGE}
    return None if old.items() <= knobs.items() else {**knobs, **old}


def check_goes_on(workdir: Path, experiment: Experiment, before: Any, abstract: Any) -> None:
    """Make sure that the next update is the one that the run would have made with its old number of steps.

    Args:
        workdir: the run's folder.
        experiment: with the new number.
        before: its optimizer with the old one.
        abstract: of the state, as `train.abstract` makes it.

    Raises:
        ValueError: the run has done more steps already, or its learning rate depends on their number.
    """
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        if checkpointer.latest() is None:
            return
        state = checkpointer.restore(abstract)
    done = int(state.step)
    if experiment.steps < done:
        raise ValueError(f"steps must be at least {done}, which this run has done; got {experiment.steps}")
    if not _change((before, experiment.optimizer), state.params, state.opt) < 1e-5:
        raise ValueError(
            f"the learning rate of this run depends on its number of steps: with --steps {experiment.steps} it would "
            f"not go on after step {done} as it was; choose another --workdir"
        )


def _change(optimizers: tuple[Any, Any], params: Any, opt: Any) -> jax.Array:
    """The largest difference between two optimizers' next updates, in shares of the second one's largest update."""

    def largest(tree: Any) -> jax.Array:
        return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(tree)]).max()

    @jax.jit
    def change(params: Any, opt: Any) -> jax.Array:
        grads = jax.tree.map(jnp.ones_like, params)
        one, other = (optimizer.update(grads, opt, params)[0] for optimizer in optimizers)
        return largest(jax.tree.map(jnp.subtract, one, other)) / largest(other)

    with jax.numpy_dtype_promotion("standard"):  # as in a step: optax counts on it
        return change(params, opt)
