"""Restorations by a trained run, method by method: python benchmarks/inverse.py runs/fashion [--page docs/inverse.md].

Test pictures lose their centre, are averaged 4 x 4, blurred, or keep 10 % of their pixels, with noise. Each method of
`jaxdiff.inverse` draws several restorations of each with the run's network, without a class. Measured: PSNR and SSIM of
their mean, the samples' distance in the features of `jaxdiff eval`'s classifier, the share of them that it recognizes,
and how many of the true pixels lie within the samples' range. Results are kept in the folder as they come, so that the
same command goes on where it stopped; `--page` writes the table and a picture of what is there.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import jaxdiff as jd
from jaxdiff import Level, data, inverse, run, solvers
from jaxdiff.experiment import Experiment
from jaxdiff.inverse import Operator, operators
from jaxdiff.media.classifier import load_classifier
from jaxdiff.media.files import grid
from jaxdiff.resize import bicubic

STD = 0.05  # of the noise, for pixels in [-1, 1]
PRIOR_STD = 0.7  # of a pixel of the test set: what PiGDM and DAPS take for the data's
BEGIN, END = "<!-- table -->", "<!-- end of table -->"

# (denoise, operator, y) -> (denoiser, solver); every method draws with the same noise, grid and network.
Method = Callable[[Any, Operator, Array], tuple[Any, solvers.Solver]]
METHODS: dict[str, Method] = {
    "tmpd": lambda d, a, y: (inverse.tmpd(d, a, y, STD, iterations=5), solvers.ddim(1.0)),
    "pigdm": lambda d, a, y: (inverse.pigdm(d, a, y, STD, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "dps_normalized": lambda d, a, y: (d, inverse.dps_normalized(solvers.ddim(1.0), a, y, 1.0)),
    "diffpir": lambda d, a, y: (inverse.diffpir(d, a, y, STD, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "ddnm": lambda d, a, y: (inverse.ddnm(d, a, y), solvers.ddim(1.0)),
    "ddrm": lambda d, a, y: (d, inverse.ddrm(a, y, STD)),
    "replace": lambda d, a, y: (d, inverse.replace(solvers.ddim(1.0), a, y)),
    "repaint": lambda d, a, y: (d, inverse.replace(solvers.ddim(1.0), a, y, resample=4)),
    "mcg": lambda d, a, y: (d, inverse.mcg(solvers.ddim(1.0), a, y, 1.0)),
    "daps": lambda d, a, y: (d, inverse.daps(inverse.exact(a, y, STD), prior_std=PRIOR_STD)),
}
COLUMNS = {"psnr": 1, "ssim": 3, "distance": 2, "recognized": 3, "covered": 3}


def tasks(size: int) -> dict[str, Operator]:
    rng, at = np.random.default_rng(0), np.arange(size)
    hole = (abs(at - (size - 1) / 2) < size / 5)[:, None] & (abs(at - (size - 1) / 2) < size / 5)[None]
    bell = np.exp(-0.5 * np.square(np.arange(-4, 5) / 1.5))
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    return {
        "centre": operators.mask(jnp.asarray(~hole[..., None], jnp.float32)),
        "4x": operators.average(4),
        "blur": operators.blur(jnp.asarray(kernel, jnp.float32)),
        "10 %": operators.mask(jnp.asarray(rng.uniform(size=(size, size, 1)) < 0.1, jnp.float32)),
    }


def psnr(x: np.ndarray, true: np.ndarray) -> float:
    """The mean over pictures, in dB, of pictures in [-1, 1]."""
    error = np.mean(np.square(np.clip(x, -1, 1) - true), axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / error)))


def ssim(x: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity with a Gaussian window of 1.5 pixels (Wang et al. 2004, eq. 13), the mean over pictures."""
    bell = np.exp(-0.5 * np.square(np.arange(-5, 6) / 1.5))
    bell /= bell.sum()

    def mean(z: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            z = np.apply_along_axis(np.convolve, axis, z, bell, mode="valid")
        return z

    a, b = mean(x), mean(true)
    var_a, var_b, cov = mean(x * x) - a * a, mean(true * true) - b * b, mean(x * true) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return float(np.mean((2 * a * b + c1) * (2 * cov + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))))


def judge(experiment: Experiment, path: Path) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """The run's classifier, fitted where `jaxdiff eval` has not done so."""
    if not (path / "judge.npz").exists():
        if experiment.medium.evaluator is None:
            raise ValueError(f"{path} has no data to fit a classifier to, with which restorations are judged")
        experiment.medium.evaluator(path, experiment.condition)
    return load_classifier(path / "judge.npz")


