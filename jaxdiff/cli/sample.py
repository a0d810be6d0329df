"""`jaxdiff sample RUN`: pictures, arrays or single files of a trained run, or of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tyro

from jaxdiff.cli.places import try_file, try_folder
from jaxdiff.cli.prompt import draw_prompt, is_pipeline
from jaxdiff.drawing import draw, parameters
from jaxdiff.hooks import change_sampling
from jaxdiff.media import Medium, Samples, images
from jaxdiff.options import Count, Seed
from jaxdiff.recipe import load_run
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    num: Count | None = None,
    label: str | None = None,
    guidance: float | None = None,
    guidance_fn: str | None = None,
    solver: str | None = None,
    grid: str | None = None,
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
        num: number of samples; by default as in a preview, or 1.
        label: a class's name or number, a prompt's number, or a picture's; by default all.
        guidance: scale, 1 is off; by default the usual one.
        guidance_fn: of jaxdiff.guidance, such as apg(eta=0.5), or FILE.py:NAME.
        solver: of jaxdiff.solvers, such as ddim(eta=1.0), or FILE.py:NAME; for a prompt a scheduler of diffusers.
        grid: of jaxdiff.grids, such as beta(alpha=0.5), or FILE.py:NAME.
        steps: number of steps; by default the run's or the usual one.
        seed: sample i depends on the seed and i alone.
        batch: samples at a time; by default as in a preview, or 4.
        params: averaged or last parameters; by default the average.
        ema: length of another average, made of the run's snapshots.
        out: FILE.png for a picture of all, FILE.npz for arrays, or a folder.
        prompt: what the pictures show.
        negative: what they keep away from.
        size: height and width of a prompt's pictures; by default the network's own.
        base: directory with what a file lacks.
        variant: weights' variant, such as fp16.
        mesh: devices as data=4,fsdp=2,sequence=2; data takes those that are left.
        trust: execute the run's program even if others can write it.
    """
    of_prompt, where = is_pipeline(run), parse_mesh(mesh)
    if out is None:
        try_folder(Path(f"samples-{seed}") if of_prompt else run, "--out")
    else:
        (try_file if out.suffix else try_folder)(out, "--out")
    if of_prompt:
        _refuse(
            f"{run} is a text-to-image directory: it needs --prompt",
            label=label, params=params, ema=ema, guidance_fn=guidance_fn, grid=grid,
        )  # fmt: skip
        if prompt is None:
            raise ValueError(f"{run} is a text-to-image directory: it needs --prompt")
        out = Path(f"samples-{seed}") if out is None else out
        medium = images((*(size or (1, 1)), 3))
        _check_suffix(medium, out)
        x = draw_prompt(
            run, prompt, num=1 if num is None else num, negative=negative, guidance=guidance, steps=steps, size=size,
            base=base, variant=variant, scheduler=solver, seed=seed, batch=4 if batch is None else batch, mesh=where,
        )  # fmt: skip
        _save(medium, out, Samples(x, {}, choices=4))
        return
    _refuse(
        f"{run} has no model_index.json, and is no text-to-image directory",
        prompt=prompt, negative=negative, size=size, base=base, variant=variant,
    )  # fmt: skip
    experiment = change_sampling(
        load_run(run, mesh=where, trust=trust),
        guidance=guidance, guidance_fn=guidance_fn, solver=solver, grid=grid, steps=steps,
    )  # fmt: skip
    out = run / f"samples-{seed}{experiment.medium.suffixes[0]}" if out is None else out
    _check_suffix(experiment.medium, out)
    trained = parameters(experiment, run, params or "ema", ema=ema, mesh=where)
    samples = draw(experiment, trained, num, words=label, seed=seed, batch=batch, mesh=where)
    _save(experiment.medium, out, samples)


def _save(medium: Medium, out: Path, samples: Samples) -> None:
    medium.save(out, samples)
    print(out)


def _check_suffix(medium: Medium, out: Path) -> None:
    if out.suffix not in medium.suffixes:
        files = " or ".join(suffix for suffix in medium.suffixes if suffix)
        allowed = [f"end in {files}"] * bool(files) + ["be a folder"] * ("" in medium.suffixes)
        raise ValueError(f"--out must {', or '.join(allowed)}, got {out}")


def _refuse(why: str, **options: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{why}; it has no {' and no '.join(given)}")
