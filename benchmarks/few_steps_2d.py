"""Few-step models of densities of the plane: python benchmarks/few_steps_2d.py [--page docs/few_steps.md].

Trains `experiments/toy2d.py` on each density and seed, and of it `experiments/few_steps.py` by each method. Measures
the sliced Wasserstein distance of 10,000 samples of 1 and 4 steps to as many fresh points of the density, next to
that of the teacher and of two sets of points. Results are kept in the folder as they come, so that the same command
goes on where it stopped; `--page` writes the table, and a picture of the paths from one noise to the samples of the
first seed.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import jax
import numpy as np
from few_steps import EXPERIMENT, OF_ONE_NUMBER, write_table

from jaxdiff import few_steps, run, solvers, train
from jaxdiff.drawing import Drawer
from jaxdiff.metrics import sliced_wasserstein

sys.path.append(str(EXPERIMENT.parent))
from toy2d import DENSITIES

STEPS, TEACHER_STEPS = (1, 4), 40
METHODS = ("progressive", "consistency", "mean_flow", "semigroup", "shortcut", "reflow", "distribution_matching")
TRAINED = {"teacher": {"width": 64, "preview_every": 0}, "student": {"steps": 1000, "batch": 256, "preview_every": 0}}
NUM, SHOWN, PATHS = 10_000, 2000, 40
DATA, TEACHER = "two sets of points", "teacher"


def fresh(density: str, seed: int) -> np.ndarray:
    return DENSITIES[density](np.random.default_rng(seed), NUM)


class Case:
    """A density and a seed: what is trained and measured of it, in a folder."""

    def __init__(self, density: str, seed: int, folder: Path):
        self.density, self.seed, self.folder = density, seed, folder / f"{density}-{seed}"

    def run(self, name: str) -> dict[str, float]:
        """The distances of a method, of the teacher or of the data, by the number of steps."""
        if name == DATA:
            return {"": sliced_wasserstein(fresh(self.density, 2000 + self.seed), self.points)}
        if name == TEACHER:
            return self.of_teacher()
        found = {}
        for sample_steps in STEPS if name in OF_ONE_NUMBER else (1,):
            knobs = {**TRAINED["student"], "seed": self.seed, "sample_steps": sample_steps}
            experiment = run.load(EXPERIMENT)(teacher=str(self.teacher), method=name, **knobs)
            params = train.ema_params(run.train(experiment, self.folder / f"{name}-{sample_steps}"))
            for steps in (sample_steps,) if name in OF_ONE_NUMBER else STEPS:
                found[str(steps)] = self.measure(experiment, params, name, steps)
        return found

    @property
    def points(self) -> np.ndarray:
        return fresh(self.density, 1000 + self.seed)

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    def of_teacher(self) -> dict[str, float]:
        knobs = {**TRAINED["teacher"], "density": self.density, "seed": self.seed, "workdir": self.teacher}
        command = [sys.executable, "-m", "jaxdiff", "train", str(EXPERIMENT.with_name("toy2d.py"))]
        command += [word for name, value in knobs.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        experiment, found = run.load_run(self.teacher), {}
        params = run.parameters(experiment, self.teacher)
        for steps in (*STEPS, TEACHER_STEPS):
            solver = experiment.sampling.solver if steps == TEACHER_STEPS else solvers.ddim()
            drawn = replace(experiment, sampling=replace(experiment.sampling, solver=solver))
            found[str(steps)] = self.measure(drawn, params, TEACHER, steps)
        return found

    def measure(self, experiment, params, name: str, steps: int) -> float:
        """The distance of samples in so many steps; what the picture needs of them is kept."""
        drawer = Drawer(replace(experiment, sampling=replace(experiment.sampling, steps=steps)))
        samples = drawer(params, NUM, seed=self.seed, batch=NUM)
        np.savez(self.kept(name, steps), x=samples.x[:SHOWN], path=samples.path[:, :PATHS])
        return sliced_wasserstein(samples.x, self.points)

    def kept(self, name: str, steps: int) -> Path:
        return self.folder / f"{name}-{steps}.npz"


def draw(results: dict, names: list[str], case_of, picture: Path) -> None:
    """One panel for each method, number of steps and density: the density, 40 paths and 2,000 samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [(density, steps) for density in results for steps in STEPS]
    figure, panels = plt.subplots(
        len(lines),
        len(names) + 1,
        figsize=(2 * (len(names) + 1), 2.2 * len(lines)),
        squeeze=False,
        layout="constrained",
    )
    for (density, steps), across in zip(lines, panels, strict=True):
        case, by_name = case_of(density), next(iter(results[density].values()))
        first = (DATA, "") if steps == STEPS[0] else (TEACHER, TEACHER_STEPS)
        for panel, (name, n) in zip(across, [first, *((name, steps) for name in names)], strict=True):
            if str(n) not in by_name.get(name, ()):
                panel.set_axis_off()
                continue
            kept = {"x": case.points[:SHOWN], "path": None} if name == DATA else np.load(case.kept(name, n))
            _panel(panel, fresh(density, 3000), kept["x"], kept["path"])
            title = "points" if name == DATA else f"{name.replace('_', ' ')}, {n} step{'s' if n > 1 else ''}"
            panel.set_title(f"{title}\n{by_name[name][str(n)]:.3f}", fontsize=7)
    figure.savefig(picture, dpi=100)


