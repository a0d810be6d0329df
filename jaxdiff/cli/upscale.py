"""`jaxdiff upscale RUN PICTURE`: pictures made larger, from files or of another run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from jaxdiff import data
from jaxdiff.cascade import Upscaler, picture_shape
from jaxdiff.cli.options import Devices, Guidance, PicturesOut, SampleSteps, Trust
from jaxdiff.cli.pictures import described, drawn_shape, read_picture
from jaxdiff.cli.places import try_out
from jaxdiff.cli.sample import check_suffix
from jaxdiff.conditions import Cond
from jaxdiff.drawing import draw, parameters, parsed
from jaxdiff.experiment import Experiment
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Batch, Num, Seed, refuse_unused
from jaxdiff.pretrained import open_run
from jaxdiff.recipe import check_run, load_run
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    pictures: tyro.conf.Positional[tuple[Path, ...]] = (),
    base: Path | None = None,
    then: tuple[Path, ...] = (),
    num: Num | None = None,
    label: str | None = None,
    prompt: str | None = None,
    level: float | None = None,
    fit: bool = False,
    guidance: Guidance = None,
    steps: SampleSteps = None,
    seed: Seed = 0,
    batch: Batch | None = None,
    out: PicturesOut = None,
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Make pictures larger with a run that was trained for it, such as of the experiment cascade.

    Args:
        run: the run's folder.
        pictures: files of any type that Pillow reads.
        base: another run, whose samples are made larger in place of files.
        then: further runs, each of which makes the last one's pictures larger.
        num: samples of the base, by default as in a preview; or versions of each file, by default 1.
        label: what the pictures show, as for `jaxdiff sample`; by default what the base was asked for, or nothing.
        prompt: the same in words, for runs with captions; each run reads them by its own vocabulary.
        level: of the noise that is put on the pictures; by default the run's.
        fit: scale a file to cover the run's size, crop the centre and convert its colours.
        seed: sample i depends on the seed, i and its picture.
        batch: samples at a time; by default as in a preview.
    """
    if bool(pictures) == (base is not None):
        raise ValueError("what is made larger is either PICTURES or the samples of --base RUN")
    if base is not None:
        refuse_unused(command, "upscale --base", fit=fit)
    if label is not None and prompt is not None:
        raise ValueError("--label and --prompt both say what the pictures show: give one of them")
    words = label if prompt is None else prompt
    where, paths = parse_mesh(mesh), (run, *then)
    if out is None:
        check_run(paths[-1])
        out = paths[-1] / f"upscaled-{seed}.png"
    try_out(out)
    stages = [
        _Stage(path, change_sampling(load_run(path, mesh=where, trust=trust), guidance=guidance, steps=steps))
        for path in paths
    ]
    check_suffix(stages[-1].experiment.medium, out)
    base = None if base is None else open_run(base)
    first = None if base is None else _Stage(base, load_run(base, mesh=where, trust=trust))
    shape, *_ = [picture_shape(stage.experiment.condition, level) for stage in stages]
    _check_chain([first, *stages] if first else stages)
    seeds = _seeds(seed)
    if first is not None:
        trained = parameters(first.experiment, first.path, mesh=where)
        samples = draw(first.experiment, trained, num, words=words, seed=next(seeds), batch=batch, mesh=where)
        x, cond = data.to_uint8(samples.x), samples.cond
        given = () if prompt is None else (prompt,)
        texts = samples.names if first.experiment.condition.parse_text else given
    else:
        x = np.repeat(np.stack([read_picture(file, shape, fit=fit) for file in pictures]), num or 1, axis=0)
        texts = () if words is None else (words,)
        cond = parsed(stages[0].experiment.condition, texts) if texts and not _of_texts(stages[0]) else {}
    for stage in stages:
        trained = parameters(stage.experiment, stage.path, mesh=where)
        enlarge = Upscaler(stage.experiment, where)
        asked = _read_texts(stage, texts) if _of_texts(stage) else cond
        samples = enlarge(trained, x, cond=asked, level=level, seed=next(seeds), batch=batch)
        x = data.to_uint8(samples.x)
    # As many columns as there are samples, where they are few.
    stages[-1].experiment.medium.save(out, samples._replace(choices=min(len(x), 10)))
    print(out)


class _Stage(NamedTuple):
    path: Path
    experiment: Experiment


def _of_texts(stage: _Stage) -> bool:
    return stage.experiment.condition.parse_text is not None


def _read_texts(stage: _Stage, texts: Sequence[str]) -> Cond:
    """What texts, one for each picture or one for all, are to a stage: others have other tokens."""
    condition = stage.experiment.condition
    condition = replace(condition, parse=condition.parse_text or condition.parse)
    read = {text: parsed(condition, [text]) for text in dict.fromkeys(texts)}
    parts = [read[text] for text in texts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _seeds(seed: int) -> Iterator[int]:
    """The seed itself, and others: noise of a larger picture by the same seed begins with that of the small one."""
    yield seed
    for stage in count(1):
        yield int(np.random.SeedSequence((seed, stage)).generate_state(1)[0])


def _check_chain(stages: list[_Stage]) -> None:
    """Raise ValueError unless each stage takes what the one before it makes, of the same classes."""
    for small, large in pairwise(stages):
        asked, given = small.experiment.condition, large.experiment.condition
        made, taken = drawn_shape(small.experiment), picture_shape(given)
        if made != taken:
            raise ValueError(
                f"{large.path} takes pictures of {described(taken)}, and {small.path} makes {described(made)}"
            )
        passed = asked.spec.keys() & given.spec.keys() - set(given.unasked)  # e.g. the label
        if passed and given.parse_text is None and asked.names and given.names and asked.names != given.names:
            raise ValueError(f"{large.path} has other classes than {small.path}: {given.names} and {asked.names}")
