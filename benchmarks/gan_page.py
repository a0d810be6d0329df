"""The page of gan.py: claims of courses against the results, tables, and the picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import mean, stdev

import gan_rivals as rivals
import numpy as np
from gan_runs import FACTORS, OTHER_SEEDS, SECONDS, SEEDS
from PIL import Image

COLUMNS = {"covered": "modes", "kl": "KL", "quality": "quality", "recall": "recall"}
CELL = 196  # pixels of a rival's part of the picture
DIFFUSION, STUDENT, GAN, PLAIN = "flow matching", "consistency", "R3GAN", "R3GAN, no penalty"


def run_name(job: tuple) -> str:
    """The name of a run's results: (task, rival, factor, seed), or (task, "real")."""
    return "/".join(str(part) for part in job)


Claim = tuple[str, list[bool], str]  # what courses say; where it holds, nothing: not measured; the numbers


def claims(results: dict) -> list[str]:
    """What courses say, and whether it is so here, by the rules below."""
    if not all(_runs(results, task, rival, 1.0) for task in SECONDS for rival in rivals.RIVALS):
        return ["Not all rivals have been measured."]
    lines = ["| courses say | here | measured |", "|---|---|---|"]
    for claim, holds, measured in _of_modes(results) + _of_stability(results) + _of_speed_and_loss(results):
        verdict = "yes" if all(holds) else "in part" if any(holds) else "no"
        lines.append(f"| {claim} | {verdict if holds else 'not measured'} | {measured} |")
    planned = len(rivals.RIVALS) * sum(SEEDS + OTHER_SEEDS[task] * (len(FACTORS) - 1) for task in SECONDS)
    done = sum(len(_all(results, rival)) for rival in rivals.RIVALS)
    provisional = "" if done == planned else " The answers are provisional."
    return [*lines, "", f"Of {planned} runs, {done} are measured.{provisional}"]


def _of_modes(results: dict) -> list[Claim]:
    """Covered is 95 % of the modes."""

    def counted(rival: str) -> tuple[str, list[bool]]:
        sizes = [rivals.TASKS[task]().modes for task in SECONDS]
        modes = [_mean(results, task, rival, "covered") for task in SECONDS]
        text = ", ".join(f"{n:.0f} of {size:,}" for n, size in zip(modes, sizes, strict=True))
        return text, [n >= 0.95 * size for n, size in zip(modes, sizes, strict=True)]

    (gan, by_gan), (flow, by_flow) = counted(GAN), counted(DIFFUSION)
    return [
        ("A GAN drops modes", [not c for c in by_gan], f"modes: {GAN} {gan}; without a penalty {counted(PLAIN)[0]}"),
        ("Diffusion covers the modes", by_flow, f"modes: {flow}; its one-step student {counted(STUDENT)[0]}"),
    ]


def _of_stability(results: dict) -> list[Claim]:
    failed = {rival: [run["failed"] for run in _all(results, rival)] for rival in (DIFFUSION, GAN, PLAIN)}
    lost = {rival: f"{sum(runs)} of {len(runs)} runs" for rival, runs in failed.items()}
    gan, flow = (_worst_rate(results, rival) for rival in (GAN, DIFFUSION))
    return [
        (
            "A GAN's training fails",
            [any(failed[GAN]), any(failed[PLAIN])],
            f"failed: {GAN} {lost[GAN]}, without a penalty {lost[PLAIN]}",
        ),
        ("Diffusion trains stably", [not any(failed[DIFFUSION])], f"failed: {lost[DIFFUSION]}"),
        (
            "A GAN depends on the learning rate more than diffusion",
            [gan[task] < flow[task] for task in gan if task in flow],
            f"modes at the worst of three rates over those at the best: {GAN} {_list([*gan.values()])}, "
            f"diffusion {_list([*flow.values()])}",
        ),
    ]


