"""`jaxdiff train EXPERIMENT`: knobs from the function's signature, a folder for the run, the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from jaxdiff.script import Script
from jaxdiff.sharding import parse_mesh
from jaxdiff.train.lock import hold

# Seconds: longer than a step of the largest networks, shorter than a night.
PATIENCE = 900.0


def command(args: list[str]) -> None:
    """`jaxdiff train EXPERIMENT [--knobs]`."""
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
            "seconds without a finished step until it ends with status 75; by default 900 in many processes.",
        ),
    }
    knobs, options = parse_knobs(function, rest, own, prog=f"jaxdiff train {path}")
    workdir, mesh = options["workdir"], parse_mesh(options["mesh"])
    try_folder(workdir, "--workdir")
    script.check_kept(workdir)
    patience = options["patience"]
    if patience is None and jax.process_count() > 1:
        patience = PATIENCE
    training.check_knobs(workdir, knobs, may_change=MAY_CHANGE)
    shorter = planned_before(workdir, knobs)
    before = None if shorter is None else build(function, shorter, mesh).optimizer
    experiment = build(function, knobs, mesh)
    script.check_kept(workdir)  # also what was imported while it was built
    with hold(workdir):
        _train(experiment, script, knobs, workdir=workdir, mesh=mesh, patience=patience, before=before)


def _train(
    experiment: Experiment,
    script: Script,
    knobs: dict[str, Any],
    *,
    workdir: Path,
    mesh: Mesh,
    patience: float | None,
    before: Any,
) -> None:
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
            return
        training.fit(
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
            save_every=experiment.preview_every,
            preview=preview,
            preview_every=experiment.preview_every,
            snapshot=snapshots.save if snapshots is not None else None,
            snapshot_every=experiment.snapshot_every or 1,
            log=training.metrics_file(workdir / "metrics.jsonl", start),
            patience=patience,
        )


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
            if first:
                experiment.draw(experiment, params, path)
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
