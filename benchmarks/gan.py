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
from typing import Any

import gan_rivals as rivals
import gan_runs as runs
from gan_page import claims, picture, rates, run_name, table, watched, write
from gan_runs import FACTORS, OTHER_SEEDS, SECONDS, SEEDS

from jaxdiff.cli.environment import keep_pages
from jaxdiff.media.classifier import fit_classifier, save_classifier


def jobs(most: int) -> list[tuple[str, str, float, int]]:
    """(task, rival, factor of the learning rate, seed) of each run: rivals in turns, the usual rates first."""
    usual = [(task, rival, 1.0, seed) for seed in range(most) for task in SECONDS for rival in rivals.RIVALS]
    others = [
        (task, rival, factor, seed)
        for task, seeds in OTHER_SEEDS.items()
        for seed in range(min(seeds, most))
        for rival in rivals.RIVALS
        for factor in FACTORS
        if factor != 1
    ]
    return usual + others


def prepare(cores: Any) -> None:
    """Bind a process to a core of its own, before it meets JAX's devices."""
    os.sched_setaffinity(0, {cores.get()})
    keep_pages(os.environ)


def measure(results: dict, folder: Path, *, seeds: int, share: float) -> None:
    """Run what is missing in the results of the first seeds."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
    context = get_context("spawn")
    cores = context.Queue()
    usable = sorted(os.sched_getaffinity(0))[:2]
    for core in usable:
        cores.put(core)
    path, begun = folder / "results.json", time.perf_counter()
    with ProcessPoolExecutor(len(usable), context, prepare, (cores,)) as pool:
        waiting: dict = {}
        for task in SECONDS:
            if f"{task}/real" not in results:
                waiting[pool.submit(runs.of_real, task, folder)] = (task, "real")
        for job in jobs(seeds):
            if run_name(job) not in results:
                task, *rest = job
                future = pool.submit(runs.run, task, *rest, seconds=share * SECONDS[task], folder=folder)
                waiting[future] = job
        for future in as_completed(waiting):
            name = run_name(waiting[future])
            results[name] = future.result()
            path.write_text(json.dumps(results, indent=1))
            seen = {k: f"{v:.3g}" for k, v in results[name].items() if isinstance(v, float | int)}
            print(f"{time.perf_counter() - begun:5.0f} s", name, *(f"{k} {v}" for k, v in seen.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/gan"))
    parser.add_argument("--page", type=Path, help="a page whose tables are written, and the picture of its name")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="0: write the page of what is there")
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
    if arguments.seeds:
        measure(results, folder, seeds=arguments.seeds, share=arguments.share)
    tables = {"claims": claims(results)} | {task: table(results, task) for task in SECONDS}
    tables |= {"rates": rates(results), "losses": watched(results)}
    for name, lines in tables.items():
        print(f"\n{name}\n" + "\n".join(lines))
    if arguments.page:
        write(arguments.page, tables)
        picture(folder, arguments.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
