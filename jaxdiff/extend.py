"""A run goes on with another number of steps, where that leaves what it has done as it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import train
from jaxdiff.experiment import Experiment
from jaxdiff.types import Params


def check_goes_on(workdir: Path, experiment: Experiment, before: Any, abstract: Any) -> None:
    """Make sure that the next update is the one that the run would have made with its old number of steps.

    Args:
        workdir: the run's folder.
        experiment: with the new number.
        before: its optimizer with the old one.
        abstract: of the state, as `train.state_shapes` makes it.

    Raises:
        ValueError: the run has done more steps already, or its learning rate depends on their number.
    """
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        if checkpointer.latest() is None:
            return
        state = checkpointer.restore(abstract)
    done = int(state.step)
    steps = experiment.training.steps
    if steps < done:
        raise ValueError(f"steps must be at least {done}, which this run has done; got {steps}")
    if not change(before, experiment.training.optimizer, state.params, state.opt) < 1e-5:
        raise ValueError(
            f"the learning rate of this run depends on its number of steps: with --steps {steps} it would "
            f"not go on after step {done} as it was; choose another --workdir"
        )


def change(old: Any, new: Any, params: Params, opt: Any) -> jax.Array:
    """Compute the largest difference of two optimizers' next updates, relative to the new one's largest update.

    Args:
        old: an optax optimizer.
        new: another optimizer, with the same state.
        params: parameters.
        opt: the optimizers' state.
    """

    def largest(tree: Any) -> jax.Array:
        return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(tree)]).max()

    @jax.jit
    def apart(params: Params, opt: Any) -> jax.Array:
        # Short ones: `train.skip_spikes` would refuse others.
        length = 1e3 * sum(x.size for x in jax.tree.leaves(params)) ** 0.5
        grads = jax.tree.map(lambda x: jnp.full_like(x, 1 / length), params)
        a, b = (optimizer.update(grads, opt, params)[0] for optimizer in (old, new))
        return largest(jax.tree.map(jnp.subtract, a, b)) / largest(b)

    with jax.numpy_dtype_promotion("standard"):  # as in a step: optax counts on it
        return apart(params, opt)
