"""`jaxdiff train EXPERIMENT`: knobs from the function's signature, a folder for the run, the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import train as training
from jaxdiff.cli.cluster import gather
from jaxdiff.cli.extend import MAY_CHANGE, check_goes_on, planned_before
from jaxdiff.cli.images import save_png
from jaxdiff.cli.knobs import parse_knobs
from jaxdiff.cli.places import try_folder
from jaxdiff.cli.sample import columns, draw
from jaxdiff.experiment import Experiment, build, load, sampler, seed_key
from jaxdiff.faults import AGAIN
from jaxdiff.options import Count
from jaxdiff.script import Script
from jaxdiff.sharding import parse_mesh
from jaxdiff.signals import Signals
from jaxdiff.train.lock import hold
from jaxdiff.train.log import EVENTS, METRICS

# Seconds: longer than a step of the largest networks, shorter than a night. A process that hangs alone costs no others.
PATIENCE, PATIENCE_ALONE = 900.0, 3600.0


def command(args: list[str], signals: Signals | None = None) -> None:
    """`jaxdiff train EXPERIMENT [--knobs]`.

    Args:
        args: from the command line.
        signals: of the program; None handles none before training begins.
    """
    goodput = training.Goodput(None if signals is None else signals.since)
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: jaxdiff train EXPERIMENT [knobs]\n\nEXPERIMENT is a name that `jaxdiff list` tells, such as "
            "fashion, or a Python file with a function\n`experiment`. Its knobs: jaxdiff train EXPERIMENT --help"
        )
        return
    path, *rest = args
    script = Script(path)
    function = load(script)
    own = {
        "workdir": (
            Path,
            Path("runs") / script.path.stem,
            "folder of checkpoints, samples and metrics; the same command goes on where it stopped.",
        ),
        "mesh": (str, "", "devices as data=8,fsdp=4,tensor=2,sequence=2; data takes those that are left."),
        "patience": (
            float | None,
            None,
            "seconds without a finished step until it ends with status 75; by default 3600, in many processes 900.",
        ),
        "save_every": (Count | None, None, "steps between two checkpoints; by default the experiment's."),
    }
    knobs, options = parse_knobs(function, rest, own, prog=f"jaxdiff train {path}")
    workdir, mesh = options["workdir"], parse_mesh(options["mesh"])
    try_folder(workdir, "--workdir")
    script.check_kept(workdir)
    patience = options["patience"]
    if patience is None:
        patience = PATIENCE if jax.process_count() > 1 else PATIENCE_ALONE
    training.check_knobs(workdir, knobs, may_change=MAY_CHANGE)
    shorter = planned_before(workdir, knobs)
    before = None if shorter is None else build(function, shorter, mesh).optimizer
    experiment = build(function, knobs, mesh)
    if options["save_every"] is not None:
        experiment = replace(experiment, save_every=options["save_every"])
    script.check_kept(workdir)  # also what was imported while it was built
    where = _Where(workdir, mesh, patience, goodput, signals)
    with hold(workdir):
        finished = _train(experiment, script, knobs, where=where, before=before)
    if not finished:
        raise SystemExit(AGAIN)


class _Where(NamedTuple):
    """Where and how a run trains: what changes none of its numbers."""

    workdir: Path
    mesh: Mesh
    patience: float
    goodput: training.Goodput
    signals: Signals | None


def _train(experiment: Experiment, script: Script, knobs: dict[str, Any], *, where: _Where, before: Any) -> bool:
    """Train to the end, or until a signal comes; return whether it is the end."""
    workdir, mesh = where.workdir, where.mesh
    init_key, step_key = jax.random.split(seed_key(experiment.seed))
    # A network that doesn't fit its data shows here, before the folder belongs to this run.
    averages: dict[str, Any] = {"ema": experiment.ema, "ema_memory": experiment.ema_memory}
    abstract = training.abstract(experiment.init, experiment.optimizer, mesh, **averages)
    rows = training.host_rows(mesh, experiment.batch)
    experiment.batches(0, rows)  # so does data that is not there
    if before is not None:
        check_goes_on(workdir, experiment, before, abstract)
    training.write_knobs(workdir, knobs, may_change=MAY_CHANGE)
    if jax.process_index() == 0:
        script.keep(workdir)
    preview = _previewer(experiment, workdir, mesh)
    with contextlib.ExitStack() as stack:
        checkpointer = stack.enter_context(training.Checkpointer(workdir))
        snapshots = stack.enter_context(training.Snapshots(workdir)) if experiment.snapshot_every else None
        with training.Watchdog(10 * where.patience) as watchdog:  # storage may hang, and leave the others waiting
            watchdog.doing = "making or reading the state"
            if checkpointer.latest() is not None:
                state = checkpointer.restore(abstract)
            elif experiment.start is not None:
                state = training.adopt(experiment.start(), experiment.optimizer, mesh, **averages)
            else:
                state = training.create(experiment.init, experiment.optimizer, init_key, mesh, **averages)
        start = int(state.step)
        _say(_summary(experiment, state, mesh))
        if start == experiment.steps:
            preview(state)
            return True
        if jax.process_index() == 0:
            where.goodput.write = training.LineFile(workdir / EVENTS)
        state = training.fit(
            training.make_step(
                experiment.loss,
                experiment.optimizer,
                key=step_key,
                ema=experiment.ema,
                accumulate=experiment.accumulate,
                per_dispatch=experiment.per_dispatch,
                frozen=experiment.frozen,
            ),
            state,
            experiment.batches(start, rows),
            steps=experiment.steps,
            mesh=mesh,
            checkpointer=checkpointer,
            save_every=experiment.save_every or experiment.preview_every,
            preview=preview,
            preview_every=experiment.preview_every,
            snapshot=snapshots.save if snapshots is not None else None,
            snapshot_every=experiment.snapshot_every or 1,
            log=training.metrics_file(workdir / METRICS, start),
            patience=where.patience,
            signals=where.signals,
            goodput=where.goodput,
        )
        signalled = where.signals is not None and where.signals.received is not None and jax.process_count() == 1
        return int(state.step) == experiment.steps and not signalled


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text)


def _summary(experiment: Experiment, state: training.TrainState, mesh: Mesh) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    where = f"step {int(state.step)} of {experiment.steps}"
    return f"{count:,} parameters on {mesh.devices.flat[0].device_kind} ({devices}), {where}"


def _previewer(experiment: Experiment, workdir: Path, mesh: Mesh) -> Callable[[training.TrainState], None]:
    """Draw samples of the averaged parameters on the way, and a larger grid at the end."""
    generate = sampler(experiment, guided=experiment.guidance != 1, mesh=mesh)
    first = jax.process_index() == 0
    size = experiment.preview  # one program serves the previews and the last, larger grid

    def preview(state: training.TrainState) -> None:
        last = int(state.step) == experiment.steps
        path = workdir / ("samples.png" if last else f"samples-{int(state.step):06d}.png")
        params = experiment.whole(training.average(state))
        if experiment.draw is not None:
            # It may do as it likes with its parameters: one process draws, and the others wait for it.
            params = gather(params)
            try:
                if first:
                    experiment.draw(experiment, params, path)
            finally:
                multihost_utils.sync_global_devices("preview")
        else:
            x, _ = draw(
                experiment,
                lambda keys, label: generate(params, keys, label, experiment.guidance),
                2 * size if last else size,
                batch=size,
                compiled=generate._cache_size() > 0,  # type: ignore[attr-defined]
            )
            if first:
                save_png(path, x, columns(experiment))
        _say(str(path))

    return preview