def _panel(panel, density: np.ndarray, x: np.ndarray, path: np.ndarray | None) -> None:
    size = 2.6
    panel.hist2d(*density.T, bins=52, range=[[-size, size]] * 2, cmap="Greys", alpha=0.4)
    if path is not None:
        for i in range(path.shape[1]):
            panel.plot(*path[:, i].T, color="tab:orange", linewidth=0.4, alpha=0.8)
        panel.scatter(*path[0].T, s=3, color="tab:orange", linewidths=0)
    panel.scatter(*x.T, s=0.6, color="tab:blue", linewidths=0)
    panel.set(xlim=(-size, size), ylim=(-size, size), xticks=[], yticks=[], aspect="equal")


def table(results: dict, names: list[str]) -> list[str]:
    columns = [(density, steps) for density in results for steps in STEPS]
    lines = [f"| | {' | '.join(f'{density}, {steps} step' + 's' * (steps > 1) for density, steps in columns)} |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_cell(results[density], name, str(steps)) for density, steps in columns]
        lines.append(f"| {name if name == TEACHER else f'`{name}`'} | {' | '.join(cells)} |")
    for label, name, key in ((f"teacher, {TEACHER_STEPS} steps", TEACHER, str(TEACHER_STEPS)), (DATA, DATA, "")):
        cells = [_cell(results[density], name, key) for density in results]
        lines.append(f"| {label} | {' | '.join(cell + ' | ' * (len(STEPS) - 1) for cell in cells)} |")
    return lines


def _cell(by_seed: dict, name: str, steps: str) -> str:
    values = [found[name][steps] for found in by_seed.values() if name in found]
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" +- {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="*", choices=sorted(few_steps.METHODS), default=METHODS, help="none: write the page alone"
    )
    parser.add_argument("--densities", nargs="+", choices=sorted(DENSITIES), default=["moons", "checkerboard"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/few_steps_2d"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture beside it")
    arguments = parser.parse_args()
    folder, results = arguments.folder.resolve(), {}
    for seed in arguments.seeds:
        for density in arguments.densities:
            case = Case(density, seed, folder)
            case.folder.mkdir(parents=True, exist_ok=True)
            path = case.folder / "results.json"
            found = json.loads(path.read_text()) if path.exists() else {}
            for name in (DATA, TEACHER, *arguments.methods):
                if name not in found:
                    begun = time.perf_counter()
                    found[name] = case.run(name)
                    path.write_text(json.dumps(found, indent=1))
                    print(density, seed, name, found[name], f"{time.perf_counter() - begun:.0f} s", flush=True)
                    jax.clear_caches()
            results.setdefault(density, {})[seed] = found
    done = {name for by_seed in results.values() for found in by_seed.values() for name in found}
    names = [TEACHER, *sorted(done - {DATA, TEACHER})]
    lines = table(results, names)
    print("\n".join(lines))
    if arguments.page:
        write_table(arguments.page, "plane", lines)
        picture = arguments.page.with_name("few_steps_2d.png")
        draw(results, names, lambda density: Case(density, arguments.seeds[0], folder), picture)


if __name__ == "__main__":
    main()
