"""`jaxdiff sample RUN`: pictures, arrays or single files of a trained run, or of a prompt."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import solvers, train
from jaxdiff.cli.cluster import gather
from jaxdiff.cli.images import save_npz, save_png, save_pngs
from jaxdiff.cli.places import try_file, try_folder
from jaxdiff.cli.progress import Progress
from jaxdiff.cli.prompt import draw_prompt, is_pipeline
from jaxdiff.experiment import Experiment, example_keys, load_run, sampler
from jaxdiff.options import Count, Natural, Seed
from jaxdiff.script import load_function
from jaxdiff.sharding import parse_mesh

Generate = Callable[[Array, Array | None], Array]  # (keys [B], label [B] or None) -> x [B, ...]


def command(
    run: tyro.conf.Positional[Path],
    num: Count | None = None,
    label: Natural | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    steps: Count | None = None,
    seed: Seed = 0,
    batch: Count | None = None,
    params: Literal["ema", "params"] | None = None,
    ema: float | None = None,
    out: Path | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    size: tuple[Count, Count] | None = None,
    base: Path | None = None,
    variant: str | None = None,
    mesh: str = "",
    trust: bool = False,
) -> None:
    """Make pictures with a trained run, or with a prompt for Stable Diffusion or Flux.

    Args:
        run: the run's folder, or a text-to-image directory or file.
        num: number of pictures; by default 50 of a run, 1 of a prompt.
        label: class of all pictures; by default they take turns.
        guidance: guidance scale, 1 is off; by default the experiment's, or the network's usual one.
        solver: one of jaxdiff.solvers, or FILE.py:NAME; of a prompt a scheduler such as EulerDiscreteScheduler.
        steps: number of steps; by default the run's or the usual one.
        seed: picture i depends on the seed and i alone.
        batch: pictures at a time; by default as in the run's previews, 4 of a prompt.
        params: averaged or last parameters; by default the average.
        ema: length of another average, 0.075 say, made of the run's snapshots.
        out: FILE.png is a grid, FILE.npz arrays, a folder single PNGs; by default RUN/samples-SEED.png, or for a
            prompt the folder samples-SEED.
        prompt: what the pictures show.
        negative: what they keep away from.
        size: height and width of a prompt's pictures; by default the network's own.
        base: directory with what a file lacks.
        variant: weights' variant, such as fp16.
        mesh: devices as data=4,fsdp=2,sequence=2; data takes those that are left.
        trust: execute the run's program, whoever wrote it.
    """
    of_prompt, where = is_pipeline(run), parse_mesh(mesh)
    out = (Path(f"samples-{seed}") if of_prompt else run / f"samples-{seed}.png") if out is None else out
    if out.suffix not in ("", ".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, or be a folder, got {out}")
    (try_file if out.suffix else try_folder)(out, "--out")
    if of_prompt:
        if prompt is None or any(value is not None for value in (label, params, ema)):
            raise ValueError(
                f"{run} is a text-to-image directory: it needs --prompt, and has no --label, --params or --ema"
            )
        x = draw_prompt(
            run, prompt, num=1 if num is None else num, negative=negative, guidance=guidance, steps=steps, size=size,
            base=base, variant=variant, scheduler=solver, seed=seed, batch=4 if batch is None else batch, mesh=where,
        )  # fmt: skip
        _write(out, x, None, 4)
    else:
        if any(value is not None for value in (prompt, negative, size, base, variant)):
            raise ValueError(
                "--prompt, --negative, --size, --base and --variant are of text-to-image directories, and "
                f"{run} has no model_index.json"
            )
        experiment, params = load_run(run, mesh=where, trust=trust), params or "ema"
        if experiment.draw is not None and out.suffix == ".png":
            if any(value is not None for value in (num, label, guidance, batch)):
                raise ValueError(
                    f"{run} draws a picture of its own: --num, --label, --guidance and --batch are for --out FILE.npz"
                )
            chosen = experiment.solver if solver is None else named_solver(solver)
            steps = experiment.sample_steps if steps is None else steps
            asked = replace(experiment, seed=seed, solver=chosen, sample_steps=steps)
            experiment.draw(asked, experiment.whole(parameters(experiment, run, params, ema, mesh=where)), out)
        else:
            generate = generator(
                experiment, run, params, ema=ema, guidance=guidance, solver=solver, steps=steps, mesh=where
            )
            num, batch = 50 if num is None else num, experiment.preview if batch is None else batch
            x, labels = draw(experiment, generate, num, label=label, seed=seed, batch=batch)
            _write(out, x, labels, columns(experiment))
    print(out)


def generator(
    experiment: Experiment,
    run: Path,
    which: Literal["ema", "params"],
    *,
    guidance: float | None,
    solver: str | None,
    steps: int | None,
    mesh: Mesh,
    ema: float | None = None,
) -> Generate:
    """A run's sampler with its parameters and settings closed in."""
    scale = experiment.guidance if guidance is None else guidance
    chosen = None if solver is None else named_solver(solver)
    generate = sampler(experiment, solver=chosen, steps=steps, guided=scale != 1, mesh=mesh)
    params = experiment.whole(parameters(experiment, run, which, ema, mesh=mesh))
    return lambda keys, label: generate(params, keys, label, scale)