class Bench:
    """The network, the pictures, and what measures the results."""

    def __init__(self, path: Path, arguments: argparse.Namespace):
        self.experiment = run.load_run(path)
        self.params = run.parameters(self.experiment, path)
        size = self.experiment.medium.shape[0]
        test = data.load_arrays(data.open_dataset(arguments.source, "test", size=size), arguments.num)
        self.true, self.label = data.to_float(test["x"]), test["label"]
        self.judge = judge(self.experiment, path)
        self.samples, self.steps = arguments.samples, arguments.steps
        self.tasks = tasks(size)
        self.y = {}
        for i, (name, operator) in enumerate(self.tasks.items()):
            clean = operator.apply(jnp.asarray(self.true))
            noise = STD * jax.random.normal(jax.random.key(i), clean.shape)
            self.y[name] = clean + (noise if operator.measured is None else operator.apply(noise))

    def draw(self, task: str, method: str) -> np.ndarray:
        """Restorations, [samples, num, H, W, C]."""
        model, condition, operator = self.experiment.model, self.experiment.condition, self.tasks[task]
        levels, _ = self.experiment.sampling.prepare()
        levels = Level(*(jnp.interp(jnp.linspace(0, 1, self.steps + 1), jnp.linspace(0, 1, len(f)), f) for f in levels))

        def restore(params: Any, y: Array, keys: Array) -> Array:
            cond = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(y), *a.shape[1:])), condition.null)
            plain = jd.denoiser(model.apply, params, model.prediction, condition.encode(params, cond))
            denoise, solver = METHODS[method](plain, operator, y)
            x = jd.noise.prior(levels, jd.noise.fold_in(keys, 0), (len(y), *self.true.shape[1:]))
            return jd.sample(denoise, solver, levels, x, jd.noise.fold_in(keys, 1))

        keys = jax.random.split(jax.random.key(1), (self.samples, len(self.true)))
        compiled = jax.jit(restore)
        return np.stack([np.asarray(compiled(self.params, self.y[task], k)) for k in keys])

    def measure(self, drawn: np.ndarray) -> dict[str, float]:
        mean = drawn.mean(0)
        logits, features = zip(*(self.judge(np.clip(x, -1, 1)) for x in drawn), strict=True)
        true = self.judge(self.true)[1]
        found = {"psnr": psnr(mean, self.true), "ssim": ssim(mean, self.true)}
        found["distance"] = float(np.mean([np.linalg.norm(f - true, axis=1).mean() for f in features]))
        found["recognized"] = float(np.mean([np.argmax(z, axis=1) == self.label for z in logits]))
        # Of n exchangeable draws and the truth, the truth is within the others' range n - 1 times of n + 1.
        inside = (drawn.min(0) <= self.true) & (self.true <= drawn.max(0))
        return found | {"covered": float(inside[np.abs(self.true) < 0.98].mean())}

    def simple(self, task: str) -> np.ndarray:
        """What needs no network: bicubic interpolation, or A^T y as it is."""
        y = self.y[task]
        return np.asarray(bicubic(y, self.true.shape[1:3]) if task == "4x" else self.tasks[task].adjoint(y))[None]


def table(found: dict, samples: int) -> str:
    within = (samples - 1) / (samples + 1)
    heads = ["task", "method", "PSNR of the mean, dB", "SSIM", "feature distance", "recognized"]
    heads.append(f"in range ({within:.2f} is right)")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for task, methods in found.items():
        for method, values in methods.items():
            numbers = [f"{values[name]:.{digits}f}" for name, digits in COLUMNS.items()]
            lines.append("| " + " | ".join([task, method, *numbers]) + " |")
    return "\n".join(lines)


def gallery(bench: Bench, folder: Path, found: dict, out: Path) -> None:
    """A line a task and method: truth, measurement, two samples, the standard deviation; of three pictures."""
    lines = []
    for task, methods in found.items():
        measured = bench.simple(task)[0]
        for method in methods:
            path = folder / f"{task}-{method}.npy"
            if path.exists():
                drawn = np.load(path)
                spread = 4 * drawn.std(0) - 1
                lines += [np.stack([bench.true, measured, *drawn[:2], spread])[:, i] for i in range(3)]
    Image.fromarray(grid(np.clip(np.concatenate(lines), -1, 1), columns=15)[..., 0]).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/inverse"))
    parser.add_argument("--source", default="fashion_mnist")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tasks", nargs="+", default=["centre", "4x", "blur", "10 %"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--page", type=Path, help="write the table in this page, and a PNG of its name")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    bench = Bench(arguments.run, arguments)
    for task in arguments.tasks:
        of_task = found.setdefault(task, {})
        of_task["without a network"] = bench.measure(bench.simple(task))
        for method in arguments.methods:
            if method not in of_task:
                drawn = bench.draw(task, method)
                np.save(folder / f"{task}-{method}.npy", drawn)
                of_task[method] = bench.measure(drawn)
                kept.write_text(json.dumps(found, indent=1))
                print(task, method, of_task[method], flush=True)
    print(table(found, arguments.samples))
    if arguments.page:
        before, _, rest = arguments.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.page.write_text(f"{before}{BEGIN}\n{table(found, arguments.samples)}\n{END}{after}")
        gallery(bench, folder, found, arguments.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
