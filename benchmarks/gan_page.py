"""The page of gan.py: claims of courses against the results, tables, and the picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import mean, stdev

import gan_rivals as rivals
import numpy as np
from gan_runs import FACTORS, OTHER_SEEDS, SECONDS, SEEDS
from PIL import Image
from scipy.stats import spearmanr

COLUMNS = {"covered": "modes", "kl": "KL", "quality": "quality", "recall": "recall"}
CELL = 196  # pixels of a rival's part of the picture
DIFFUSION, STUDENT, GAN, PLAIN = "flow matching", "consistency", "R3GAN", "R3GAN, no penalty"


def run_name(job: tuple) -> str:
    """The name of a run's results: (task, rival, factor, seed), or (task, "real")."""
    return "/".join(str(part) for part in job)


def claims(results: dict) -> list[str]:
    """What courses say, and whether it is so here, by rules that the last column states."""
    if not all(_runs(results, task, rival, 1.0) for task in SECONDS for rival in rivals.RIVALS):
        return ["Not all rivals have been measured."]
    modes = {rival: [_mean(results, task, rival, "covered") for task in SECONDS] for rival in rivals.RIVALS}
    share = {
        rival: [n / rivals.TASKS[task]().modes for n, task in zip(modes[rival], SECONDS, strict=True)]
        for rival in modes
    }
    failed = {rival: [run["failed"] for run in _all(results, rival)] for rival in rivals.RIVALS}
    draw = {rival: [_mean(results, task, rival, "draw") for task in SECONDS] for rival in rivals.RIVALS}
    faster = [a / b for a, b in zip(draw[DIFFUSION], draw[GAN], strict=True)]
    near = [a / b for a, b in zip(draw[DIFFUSION], draw[STUDENT], strict=True)]
    worst = {rival: _worst_rate(results, rival) for rival in rivals.RIVALS}
    loss = {rival: [run["curve"] for run in _runs(results, "gaussians", rival, 1.0)] for rival in (DIFFUSION, GAN)}
    within = {rival: mean(_correlation([(p[0], p[-1]) for p in curve]) for curve in loss[rival]) for rival in loss}
    counts = lambda rival: f"{modes[rival][0]:.0f} of 25, {modes[rival][1]:.0f} of 1,000"  # noqa: E731
    lost = lambda rival: f"{sum(failed[rival])} of {len(failed[rival])} runs"  # noqa: E731
    lines = ["| courses say | here | measured |", "|---|---|---|"]
    for claim, holds, measured in (
        (
            "A GAN drops modes",
            [s < 0.95 for s in share[GAN]],
            f"modes: {GAN} {counts(GAN)}; without a penalty {counts(PLAIN)}",
        ),
        (
            "Diffusion covers the modes",
            [s >= 0.95 for s in share[DIFFUSION]],
            f"{counts(DIFFUSION)}; its one-step student {counts(STUDENT)}",
        ),
        (
            "A GAN's training fails",
            [sum(failed[GAN]) > 0, sum(failed[PLAIN]) > 0],
            f"failed: {GAN} {lost(GAN)}, without a penalty {lost(PLAIN)}",
        ),
        ("Diffusion trains stably", [sum(failed[DIFFUSION]) == 0], f"failed: {lost(DIFFUSION)}"),
        (
            "A GAN depends on the learning rate more than diffusion",
            [a < b for a, b in zip(worst[GAN], worst[DIFFUSION], strict=True)],
            f"modes at the worst of three rates over those at the best: {GAN} {_list(worst[GAN])}, "
            f"diffusion {_list(worst[DIFFUSION])}",
        ),
        (
            "A GAN draws 40 to 100 times as fast, by one evaluation",
            [40 <= ratio <= 100 for ratio in faster],
            f"{_list(faster, 0)} times as fast; the one-step student {_list(near, 0)} times",
        ),
        (
            "A GAN's loss says nothing",
            [within[GAN] < 0.5],
            "rank correlation of loss and misplaced samples within a run (+1: a falling loss means better samples): "
            f"generator {within[GAN]:+.2f}, diffusion {within[DIFFUSION]:+.2f}",
        ),
    ):
        verdict = "yes" if all(holds) else "in part" if any(holds) else "no"
        lines.append(f"| {claim} | {verdict} | {measured} |")
    return lines


def _mean(results: dict, task: str, rival: str, name: str) -> float:
    return mean(run.get(name, 0.0) for run in _runs(results, task, rival, 1.0))


def _all(results: dict, rival: str) -> list[dict]:
    return [run for task, factor in product(SECONDS, FACTORS) for run in _runs(results, task, rival, factor)]


def _worst_rate(results: dict, rival: str) -> list[float]:
    """For each task, the modes at the worst learning rate over those at the best, with equal seeds."""
    out = []
    for task in SECONDS:
        each = [_runs(results, task, rival, factor)[: OTHER_SEEDS[task]] for factor in FACTORS]
        modes = [mean(run.get("covered", 0) for run in runs) for runs in each if runs]
        out.append(min(modes) / max(max(modes), 1))
    return out


def _list(values: list[float], digits: int = 2) -> str:
    return " and ".join(f"{value:.{digits}f}" for value in values)


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
    lines = ["| | loss | within a run | between runs |", "|---|---|---|---|"]
    for rival, make in rivals.RIVALS.items():
        each = _runs(results, "gaussians", rival, 1.0)
        ends = [run["curve"] for factor in FACTORS for run in _runs(results, "gaussians", rival, factor)]
        for i, loss in enumerate(make(rivals.TASKS["gaussians"]()).losses):
            within = [_correlation([(point[i], point[-1]) for point in run["curve"]]) for run in each]
            between = _correlation([(curve[-1][i], curve[-1][-1]) for curve in ends if curve])
            if each:
                lines.append(f"| {rival} | {loss} | {_signed(within)} | {_signed([between])} |")
    return lines


def _correlation(pairs: list[tuple[float, float]]) -> float:
    loss, misplaced = np.array(pairs).T
    return float(spearmanr(loss, misplaced).statistic)


def _signed(values: list[float]) -> str:
    values = [value for value in values if np.isfinite(value)]
    return " +- ".join([f"{mean(values):+.2f}", f"{stdev(values):.2f}"][: len(values)]) if values else "none"


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
