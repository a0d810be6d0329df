"""`jaxdiff imagine RUN "prompt"`: four pictures, their variations, and pictures at twice the size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxdiff import imagine
from jaxdiff.cli.controls import Controls, read_controls
from jaxdiff.cli.generators import check_kind, open_generator
from jaxdiff.cli.options import Devices, Trust
from jaxdiff.cli.places import try_folder
from jaxdiff.data.npz import read_npz
from jaxdiff.imagine import Drawn, Generator, History
from jaxdiff.media import Samples
from jaxdiff.media.files import save_npz
from jaxdiff.options import Count, Seed, Steps
from jaxdiff.progress import busy
from jaxdiff.quantize import Weights
from jaxdiff.sharding import parse_mesh
from jaxdiff.train.lock import Lock

HISTORY = "history.json"


def command(
    run: tyro.conf.Positional[Path],
    prompt: tyro.conf.Positional[str | None] = None,
    vary: Count | None = None,
    remix: str | None = None,
    upscale: Count | None = None,
    again: Count | None = None,
    strength: float | None = None,
    num: Count | None = None,
    seed: Seed = 0,
    guidance: float | None = None,
    steps: Steps | None = None,
    solver: str | None = None,
    size: tuple[Count, Count] | None = None,
    base: Path | None = None,
    variant: str | None = None,
    weights: Weights | None = None,
    control: Controls = (),
    out: Path | None = None,
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Draw four pictures of a prompt; vary, remix and upscale those that please.

    The pictures are numbered from 1. history.json beside them says how each was made, and makes it again bit for bit.

    Args:
        run: the run's folder, or a text-to-image directory or file.
        prompt: what the pictures show; of a run with classes the name of one, of one that takes no words "".
        vary: number of a picture to draw variations of.
        remix: with --vary: what the variations show.
        upscale: number of a picture to draw at twice the size.
        again: number of a picture to draw again from the history alone.
        strength: how much of a picture is changed, up to 1; by default 0.6; at twice the size 0.3, of a run 0.2.
        num: number of pictures; by default 4.
        seed: of the pictures' noise; pictures with other numbers have other noise.
        guidance: scale, 1 is off; by default the usual one, or the varied picture's.
        steps: number of steps; by default the history's or the usual one.
        solver: of jaxdiff.solvers, such as ddim(eta=1.0); for a directory a scheduler of diffusers.
        size: height and width of a directory's pictures; by default the network's own.
        base: directory with what a file lacks.
        variant: weights' variant, such as fp16.
        weights: kernels in 8 bits; by default as before.
        control: ControlNet, picture, scale: docs/control.md.
        out: folder of the pictures and their history; by default RUN/imagine, or imagine for a directory.
    """
    controls, hints = read_controls(control)
    options = {"strength": strength, "num": num, "guidance": guidance, "hints": hints or None}
    given = {name: value for name, value in options.items() if value is not None}
    change = _change(prompt=prompt, vary=vary, remix=remix, upscale=upscale, again=again, seed=seed, options=given)
    where, of_directory = parse_mesh(mesh), check_kind(run, size=size, base=base, variant=variant, control=control)
    out = (Path("imagine") if of_directory else run / "imagine") if out is None else out
    try_folder(out, "--out")
    path = out / HISTORY
    before = imagine.read_history(path) if path.exists() else None
    if before is None and prompt is None:
        raise ValueError(f'{path} does not exist: `jaxdiff imagine {run} "PROMPT"` draws the first pictures')
    if before is not None:
        change(before)  # a mistake shows before the model is read
        steps, solver, weights = steps or before.steps, solver or before.solver, weights or before.param_dtype
        size, controls = before.size if size is None else size, controls or [Path(path) for path in before.controls]
    generator = open_generator(
        run, steps=steps, solver=solver, size=size, base=base, variant=variant, weights=weights, controls=controls,
        mesh=where, trust=trust,
    )  # fmt: skip
    with Lock(out, what="imagining"):
        history = imagine.read_history(path) if path.exists() else generator.history
        if again is not None:
            _draw_again(generator, history, again, out)
        else:
            _draw_new(generator, history, change(history), out)


