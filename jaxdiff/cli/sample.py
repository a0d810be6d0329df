"""`jaxdiff sample RUN`: pictures, arrays or single files of a trained run, or of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdiff.cli.controls import Controls, read_controls
from jaxdiff.cli.options import Devices, EightBits, GridName, Guidance, GuidanceFn, PicturesOut, SampleSteps, Trust
from jaxdiff.cli.places import try_folder, try_out
from jaxdiff.cli.prompt import draw_prompts, is_pipeline
from jaxdiff.drawing import draw, parameters
from jaxdiff.hooks import change_sampling
from jaxdiff.media import Medium, Samples, images
from jaxdiff.options import Batch, Count, Num, Seed, absolute
from jaxdiff.pretrained import open_run
from jaxdiff.recipe import load_run
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    num: Num | None = None,
    label: str | None = None,
    guidance: Guidance = None,
    guidance_fn: GuidanceFn = None,
    solver: str | None = None,
    grid: GridName = None,
    steps: SampleSteps = None,
    seed: Seed = 0,
    batch: Batch | None = None,
    params: Literal["ema", "params"] | None = None,
    ema: float | None = None,
    weights: EightBits = None,
    out: PicturesOut = None,
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    prompts: Path | None = None,
    negative: str | None = None,
    prior: Path | None = None,
    size: tuple[Count, Count] | None = None,
    base: Path | None = None,
    variant: str | None = None,
    control: Controls = (),
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Make pictures with a trained run, of classes or prompts, or of prompts with Stable Diffusion or Flux.

    Args:
        run: a run, fashion or emoji, or a text-to-image model.
        num: how many; by default as in a preview, or one of each prompt.
        label: a class's name, or a number; by default all.
        solver: of jaxdiff.solvers, such as ddim(eta=1.0), FILE.py:NAME, or a scheduler of diffusers.
        seed: sample i depends on the seed and i alone.
        batch: samples at a time; by default as in a preview, or 4.
        params: averaged or last ones; by default ema.
        ema: length of another average, made of the run's snapshots.
        prompt: what they show; several prompts take turns.
        prompts: file of prompts, one a line.
        negative: what they keep away from.
        prior: run that turns prompts into the embeddings of a decoder.
        size: height and width of a prompt's picture.
        base: directory with what a file lacks.
        variant: weights' variant, such as fp16.
        control: ControlNet, picture, scale: docs/control.md.
    """
    of_prompt, where = is_pipeline(run), parse_mesh(mesh)
    if out is not None:
        try_out(out)
    texts = _read_prompts(prompt, prompts)
    if of_prompt:
        _refuse(
            f"{run} is a text-to-image directory: it needs --prompt",
            label=label, params=params, ema=ema, guidance_fn=guidance_fn, grid=grid, prior=prior,
        )  # fmt: skip
        if not texts:
            raise ValueError(f"{run} is a text-to-image directory: it needs --prompt")
        if out is None:
            out = Path(f"samples-{seed}")
            try_folder(out, "--out")
        medium = images((*(size or (1, 1)), 3), captions=len(texts) > 1)
        check_suffix(medium, out)
        controls, hints = read_controls(control)
        samples = draw_prompts(
            run, texts, num=len(texts) if num is None else num, negative=negative, guidance=guidance, steps=steps,
            size=size, base=base, variant=variant, scheduler=solver, seed=seed, batch=4 if batch is None else batch,
            mesh=where, controls=controls, hints=hints, weights=weights,
        )  # fmt: skip
        _save(medium, out, samples)
        return
    _refuse(
        f"{run} has no model_index.json, and is no text-to-image directory",
        size=size,
        base=base,
        variant=variant,
        control=control or None,
    )
    if label is not None and texts:
        raise ValueError("--label and --prompt both say what the samples are of: give one of them")
    run = open_run(run)
    if out is None:
        try_folder(run, "--out")
    experiment = change_sampling(
        load_run(run, mesh=where, trust=trust, changes=with_prior(prior)),
        guidance=guidance, guidance_fn=guidance_fn, solver=solver, grid=grid, steps=steps,
    )  # fmt: skip
    out = run / f"samples-{seed}{experiment.medium.suffixes[0]}" if out is None else out
    check_suffix(experiment.medium, out)
    trained = parameters(experiment, run, params or "ema", ema=ema, weights=weights, mesh=where)
    words = texts or label
    num = len(texts) if num is None and len(texts) > 1 else num
    samples = draw(experiment, trained, num, words=words, negative=negative, seed=seed, batch=batch, mesh=where)
    _save(experiment.medium, out, samples)


def with_prior(prior: Path | None) -> dict[str, str]:
    """The change of a run's knobs by which another run is its prior."""
    return {} if prior is None else {"prior": absolute(str(prior))}


def _read_prompts(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The prompts of the options and of a file, whose empty lines and byte-order mark are left out."""
    if file is None:
        return given
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must hold prompts in UTF-8: {error}") from None
    if not lines:
        raise ValueError(f"{file} must hold a prompt on each line, and it is empty")
    return (*given, *lines)


def _save(medium: Medium, out: Path, samples: Samples) -> None:
    medium.save(out, samples)
    print(out)


def check_suffix(medium: Medium, out: Path) -> None:
    """Raise ValueError unless a medium's samples can be written to a file or folder of this name."""
    if out.suffix not in medium.suffixes:
        files = " or ".join(suffix for suffix in medium.suffixes if suffix)
        allowed = [f"end in {files}"] * bool(files) + ["be a folder"] * ("" in medium.suffixes)
        raise ValueError(f"--out must {', or '.join(allowed)}, got {out}")


def _refuse(why: str, **options: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{why}; it has no {' and no '.join(given)}")
