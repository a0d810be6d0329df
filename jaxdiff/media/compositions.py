"""Pictures of captions of a grammar, which are judged by what the captions say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from jaxdiff.conditions import Condition
from jaxdiff.data import to_float, to_uint8
from jaxdiff.data.compositions import Composition, Compositions, caption, draw, plain, select
from jaxdiff.data.judging import ATTRIBUTES, chance, judge
from jaxdiff.data.render import render
from jaxdiff.data.twemoji import load_twemoji
from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.media.images import images
from jaxdiff.media.retrieval import Retriever, fit_retriever, load_retriever, save_retriever
from jaxdiff.metrics import recall_at_1

__all__ = ["compositions", "renderings"]

SEED = 2**20  # of the captions that are measured; training has those of its own seed
COPY = 1 / 3  # a picture is a copy if the nearest one of training is nearer than this share of the second
AMONG = 100  # captions of which that of a picture is to be found
COLUMNS = ("right", "chance", "rendered", "captions")


def compositions(*, subset: str = "all", preview: int = 20) -> Medium:
    """Images with captions of `data.Compositions`.

    An evaluation draws captions of training and as many held-out ones, and judges each attribute that they name: next
    to what a random choice gets right, and to what the judge says of the pictures that the grammar itself makes. From
    100 captions of a kind on, a small image-text model, which is fitted the first time, looks for the caption of each
    picture among 100.

    Args:
        subset: see `data.Compositions`.
        preview: images in a preview.

    Returns:
        the medium.
    """

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        return partial(_measure, subset=subset, retriever=cache(partial(_retriever, run / "judge.npz", subset)))

    def prompts(num: int) -> list[str]:
        return [caption(c) for c in _each(num, subset)]

    base = images(Compositions.shape, preview=preview, captions=True)
    return replace(base, evaluator=evaluator, prompts=prompts)


def renderings(num: int, subset: str = "all") -> list[tuple[str, np.ndarray]]:
    """What an evaluation of up to so many samples asks for: captions, and pictures that the grammar makes of them.

    Args:
        num: number of captions, half of them held out.
        subset: see `data.Compositions`.
    """
    return [(caption(c), render(c)) for c in _each(num, subset)]


def _each(num: int, subset: str) -> list[Composition]:
    return [select(part, i) for part in _asked(num, subset) for i in range(len(part.kind))]


def _asked(num: int, subset: str) -> tuple[Composition, Composition]:
    """What an evaluation asks for: combinations of training, and held-out ones."""
    seen, held_out = num - num // 2, num // 2
    return draw(SEED, count=seen, subset=subset), draw(SEED, count=held_out, held_out=True, subset=subset)


def _retriever(path: Path, subset: str) -> Retriever:
    if not path.exists():
        save_retriever(path, fit_retriever(subset=subset, progress=True))
    return load_retriever(path)


def _measure(samples: Samples, *, subset: str, retriever: Callable[[], Retriever]) -> Report:
    values, begin, true = {}, 0, []
    for name, asked in zip(("seen", "held_out"), _asked(len(samples.x), subset), strict=True):
        count = len(asked.kind)
        if count:
            x = samples.x[begin : begin + count]
            rendered = np.stack([render(select(asked, i)) for i in range(count)])
            values[name] = _attributes(x, asked, rendered)
            if count >= AMONG:
                values[name]["caption of 100"] = _retrieval(x, asked, to_float(rendered), retriever())
            true.append(to_float(rendered))
        begin += count
    known = to_float(load_twemoji().x[[picture for picture, _ in plain(subset)]])
    # Some captions, "a large egg", say hardly more than the name of a picture: what they describe is near to that.
    copies = {"share": _copies(samples.x, known), "rendered": _copies(np.concatenate(true), known)}
    report = {"samples": values, "copies": copies}
    return Report(report, _format(report))


def _attributes(x: np.ndarray, asked: Composition, rendered: np.ndarray) -> dict[str, dict[str, float]]:
    """The share of right attributes, of each and of all."""
    count = len(asked.kind)
    drawn = judge(to_uint8(x), asked)
    true = judge(rendered, asked)
    guessed, out = chance(asked), {}
    for name in ATTRIBUTES:
        named = int(np.sum(~np.isnan(drawn[name])))
        if named:
            shares = float(np.nanmean(drawn[name])), guessed[name], float(np.nanmean(true[name]))
            out[name] = dict(zip(COLUMNS, (*shares, named), strict=True))
    weights = [each["captions"] for each in out.values()]
    mean = {key: float(np.average([each[key] for each in out.values()], weights=weights)) for key in COLUMNS[:-1]}
    return out | {"all": mean | {"captions": count}}


def _retrieval(x: np.ndarray, asked: Composition, true: np.ndarray, retriever: Retriever) -> dict[str, float]:
    """The share of pictures whose caption is found among others."""
    each = [select(asked, i) for i in range(len(asked.kind))]
    names = [caption(c._replace(article=0)) for c in each]  # an article changes no picture
    vectors = retriever.captions([caption(c) for c in each])
    right, rendered = (recall_at_1(retriever.pictures(p), vectors, names, of=AMONG) for p in (x, true))
    return dict(zip(COLUMNS, (right, 1 / AMONG, rendered, len(each) // AMONG * AMONG), strict=True))


def _copies(x: np.ndarray, known: np.ndarray) -> float:
    """The share of pictures that are copies of known ones."""
    a, b = (each.reshape(len(each), -1).astype(np.float32) for each in (x, known))
    squares = np.sum(a**2, 1)[:, None] - 2 * a @ b.T + np.sum(b**2, 1)
    nearest, second = np.sqrt(np.maximum(np.partition(squares, 1, axis=1)[:, :2], 0)).T
    return float(np.mean(nearest < COPY * second))


def _format(report: dict) -> str:
    lines = []
    for part, attributes in report["samples"].items():
        lines.append(f"{part.replace('_', '-') + ' combinations':24}" + "".join(f"{name:>10}" for name in COLUMNS))
        for name, each in attributes.items():
            shares = "".join(f"{100 * each[key]:9.1f}%" for key in COLUMNS[:-1])
            lines.append(f"  {name:22}{shares}{each['captions']:10.0f}")
    share, rendered = (100 * report["copies"][key] for key in ("share", "rendered"))
    return "\n".join([*lines, f"copies of training pictures: {share:.1f} %, of the grammar's own {rendered:.1f} %"])
