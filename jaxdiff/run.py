"""A run from beginning to end, by functions that work in a notebook and from the command line alike.

experiment = load("fashion")(steps=900)
state = run.train(experiment, "runs/fashion")
samples = run.draw(experiment, run.parameters(experiment, "runs/fashion"), 16)
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import train as training
from jaxdiff import trees
from jaxdiff.drawing import draw, evaluate, parameters, preview_of
from jaxdiff.experiment import Experiment
from jaxdiff.extend import check_goes_on
from jaxdiff.recipe import Recipe, check_vocabulary, keep_vocabulary, load, load_run
from jaxdiff.seeds import seed_key
from jaxdiff.sharding import num_batch_shards
from jaxdiff.signals import Signals
from jaxdiff.train.lock import hold
from jaxdiff.train.log import EVENTS, METRICS
from jaxdiff.types import Params

__all__ = ["check_shapes", "draw", "evaluate", "load", "load_run", "parameters", "train"]

# Seconds: longer than a step of the largest networks, shorter than a night. A process that hangs alone costs no others.
HANG_TIMEOUT, HANG_TIMEOUT_ALONE = 900.0, 3600.0


def train(
    experiment: Experiment,
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    recipe: Recipe | None = None,
    init_from: str | Path | None = None,
    hang_timeout: float | None = None,
    signals: Signals | None = None,
    goodput: training.Goodput | None = None,
) -> training.TrainState:
    """Train an experiment, or go on where it stopped.

    Writes checkpoints, metrics.jsonl, events.jsonl and previews into the run's folder. With a recipe the folder also
    holds what the experiment was made of, from which `load_run` and the command line make it again.

    Args:
        experiment: what to train.
        workdir: the run's folder; the same call goes on with the run that is there.
        mesh: where to train, see `sharding.make_mesh`; None: on all devices, with a copy of the state on each.
        recipe: the file and knobs that made the experiment; other knobs than the run began with are refused.
        init_from: another run, with whose averaged parameters this one begins.
        hang_timeout: seconds without a finished step until the process ends with status 75; None: 3600, in many
            processes 900.
        signals: of a command, which has entered them; None handles signals while this runs.
        goodput: records where the time goes.

    Returns:
        the last state; `state.step` is less than the experiment's steps where a signal has ended the training.

    Raises:
        ValueError: the folder holds another run; the data, the network or the mesh do not fit; as `train.fit` does.
    """
    workdir, mesh = Path(workdir), training.make_mesh() if mesh is None else mesh
    if hang_timeout is None:
        hang_timeout = HANG_TIMEOUT if jax.process_count() > 1 else HANG_TIMEOUT_ALONE
    if not hang_timeout > 0:
        raise ValueError(f"hang_timeout must be above 0 seconds, got {hang_timeout:g}")
    goodput = training.Goodput() if goodput is None else goodput
    before = None
    if recipe is not None:
        recipe.check(workdir)
        earlier = recipe.before(workdir)
        before = None if earlier is None else earlier.build(mesh).training.optimizer
    with hold(workdir):
        return _Training(experiment, workdir, mesh, hang_timeout, signals, goodput).run(recipe, before, init_from)


class _Training:
    """A call of `train`: where and how it trains changes none of its numbers."""

    def __init__(
        self, experiment: Experiment, workdir: Path, mesh: Mesh, hang_timeout: float, signals: Any, goodput: Any
    ) -> None:
        self.experiment, self.workdir, self.mesh = experiment, workdir, mesh
        self.hang_timeout, self.signals, self.goodput = hang_timeout, signals, goodput
        part = experiment.training
        self.averages: dict[str, Any] = {"ema": part.ema, "ema_memory": part.ema_memory, "averaged": part.averaged}

    def run(self, recipe: Recipe | None, before: Any, init_from: str | Path | None) -> training.TrainState:
        experiment, part, workdir = self.experiment, self.experiment.training, self.workdir
        init_key, step_key = jax.random.split(seed_key(experiment.seed))
        # A network that doesn't fit its data shows here, before the folder belongs to this run.
        shapes = training.state_shapes(experiment.model.init, part.optimizer, self.mesh, **self.averages)
        rows = training.process_indices(self.mesh, part.batch)
        training.check_microbatches(part.batch, part.grad_accum_steps, num_batch_shards(self.mesh))
        part.batches(0, rows)  # so does data that is not there
        check_vocabulary(workdir, experiment.condition)
        if before is not None:
            check_goes_on(workdir, experiment, before, shapes)
        average = shapes.ema[0] if isinstance(shapes.ema, tuple) else shapes.ema
        preview = preview_of(experiment, workdir, self.mesh, average, say=_say) if part.preview_every else None
        begin = None if init_from is None else self.parameters_of(Path(init_from), shapes)
        if recipe is not None:
            recipe.keep(workdir)
        keep_vocabulary(workdir, experiment.condition)
        with contextlib.ExitStack() as stack:
            checkpointer = stack.enter_context(training.Checkpointer(workdir, logs=[workdir / METRICS]))
            snapshots = stack.enter_context(training.Snapshots(workdir)) if part.snapshot_every else None
            with training.Watchdog(
                10 * self.hang_timeout
            ) as watchdog:  # storage may hang, and leave the others waiting
                watchdog.doing = "making or reading the state"
                state = self.first_state(checkpointer, shapes, init_key, begin)
            start = int(state.step)
            _say(_summary(experiment, state, self.mesh))
            if start == part.steps:
                if preview is not None:
                    preview(state)
                return state
            if jax.process_index() == 0:
                self.goodput.write = training.LineFile(workdir / EVENTS)
            return training.fit(
                self.make_step(step_key),
                state,
                part.batches(start, rows),
                steps=part.steps,
                mesh=self.mesh,
                checkpointer=checkpointer,
                save_every=part.save_every
                or part.preview_every
                or -(-1000 // part.steps_per_call) * part.steps_per_call,
                preview=preview,
                preview_every=part.preview_every or 1,
                snapshot=snapshots.save if snapshots is not None else None,
                snapshot_every=part.snapshot_every or 1,
                log=training.jsonl_logger(workdir / METRICS, start),
                hang_timeout=self.hang_timeout,
                signals=self.signals,
                goodput=self.goodput,
            )

    def parameters_of(self, other: Path, shapes: training.TrainState) -> Any:
        """The averaged parameters of another run, unless this one has a checkpoint already."""
        with training.Checkpointer(self.workdir, read_only=True) as checkpointer:
            if checkpointer.latest() is not None:
                return None
        params = training.load_params(other, "ema", mesh=self.mesh)
        check_shapes(params, shapes.params, other)
        return params

    def first_state(
        self, checkpointer: training.Checkpointer, shapes: Any, key: Any, begin: Any
    ) -> training.TrainState:
        """The checkpoint's state; else that of given parameters; else a new one."""
        model, optimizer = self.experiment.model, self.experiment.training.optimizer
        if checkpointer.latest() is not None:
            return checkpointer.restore(shapes)
        if begin is not None:
            return training.state_from_params(begin, optimizer, self.mesh, **self.averages)
        if model.pretrained is not None:
            return training.state_from_params(model.pretrained(), optimizer, self.mesh, **self.averages)
        return training.init_state(model.init, optimizer, key, self.mesh, **self.averages)

    def make_step(self, key: Any) -> Any:
        part = self.experiment.training
        return training.make_step(
            part.loss,
            part.optimizer,
            key=key,
            ema=part.ema,
            grad_accum_steps=part.grad_accum_steps,
            steps_per_call=part.steps_per_call,
            frozen=self.experiment.frozen_of_loss(self.mesh),
            given=part.given,
            averaged=part.averaged,
        )


def check_shapes(params: Params, expected: Any, where: Path) -> None:
    """Raise ValueError unless the parameters of another run have the names and shapes of this one's."""
    got, want = ({name: x.shape for name, x in trees.flatten(tree).items()} for tree in (params, expected))
    for path in sorted(got.keys() | want.keys()):
        if got.get(path) != want.get(path):
            found, needed = (f"has the shape {a[path]}" if path in a else "is missing" for a in (got, want))
            raise ValueError(f"{where} cannot begin this run: {path} {found} there and {needed} here")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text)


def _summary(experiment: Experiment, state: training.TrainState, mesh: Mesh) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    where = f"step {int(state.step)} of {experiment.training.steps}"
    return f"{count:,} parameters on {mesh.devices.flat[0].device_kind} ({devices}), {where}"
