"""What each command does."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_type_hints

import jax
import numpy as np
import tyro
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import data, solvers
from jaxdiff import train as training
from jaxdiff.cli import evaluate as judging
from jaxdiff.cli.images import save_npz, save_png, save_pngs
from jaxdiff.experiment import SOURCE, Experiment, example_keys, load, load_run, sampler

Generate = Callable[[Array, np.ndarray | None], Array]  # (keys [B], label [B] or None) -> x [B, ...]

PREVIEW = 50  # pictures drawn at a time: one program serves the previews and the last, larger grid


def train(args: list[str]) -> None:
    """`jaxdiff train EXPERIMENT [--knobs]`."""
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: jaxdiff train EXPERIMENT [knobs]\n\nEXPERIMENT is a Python file with a function `experiment`, "
            "e.g. experiments/fashion.py.\nIts knobs: jaxdiff train EXPERIMENT --help"
        )
        return
    path, *rest = args
    build = load(path)
    knobs, workdir, mesh = _parse_knobs(build, rest, Path(path))
    _train(build(**knobs), Path(path), knobs, workdir=workdir, mesh=training.make_mesh(**mesh))


def _train(experiment: Experiment, path: Path, knobs: dict[str, Any], *, workdir: Path, mesh: Mesh) -> None:
    source = workdir / SOURCE
    if source.exists() and source.read_text() != path.read_text():
        raise ValueError(f"{path} differs from {source}, which made this run: choose another --workdir")
    init_key, step_key = jax.random.split(jax.random.key(experiment.seed))
    # A network that doesn't fit its data shows here, before the folder belongs to this run.
    abstract = training.abstract(experiment.init, experiment.optimizer, mesh)
    training.write_knobs(workdir, knobs)
    shutil.copyfile(path, source)
    preview = _previewer(experiment, workdir)
    with training.Checkpointer(workdir) as checkpointer:
        if checkpointer.latest() is None:
            state = training.create(experiment.init, experiment.optimizer, init_key, mesh)
        else:
            state = checkpointer.restore(abstract)
        start = int(state.step)
        print(_summary(experiment, state, mesh))
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
            ),
            state,
            experiment.batches(start),
            steps=experiment.steps,
            mesh=mesh,
            checkpointer=checkpointer,
            save_every=experiment.preview_every,
            preview=preview,
            preview_every=experiment.preview_every,
            log=training.metrics_file(workdir / "metrics.jsonl", start),
        )


def _summary(experiment: Experiment, state: training.TrainState, mesh: Mesh) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    where = f"step {int(state.step)} of {experiment.steps}"
    return f"{count:,} parameters on {mesh.devices.flat[0].device_kind} ({devices}), {where}"


def _parse_knobs(
    build: Callable[..., Experiment], args: list[str], path: Path
) -> tuple[dict[str, Any], Path, dict[str, int]]:
    """Read an experiment's knobs from the command line, by its function's signature; and where it runs."""
    own = [
        inspect.Parameter("workdir", inspect.Parameter.KEYWORD_ONLY, default=Path("runs") / path.stem, annotation=Path),
        inspect.Parameter("mesh", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str),
    ]
    hints = get_type_hints(build)
    knobs = [p.replace(annotation=hints[name]) for name, p in inspect.signature(build).parameters.items()]

    def command(**values: Any) -> dict[str, Any]:
        return values

    command.__signature__ = inspect.Signature(knobs + own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in knobs + own}
    command.__doc__ = f"""{inspect.getdoc(build)}
    workdir: folder of checkpoints, samples and metrics; the same command goes on where it stopped.
    mesh: devices as data=N,fsdp=N; data takes those that are left.