def _change(
    *,
    prompt: str | None,
    vary: int | None,
    remix: str | None,
    upscale: int | None,
    again: int | None,
    seed: int,
    options: Mapping[str, Any],
) -> Callable[[History], History]:
    """What the options ask for, as a function of the history."""
    asked = {"a prompt": prompt, "--vary": vary, "--upscale": upscale, "--again": again}
    present = [name for name, value in asked.items() if value is not None]
    if remix is not None and vary is None:
        raise ValueError("--remix goes with --vary N, the number of the picture that it changes")
    if len(present) != 1:
        raise ValueError(f"imagine takes {', '.join(asked)}: one of them, got {' and '.join(present) or 'none'}")
    taken = {
        "a prompt": {"num", "guidance", "hints"}, "--upscale": {"strength", "guidance", "hints"}, "--again": set(),
    }  # fmt: skip
    useless = sorted(options.keys() - taken.get(present[0], options.keys()))
    if useless:
        raise ValueError(f"{present[0]} takes no --{'control' if useless[0] == 'hints' else useless[0]}")
    if prompt is not None:
        return partial(imagine.begin, prompt=prompt, seed=seed, **options)
    if upscale is not None:
        return partial(imagine.upscale, n=upscale, seed=seed, **options)
    if vary is not None and remix is not None:
        return partial(imagine.remix, n=vary, prompt=remix, seed=seed, **options)
    if vary is not None:
        return partial(imagine.vary, n=vary, seed=seed, **options)

    def unchanged(history: History) -> History:
        history.picture(again)  # type: ignore[arg-type]
        return history

    return unchanged


def _draw_new(generator: Generator, before: History, history: History, out: Path) -> None:
    """Draw the pictures that a history has and an earlier one has not; write them, and then the history."""
    numbers = list(range(len(before.pictures) + 1, len(history.pictures) + 1))
    earlier = imagine.lineage(history, numbers[0])[:-1]
    kept = {n: x0 for n in earlier if (x0 := _kept(_file(out, n), history.picture(n).x0)) is not None}
    with busy("drawing"):
        drawn = imagine.draw(generator, history, numbers, known=kept)
    for n in numbers:
        save_npz(_file(out, n), x0=drawn[n].x0)
        print(_save(generator, history, drawn, [n], out))
    if len(numbers) > 1:
        print(_save(generator, history, drawn, numbers, out))
    imagine.write_history(out / HISTORY, imagine.sign(history, drawn))


def _draw_again(generator: Generator, history: History, n: int, out: Path) -> None:
    with busy("drawing"):
        drawn = imagine.draw(generator, history, [n])
    print(_save(generator, history, drawn, [n], out))
    first, now = history.picture(n).x0, imagine.fingerprint(drawn[n].x0)
    if first == now:
        print(f"picture {n} is the one that was drawn first, bit for bit")
    elif first is not None:
        why = "another device or version of JAX rounds in another way"
        print(f"jaxdiff: picture {n} has not the bits of the one that was drawn first: {why}", file=sys.stderr)


def _save(generator: Generator, history: History, drawn: Mapping[int, Drawn], numbers: list[int], out: Path) -> Path:
    """Write a picture, or several as one."""
    medium = generator.stage(history.picture(numbers[0]).scale).medium
    name = "-".join(map(str, sorted({numbers[0], numbers[-1]})))
    path = out / f"{name}{'.npz' if medium.path else medium.suffixes[0]}"
    medium.save(path, Samples(np.stack([drawn[n].picture for n in numbers]), {}, choices=min(len(numbers), 4)))
    return path


def _file(out: Path, n: int) -> Path:
    """Where a picture's x0 is kept, to save the time of drawing it again."""
    return out / "x0" / f"{n}.npz"


def _kept(path: Path, first: str | None) -> np.ndarray | None:
    """The numbers of a picture that was drawn before, if they are all there."""
    try:
        x0 = read_npz(path).get("x0")
    except ValueError:
        return None
    return x0 if x0 is not None and imagine.fingerprint(x0) == first else None
