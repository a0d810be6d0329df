"""Diffusion against GANs, at equal parameters and seconds: python benchmarks/gan.py [--page docs/gan.md].

Trains the rivals of gan_rivals.py on two tasks, with several seeds and learning rates, in two processes side by side,
each with one thread on a core of its own, and measures 10,000 samples of each. Seconds are CPU seconds of the training
process, without those of compilation, so that other work on the machine costs little. Results are kept as they come:
the same command goes on where it stopped. `--page` writes the tables and the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import gan_rivals as rivals
import gan_runs as runs
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from jaxdiff.cli.environment import keep_pages
from jaxdiff.media.classifier import fit_classifier, save_classifier

SECONDS = {"gaussians": 10.0, "stacked": 20.0}
FACTORS = (0.3, 1.0, 3.0)
SEEDS = 5
OTHER_SEEDS = {"gaussians": 2, "stacked": 1}  # of learning rates other than the usual
COLUMNS = {"covered": "modes", "kl": "KL", "quality": "quality", "recall": "recall"}
CELL = 196  # pixels of a rival's part of the picture


def jobs() -> list[tuple[str, str, float, int]]:
    """(task, rival, factor of the learning rate, seed) of each run: rivals in turns, the usual rates first."""
    usual = [(task, rival, 1.0, seed) for seed in range(SEEDS) for task in SECONDS for rival in rivals.RIVALS]
    others = [
        (task, rival, factor, seed)
        for task, seeds in OTHER_SEEDS.items()
        for seed in range(seeds)
        for rival in rivals.RIVALS
        for factor in FACTORS
        if factor != 1
    ]
    return usual + others


def prepare(cores: Any) -> None:
    """Bind a process to a core of its own, before it meets JAX's devices."""
    os.sched_setaffinity(0, {cores.get()})
    keep_pages(os.environ)


def measure(results: dict, folder: Path, share: float) -> None:
    """Run what is missing in the results."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    context = get_context("spawn")
    cores = context.Queue()
    usable = sorted(os.sched_getaffinity(0))[:2]
    for core in usable:
        cores.put(core)
    path, begun = folder / "results.json", time.perf_counter()
    with ProcessPoolExecutor(len(usable), context, prepare, (cores,)) as pool:
        waiting = {}
        for job in jobs():
            if _name(job) not in results:
                task, *rest = job
                future = pool.submit(runs.run, task, *rest, seconds=share * SECONDS[task], folder=folder)
                waiting[future] = job
        for task in SECONDS:
            if f"{task}/real" not in results:
                waiting[pool.submit(runs.of_real, task, folder)] = (task, "real")
        for future in as_completed(waiting):
            name = _name(waiting[future])
            results[name] = future.result()
            path.write_text(json.dumps(results, indent=1))
            seen = {k: f"{v:.3g}" for k, v in results[name].items() if isinstance(v, float | int)}
            print(f"{time.perf_counter() - begun:5.0f} s", name, *(f"{k} {v}" for k, v in seen.items()), flush=True)


def _name(job: tuple) -> str:
    return "/".join(str(part) for part in job)


def table(results: dict, task: str) -> list[str]:
    """The rivals at their usual learning rates: means and standard deviations over the seeds."""
    head = [*COLUMNS.values(), "failed", "s per 1,000", "evaluations", "updates", "parameters", "s of compilation"]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    if real := results.get(f"{task}/real"):
        lines.append(f"| real examples | {' | '.join(_cell([real[name]], name) for name in COLUMNS)} |" + " |" * 6)
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
    names = (_name((task, rival, factor, seed)) for seed in range(SEEDS))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/gan"))
    parser.add_argument("--page", type=Path, help="a page whose tables are written, and the picture of its name")
    parser.add_argument("--share", type=float, default=1.0, help="of the seconds of training, to try it out")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "judge.npz").exists():
        pictures, labels = rivals.clothes("train")
        judge = fit_classifier(pictures[..., None], labels, num_classes=rivals.CLASSES)
        save_classifier(folder / "judge.npz", judge)
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    measure(results, folder, arguments.share)
    tables = {task: table(results, task) for task in SECONDS} | {"rates": rates(results), "losses": watched(results)}
    for name, lines in tables.items():
        print(f"\n{name}\n" + "\n".join(lines))
    if arguments.page:
        write(arguments.page, tables)
        picture(folder, arguments.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