"""
    values = tyro.cli(command, args=args, prog=f"jaxdiff train {path}")
    workdir, mesh = values.pop("workdir"), values.pop("mesh")
    return values, workdir, _mesh_sizes(mesh)


def _mesh_sizes(text: str) -> dict[str, int]:
    sizes = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp") or not size.isdigit():
            raise ValueError(f"--mesh is like data=4,fsdp=2, got {text!r}")
        sizes[name] = int(size)
    return sizes


def sample(args: list[str]) -> None:
    """`jaxdiff sample RUN`."""

    def command(
        run: tyro.conf.Positional[Path],
        num: int = 50,
        label: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        batch: int = 100,
        params: Literal["ema", "params"] = "ema",
        out: Path | None = None,
    ) -> None:
        """Make pictures with a trained run.

        Args:
            run: the run's folder.
            num: number of pictures.
            label: class of all pictures; by default they take turns.
            guidance: classifier-free guidance scale, 1 is off; by default the experiment's.
            solver: one of jaxdiff.solvers; by default the experiment's.
            steps: number of steps; by default the experiment's.
            seed: picture i depends on the seed and i alone.
            batch: pictures at a time.
            params: averaged or last parameters.
            out: FILE.png is a grid, FILE.npz arrays, a folder single PNGs; by default RUN/samples-SEED.png.
        """
        experiment = load_run(run)
        out = run / f"samples-{seed}.png" if out is None else out
        if out.suffix not in ("", ".png", ".npz"):
            raise ValueError(f"--out must end in .png or .npz, or be a folder, got {out}")
        if experiment.draw is not None and out.suffix == ".png":
            experiment.draw(experiment, training.load_params(run, params), out)
        else:
            generate = _generator(experiment, run, params, guidance=guidance, solver=solver, steps=steps)
            x, labels = draw_batches(experiment, generate, num, label=label, seed=seed, batch=batch)
            _write(out, x, labels, columns=experiment.num_classes or 10)
        print(out)

    tyro.cli(command, args=args, prog="jaxdiff sample")


def evaluate(args: list[str]) -> None:
    """`jaxdiff eval RUN`."""

    def command(
        run: tyro.conf.Positional[Path],
        num: int = 1000,
        guidance: float | None = None,
        solver: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        batch: int = 100,
        params: Literal["ema", "params"] = "ema",
    ) -> None:
        """Measure a run's samples against real test images; trains a judge on real data first.

        Prints how many samples a classifier recognizes beside real images, and the samples' kernel distance,
        precision and recall beside those of real images; writes RUN/eval.json.

        Args:
            run: the run's folder.
            num: number of samples, their classes in turn.
            guidance: classifier-free guidance scale, 1 is off; by default the experiment's.
            solver: one of jaxdiff.solvers; by default the experiment's.
            steps: number of steps; by default the experiment's.
            seed: of the samples.
            batch: samples at a time.
            params: averaged or last parameters.
        """
        experiment = load_run(run)
        if not experiment.num_classes or experiment.source is None:
            raise ValueError("eval needs an experiment with classes and a data source: its judge recognizes classes")
        generate = _generator(experiment, run, params, guidance=guidance, solver=solver, steps=steps)
        train_set, test_set = (_real(experiment, split) for split in ("train", "test"))
        judge = _judge(run, train_set, experiment.num_classes)
        x, labels = draw_batches(experiment, generate, num, seed=seed, batch=batch)
        report = judging.evaluate(
            x,
            labels,
            test_set["x"],
            test_set["label"],
            train_x=train_set["x"],
            train_label=train_set["label"],
            classify=judge,
        )
        names = data.open_source(experiment.source).class_names
        print(judging.format_report(report, names))
        print(judging.write_report(run / "eval.json", report))

    tyro.cli(command, args=args, prog="jaxdiff eval")


def _real(experiment: Experiment, split: str) -> dict[str, np.ndarray]:
    side, channels = experiment.shape[0], experiment.shape[-1]
    source = data.open_source(experiment.source, split, size=side, channels=channels)  # type: ignore[arg-type]
    arrays = data.load_arrays(source)
    return {"x": data.to_float(arrays["x"]), "label": arrays["label"]}


def _judge(run: Path, real: dict[str, np.ndarray], num_classes: int) -> judging.FittedClassifier:
    """The run's judge, trained the first time that it is needed."""
    path = run / "judge.npz"
    if not path.exists():
        judge = judging.fit_classifier(real["x"], real["label"], num_classes=num_classes, progress=True)
        judging.save_classifier(path, judge)
    return judging.load_classifier(path)