def _of_speed_and_loss(results: dict) -> list[Claim]:
    flow, gan, student = ([_mean(results, t, rival, "draw") for t in SECONDS] for rival in (DIFFUSION, GAN, STUDENT))
    faster, near = ([a / b for a, b in zip(flow, quick, strict=True)] for quick in (gan, student))
    generator, critic, falling = (_within(results, *loss)[0] for loss in ((GAN, 0), (GAN, 1), (DIFFUSION, 0)))
    return [
        (
            "A GAN draws 40 to 100 times as fast, by one evaluation",
            [40 <= ratio <= 100 for ratio in faster],
            f"{_list(faster, 0)} times as fast, with a generator that is the smaller network; "
            f"the one-step student {_list(near, 0)} times",
        ),
        (
            "A GAN's loss says nothing",
            [abs(generator) < 0.5, abs(critic) < 0.5],
            "rank correlation of loss and misplaced points within a run (+1: a falling loss means better samples): "
            f"generator {generator:+.2f}, critic {critic:+.2f}, diffusion {falling:+.2f}",
        ),
    ]


def _within(results: dict, rival: str, loss: int) -> tuple[float, float]:
    """Mean and standard deviation over the seeds of a loss's correlation within a run of the points."""
    curves = [run["curve"] for run in _runs(results, "gaussians", rival, 1.0)]
    values = [_correlation([(point[loss], point[-1]) for point in curve]) for curve in curves]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _mean(results: dict, task: str, rival: str, name: str) -> float:
    return mean(run.get(name, 0.0) for run in _runs(results, task, rival, 1.0))


def _all(results: dict, rival: str) -> list[dict]:
    return [run for task, factor in product(SECONDS, FACTORS) for run in _runs(results, task, rival, factor)]


def _worst_rate(results: dict, rival: str) -> dict[str, float]:
    """For each task, the modes at the worst learning rate over those at the best; of tasks with all rates."""
    out = {}
    for task in SECONDS:
        each = [_runs(results, task, rival, factor)[: OTHER_SEEDS[task]] for factor in FACTORS]
        if all(each):
            modes = [mean(run.get("covered", 0) for run in runs) for runs in each]
            out[task] = min(modes) / max(*modes, 1)
    return out


def _list(values: list[float], digits: int = 2) -> str:
    return " and ".join(f"{value:.{digits}f}" for value in values) or "unknown"


def table(results: dict, task: str) -> list[str]:
    """The rivals at their usual learning rates: means and standard deviations over the seeds."""
    head = [
        *COLUMNS.values(),
        "failed",
        "s per 1,000",
        "evaluations",
        "s of training",
        "updates",
        "parameters",
        "s of compilation",
    ]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    if real := results.get(f"{task}/real"):
        lines.append(f"| real examples | {' | '.join(_cell([real[name]], name) for name in COLUMNS)} |" + " |" * 7)
    for rival, make in rivals.RIVALS.items():
        each = _runs(results, task, rival, 1.0)
        if not each:
            continue
        cells = [_cell([run[name] for run in each if name in run], name) for name in COLUMNS]
        trained, drawn = each[0]["trained"], each[0]["drawn"]
        cells += [
            f"{sum(run['failed'] for run in each)} of {len(each)}",
            f"{mean(run['draw'] for run in each):.3g}",
            str(make(rivals.TASKS[task]()).evaluations),
            f"{mean(run['seconds'] for run in each):.0f}",
            f"{mean(run['updates'] for run in each):,.0f}",
            f"{trained:,}" + (f", {drawn:,} of them draw" if drawn != trained else ""),
            f"{max(run['compile'] for run in each):.0f}",
        ]
        lines.append(f"| {rival} | {' | '.join(cells)} |")
    return lines