def parameters(
    experiment: Experiment, run: Path, which: Literal["ema", "params"], ema: float | None, *, mesh: Mesh | None = None
) -> Any:
    """A run's parameters: the last, their average, or one of another length, made of the run's snapshots."""
    if ema is None:
        return train.load_params(run, which, mesh=mesh)
    if which == "params":
        raise ValueError("--ema is the length of an average: it goes without --params params")
    with train.Snapshots(run, read_only=True) as snapshots:
        params, error = snapshots.reconstruct(experiment.ema, ema, mesh=mesh)
    tqdm.write(f"the average of length {ema:g}, its weights to within {error:.2%}", file=sys.stderr)
    return params


def columns(experiment: Experiment) -> int:
    """Pictures in a row of a grid: a class in each column, where there are few."""
    return min(experiment.num_classes or 10, 10)


def draw(
    experiment: Experiment,
    generate: Generate,
    num: int,
    *,
    label: int | None = None,
    seed: int = 0,
    batch: int = 100,
    compiled: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw samples in batches of one compiled size.

    Args:
        experiment: tells the classes.
        generate: (keys [B], label [B] or None) -> x [B, ...].
        num: how many.
        label: their class; None takes the classes in turn.
        seed: example i depends on the seed and i alone.
        batch: examples at a time.
        compiled: `generate` has been compiled for such a batch; only for what the bar says.
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
        turns = jnp.arange(padded, dtype=jnp.int32) % classes
        labels = turns if label is None else jnp.full_like(turns, label)
    parts = []
    with Progress("sampling", padded // batch, "batch", compiled=compiled) as bar:
        for i in range(0, padded, batch):
            part = generate(keys[i : i + batch], None if labels is None else labels[i : i + batch])
            parts.append(np.asarray(gather(part)))
            bar.update()
    return np.concatenate(parts)[:num], None if labels is None else np.asarray(labels)[:num]


def named_solver(name: str) -> solvers.Solver:
    """Make a solver with its default settings.

    Args:
        name: of a public function of `jaxdiff.solvers`, or FILE.py:NAME for a function of the user's.
    Raises:
        ValueError: there is none of that name, and the message lists those there are; or the function makes no Solver.
    """
    path, colon, function = name.rpartition(":")
    known = sorted(n for n in solvers.__all__ if n != "Solver")
    if colon and path.endswith(".py"):
        factory = load_function(path, function, "returns a jaxdiff.solvers.Solver")
        if any(p.default is p.empty for p in inspect.signature(factory).parameters.values()):
            raise ValueError(
                f"{name} is called without arguments: give defaults to all of {inspect.signature(factory)}"
            )
        made = factory()
        if not isinstance(made, solvers.Solver):
            raise ValueError(f"{name}() must return a jaxdiff.solvers.Solver, got {made!r:.80}")
        return made
    if name not in known:
        raise ValueError(f"unknown solver {name!r}; there are: {', '.join(known)}, and FILE.py:NAME for your own")
    return getattr(solvers, name)()


def _write(out: Path, x: np.ndarray, labels: np.ndarray | None, columns: int) -> None:
    if out.suffix == ".npz":
        save_npz(out, x=x, **({} if labels is None else {"label": labels}))
    elif out.suffix == ".png":
        save_png(out, x, columns)
    else:
        save_pngs(out, x)