def _generator(
    experiment: Experiment,
    run: Path,
    which: Literal["ema", "params"],
    *,
    guidance: float | None,
    solver: str | None,
    steps: int | None,
) -> Generate:
    """A run's sampler with its parameters and settings closed in."""
    scale = experiment.guidance if guidance is None else guidance
    chosen = None if solver is None else named_solver(solver)
    generate = sampler(experiment, solver=chosen, steps=steps, guided=scale != 1)
    params = training.load_params(run, which)
    return lambda keys, label: generate(params, keys, label, scale)


def draw_batches(
    experiment: Experiment,
    generate: Generate,
    num: int,
    *,
    label: int | None = None,
    seed: int = 0,
    batch: int = 100,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw samples in batches of one compiled size.

    Args:
        experiment: tells the classes.
        generate: (keys [B], label [B] or None) -> x [B, ...].
        num: how many.
        label: their class; None takes the classes in turn.
        seed: example i depends on the seed and i alone.
        batch: examples at a time.
    Returns:
        (x [num, ...], labels [num] or None).
    Raises:
        ValueError: a number out of range.
    """
    if num < 1 or batch < 1:
        raise ValueError(f"num and batch must be at least 1, got {num} and {batch}")
    classes = experiment.num_classes
    if label is not None and not 0 <= label < classes:
        allowed = f"in 0..{classes - 1}" if classes else "left out, since the run has no classes"
        raise ValueError(f"label must be {allowed}; got {label}")
    batch = min(batch, num)
    padded = -(-num // batch) * batch
    keys = example_keys(seed, padded)
    labels = None
    if classes:
        labels = np.arange(padded, dtype=np.int32) % classes if label is None else np.full(padded, label, np.int32)
    parts = [
        np.asarray(generate(keys[i : i + batch], None if labels is None else labels[i : i + batch]))
        for i in tqdm(range(0, padded, batch), desc="sampling", unit="batch", disable=padded == batch)
    ]
    return np.concatenate(parts)[:num], None if labels is None else labels[:num]


def named_solver(name: str) -> solvers.Solver:
    """Make a solver with its default settings.

    Args:
        name: of a public function of `jaxdiff.solvers`.
    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    known = sorted(n for n in solvers.__all__ if n != "Solver")
    if name not in known:
        raise ValueError(f"unknown solver {name!r}; there are: {', '.join(known)}")
    return getattr(solvers, name)()


def _previewer(experiment: Experiment, workdir: Path) -> Callable[[training.TrainState], None]:
    """Draw samples of the averaged parameters on the way, and a larger grid at the end."""
    guided = experiment.guidance != 1
    generate = sampler(experiment, guided=guided) if experiment.draw is None else None

    def preview(state: training.TrainState) -> None:
        last = int(state.step) == experiment.steps
        path = workdir / ("samples.png" if last else f"samples-{int(state.step):06d}.png")
        if generate is None:
            experiment.draw(experiment, state.ema, path)
        else:
            x, _ = draw_batches(
                experiment,
                lambda keys, label: generate(state.ema, keys, label, experiment.guidance),
                2 * PREVIEW if last else PREVIEW,
                batch=PREVIEW,
            )
            save_png(path, x, experiment.num_classes or 10)
        tqdm.write(str(path))

    return preview


def _write(out: Path, x: np.ndarray, labels: np.ndarray | None, columns: int) -> None:
    if out.suffix == ".npz":
        save_npz(out, x=x, **({} if labels is None else {"label": labels}))
    elif out.suffix == ".png":
        save_png(out, x, columns)
    else:
        save_pngs(out, x)