def rates(results: dict) -> list[str]:
    """Modes and KL by learning rate, and the share of failed runs at all of them."""
    lines = ["| | rate | modes | KL | recall | failed |", "|---|---|---|---|---|---|"]
    for task in SECONDS:
        for rival in rivals.RIVALS:
            for factor in FACTORS:
                each = _runs(results, task, rival, factor)[: OTHER_SEEDS[task]]
                if each:
                    cells = [_cell([run[k] for run in each if k in run], k) for k in ("covered", "kl", "recall")]
                    failed = f"{sum(run['failed'] for run in each)} of {len(each)}"
                    lines.append(f"| {task}: {rival} | x{factor:g} | {' | '.join(cells)} | {failed} |")
    return lines


def watched(results: dict) -> list[str]:
    """Rank correlation of the losses with the share of misplaced samples, within runs and between their ends."""
    lines = ["| | loss | within a run | between the ends of runs |", "|---|---|---|---|"]
    for rival, make in rivals.RIVALS.items():
        ends = [run["curve"][-1] for factor in FACTORS for run in _runs(results, "gaussians", rival, factor)]
        if not _runs(results, "gaussians", rival, 1.0):
            continue
        for i, loss in enumerate(make(rivals.TASKS["gaussians"]()).losses):
            within = "{:+.2f} +- {:.2f}".format(*_within(results, rival, i))
            between = f"{_correlation([(end[i], end[-1]) for end in ends]):+.2f}" if len(ends) > 4 else "too few"
            lines.append(f"| {rival} | {loss} | {within} | {between} |")
    return lines


def _correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(np.argsort(np.argsort(np.array(pairs), axis=0), axis=0).T)[0, 1])


def _runs(results: dict, task: str, rival: str, factor: float) -> list[dict]:
    names = (run_name((task, rival, factor, seed)) for seed in range(SEEDS))
    return [results[name] for name in names if name in results]


def _cell(values: list[float], column: str) -> str:
    digits = {"covered": 0, "kl": 3}.get(column, 2)
    if not values:
        return "none"
    spread = [f"{stdev(values):.{digits or 1}f}"] if len(values) > 1 else []
    return " +- ".join([f"{mean(values):.{digits}f}", *spread])


def picture(folder: Path, path: Path) -> None:
    """Columns: real examples, then the rivals; first points, then stacked pictures."""
    names = ["real", *rivals.RIVALS]
    strips = []
    for task, paint in (("gaussians", _points), ("stacked", _pictures)):
        files = [folder / f"{task}-{name}.npy" for name in names]
        blank = np.full((CELL, CELL, 3), 255, np.uint8)
        cells = [paint(np.load(file)) if file.exists() else blank for file in files]
        strips.append(
            np.concatenate([np.pad(cell, ((4, 4), (4, 4), (0, 0)), constant_values=255) for cell in cells], 1)
        )
    Image.fromarray(np.concatenate(strips)).save(path, optimize=True)


def _points(x: np.ndarray) -> np.ndarray:
    counts, *_ = np.histogram2d(x[:, 1], x[:, 0], CELL, [[-1.8, 1.8]] * 2)
    shade = np.uint8(255 * np.exp(-1.5 * counts))
    return np.stack([shade, shade, np.maximum(shade, 90)], -1)


def _pictures(x: np.ndarray) -> np.ndarray:
    side = CELL // (2 * rivals.SIZE)
    grid = (
        x[: side * side]
        .reshape(side, side, rivals.SIZE, rivals.SIZE, 3)
        .swapaxes(1, 2)
        .reshape(2 * (CELL // 2,) + (3,))
    )
    return np.uint8(np.clip(127.5 * (grid + 1), 0, 255)).repeat(2, 0).repeat(2, 1)


def write(page: Path, tables: dict[str, list[str]]) -> None:
    """Replace each table of a page, which lies between <!-- NAME --> and <!-- end -->."""
    text = page.read_text() if page.exists() else "".join(f"<!-- {name} -->\n<!-- end -->\n\n" for name in tables)
    for name, lines in tables.items():
        head, rest = text.split(f"<!-- {name} -->\n")
        text = head + f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]
    page.write_text(text)
