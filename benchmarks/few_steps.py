"""Few-step models of one teacher, method by method: python benchmarks/few_steps.py runs/fashion [--methods ...].

Trains `experiments/few_steps.py` by each method and seed, in a process of its own, and measures 5,000 samples of 1, 2
and 4 steps by the classifier of `jaxdiff eval`, beside the teacher's in few and in many steps. Results are kept in the
folder as they come, so that the same command goes on where it stopped; `--page docs/few_steps.md` writes the table and
a picture of what is there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import jax
import numpy as np
from PIL import Image

from jaxdiff import few_steps, run, solvers
from jaxdiff.drawing import Drawer

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments" / "few_steps.py"
STEPS = (1, 2, 4)
# Trained for one number of steps; the others draw in any.
OF_ONE_NUMBER = ("adversarial", "distribution_matching", "latent_adversarial", "progressive")
# Updates in about four minutes on two cores, where they are not 600: an update of these costs more.
UPDATES = {"reflow": 250, "trajectory": 400, "lagrangian": 400}
# The teacher's deterministic solvers, of which the best is shown for each number of steps.
TEACHER = {1: ("ddim",), 2: ("ddim", "dpmpp_2m"), 4: ("ddim", "dpmpp_2m"), 8: ("dpmpp_2m", "ddim"), 40: ("dpmpp_2m",)}
COLUMNS = ("accuracy", "kernel_distance", "precision", "recall")


def measured(experiment, params, workdir: Path, num: int, seed: int) -> dict:
    report = run.evaluate(experiment, params, workdir, num=num, seed=seed)
    return {name: report.values["samples"][name] for name in COLUMNS}


def cost(experiment, params) -> dict:
    """Evaluations of the network for a picture, of which guidance takes two a step where it is on, and milliseconds."""
    counted: list[int] = []

    def apply(params, x, noise, cond):
        jax.debug.callback(lambda: counted.append(len(x)))
        return experiment.model.apply(params, x, noise, cond)

    Drawer(replace(experiment, model=replace(experiment.model, apply=apply)))(params, 1, batch=1)
    jax.effects_barrier()
    return {"evaluations": sum(counted), "ms": milliseconds(experiment, params)}


def milliseconds(experiment, params) -> float:
    """Time per picture of a batch of 100, compiled."""
    draw, took = Drawer(experiment), []
    for seed in range(4):
        begun = time.perf_counter()
        draw(params, 100, seed=seed, batch=100)
        took.append(time.perf_counter() - begun)
    return 10 * min(took[1:])


def of_teacher(path: Path, num: int, seed: int) -> dict:
    experiment = run.load_run(path)
    params = run.parameters(experiment, path)
    found: dict = {}
    for steps, names in TEACHER.items():
        for name in names:
            sampling = replace(experiment.sampling, steps=steps, solver=getattr(solvers, name)())
            drawn = replace(experiment, sampling=sampling)
            values = measured(drawn, params, path, num, seed) | {"solver": name}
            if str(steps) not in found or values["kernel_distance"] < found[str(steps)]["kernel_distance"]:
                found[str(steps)] = values | cost(drawn, params)
    return found


def of_method(method: str, teacher: Path, folder: Path, num: int, seed: int) -> dict:
    found: dict = {}
    for sample_steps in STEPS if method in OF_ONE_NUMBER else (1,):
        workdir = folder / f"{method}-{sample_steps}-{seed}"
        command = [sys.executable, "-m", "jaxdiff", "train", str(EXPERIMENT), "--teacher", str(teacher)]
        command += ["--method", method, "--seed", str(seed), "--sample-steps", str(sample_steps)]
        command += ["--steps", str(UPDATES.get(method, 600)), "--workdir", str(workdir)]
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        shutil.copy(teacher / "judge.npz", workdir / "judge.npz")
        experiment = run.load_run(workdir)
        params = run.parameters(experiment, workdir)
        for steps in (sample_steps,) if method in OF_ONE_NUMBER else STEPS:
            drawn = replace(experiment, sampling=replace(experiment.sampling, steps=steps))
            values = measured(drawn, params, workdir, num, seed)
            picture = np.asarray(Drawer(drawn)(params, 10, seed=1, batch=10).x)
            np.save(folder / f"{method}-{steps}-{seed}.npy", picture)
            found[str(steps)] = values | cost(drawn, params) | {"seconds": seconds}
    return found


def show(results: dict, folder: Path, page: Path) -> None:
    picture = page.with_suffix(".png")
    rows = [
        np.concatenate([np.load(folder / f"{method}-{steps}-0.npy")[:, :, :, 0] for steps in STEPS]).swapaxes(0, 1)
        for method in few_steps.METHODS
        if all((folder / f"{method}-{steps}-0.npy").exists() for steps in STEPS)
    ]
    if rows:
        grid = np.concatenate([strip.reshape(strip.shape[0], -1) for strip in rows])
        Image.fromarray(np.uint8(np.clip(127.5 * (grid + 1), 0, 255))).save(picture)
    lines = ["| | steps | evaluations | recognized | distance | precision | recall | ms a picture | s of training |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name, by_seed in sorted(results.items()):
        for steps in sorted({int(s) for values in by_seed.values() for s in values}):
            each = [values[str(steps)] for values in by_seed.values() if str(steps) in values]
            cells = [_cell([v[column] for v in each], column) for column in COLUMNS]
            solver = each[0].get("solver")
            label = f"teacher, `{solver}`" if solver else f"`{name}`"
            # The least: other work on the machine only ever adds time.
            ms, seconds = (min((v[key] for v in each if key in v), default=0) for key in ("ms", "seconds"))
            last = f"{seconds:.0f}" if seconds else ""
            lines.append(f"| {label} | {steps} | {each[0]['evaluations']} | {' | '.join(cells)} | {ms:.1f} | {last} |")
    print("\n".join(lines))
    write_table(page, "table", lines)


def write_table(page: Path, mark: str, lines: list[str]) -> None:
    """Write a table between a mark and the next end."""
    text = page.read_text() if page.exists() else f"<!-- {mark} -->\n<!-- end -->\n"
    head, rest = text.split(f"<!-- {mark} -->\n")
    after = rest.split("<!-- end -->", maxsplit=1)[1]
    page.write_text(f"{head}<!-- {mark} -->\n" + "\n".join(lines) + "\n<!-- end -->" + after)


def _cell(values: list[float], column: str) -> str:
    scale, digits = (100, 1) if column == "accuracy" else (1, 2)
    text = f"{scale * mean(values):.{digits}f}"
    return text + (f" +- {scale * stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=lambda path: Path(path).resolve())
    parser.add_argument("--methods", nargs="*", default=sorted(few_steps.METHODS), help="none: write the page alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num", type=int, default=5000, help="samples that are measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture beside it")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in arguments.seeds if arguments.methods else ():
        for name in ("", *arguments.methods):
            done = results.setdefault(name or "a teacher", {})
            if str(seed) in done or (done and not name):  # the teacher is one network, measured once
                continue
            begun = time.perf_counter()
            if name:
                done[str(seed)] = of_method(name, arguments.teacher, arguments.folder.resolve(), arguments.num, seed)
            else:
                done[str(seed)] = of_teacher(arguments.teacher, arguments.num, seed)
            path.write_text(json.dumps(results, indent=1))
            print(
                name or "teacher", seed, json.dumps(done[str(seed)]), f"{time.perf_counter() - begun:.0f} s", flush=True
            )
            jax.clear_caches()
    if arguments.page:
        show(results, arguments.folder, arguments.page)


if __name__ == "__main__":
    main()
