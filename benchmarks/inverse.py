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
import optax
from jax import Array
from PIL import Image

import jaxdiff as jd
from jaxdiff import Level, data, inverse, metrics, run, solvers, times
from jaxdiff.experiment import Experiment
from jaxdiff.inverse import Operator, operators
from jaxdiff.media.classifier import load_classifier
from jaxdiff.media.files import grid
from jaxdiff.resize import bicubic

STD = 0.05  # of the noise, for pixels in [-1, 1]
PRIOR_STD = 0.7  # of a pixel of the test set: what PiGDM and DAPS take for the data's
INNER = 8  # steps of split Gibbs sampling from a level to clean pictures
PARTICLES = 4  # of twisted Monte Carlo for each sample
BEGIN, END = "<!-- table -->", "<!-- end of table -->"

# (denoise, operator, y) -> (denoiser, solver); every method draws with the same noise, grid and network.
Method = Callable[[Any, Operator, Array], tuple[Any, solvers.Solver]]
METHODS: dict[str, Method] = {
    "tmpd": lambda d, a, y: (inverse.tmpd(d, a, y, STD, iterations=5), solvers.ddim(1.0)),
    "pigdm": lambda d, a, y: (inverse.pigdm(d, a, y, STD, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "dps": lambda d, a, y: (inverse.dps(d, a, y, STD), solvers.ddim(1.0)),
    "dps_normalized": lambda d, a, y: (d, inverse.dps_normalized(solvers.ddim(1.0), a, y, 1.0)),
    "diffpir": lambda d, a, y: (inverse.diffpir(d, a, y, STD, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "ddnm": lambda d, a, y: (inverse.ddnm(d, a, y), solvers.ddim(1.0)),
    "ddrm": lambda d, a, y: (d, inverse.ddrm(a, y, STD)),
    "replace": lambda d, a, y: (d, inverse.replace(solvers.ddim(1.0), a, y)),
    "repaint": lambda d, a, y: (d, inverse.replace(solvers.ddim(1.0), a, y, resample=4)),
    "mcg": lambda d, a, y: (d, inverse.mcg(solvers.ddim(1.0), a, y, 1.0)),
    "daps": lambda d, a, y: (d, inverse.daps(inverse.exact(a, y, STD), prior_std=PRIOR_STD)),
    "split_gibbs": lambda d, a, y: (d, inverse.split_gibbs(inverse.exact(a, y, STD), steps=INNER)),
    "twisted": lambda d, a, y: (d, inverse.twisted(a, y, STD, prior_std=PRIOR_STD)),
}
POINT = "red_diff"  # not samples, but a picture that a loss is least for
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
        self.samples, self.steps, self.updates = arguments.samples, arguments.steps, 10 * arguments.steps
        self.tasks = tasks(size)
        self.y = {}
        for i, (name, operator) in enumerate(self.tasks.items()):
            clean = operator.apply(jnp.asarray(self.true))
            noise = STD * jax.random.normal(jax.random.key(i), clean.shape)
            self.y[name] = clean + (noise if operator.measured is None else operator.apply(noise))

    def draw(self, task: str, method: str) -> np.ndarray:
        """Restorations, [samples, num, H, W, C]; of what has no spread [1, num, H, W, C]."""
        model, condition, operator = self.experiment.model, self.experiment.condition, self.tasks[task]
        levels, _ = self.experiment.sampling.prepare()
        levels = Level(*(jnp.interp(jnp.linspace(0, 1, self.steps + 1), jnp.linspace(0, 1, len(f)), f) for f in levels))

        def denoiser(params: Any, y: Array) -> Any:
            cond = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(y), *a.shape[1:])), condition.null)
            return jd.denoiser(model.apply, params, model.prediction, condition.encode(params, cond))

        def restore(params: Any, y: Array, keys: Array, particles: tuple[int, ...] = ()) -> Array:
            denoise, solver = METHODS[method](denoiser(params, y), operator, y)
            x = jd.noise.prior(levels, jd.noise.fold_in(keys, 0), (len(y), *particles, *self.true.shape[1:]))
            return jd.sample(denoise, solver, levels, x, jd.noise.fold_in(keys, 1))

        def descend(params: Any, y: Array, key: Array) -> Array:
            denoise, adam = denoiser(params, y), optax.adam(optax.cosine_decay_schedule(0.1, self.updates))
            loss = inverse.red_diff(denoise, model.process, operator, y, std=STD, times=times.uniform())
            mu = operator.adjoint(y)

            def update(carry: Any, i: Array) -> tuple[Any, None]:
                grads, _ = jax.grad(loss, has_aux=True)(carry[0], jd.noise.fold_in(key, i), {})
                updates, state = adam.update(grads, carry[1])
                return (optax.apply_updates(carry[0], updates), state), None

            return jax.lax.scan(update, (mu, adam.init(mu)), jnp.arange(self.updates))[0][0]

        keys = jax.random.split(jax.random.key(1), (self.samples, len(self.true)))
        y = self.y[task]
        if method == POINT:
            return np.asarray(jax.jit(descend)(self.params, y, keys[0, 0]))[None]
        if method == "twisted":
            drawn = jax.jit(restore, static_argnums=3)(self.params, y, keys[0], (self.samples * PARTICLES,))
            return np.asarray(drawn).swapaxes(0, 1)[::PARTICLES]
        compiled = jax.jit(restore)
        return np.stack([np.asarray(compiled(self.params, y, k)) for k in keys])

    def measure(self, drawn: np.ndarray) -> dict[str, float]:
        if not np.isfinite(drawn).all():
            return {}  # it has diverged
        mean = np.clip(drawn.mean(0), -1, 1)
        logits, features = zip(*(self.judge(np.clip(x, -1, 1)) for x in drawn), strict=True)
        true = self.judge(self.true)[1]
        found = {f.__name__: float(f(mean, self.true).mean()) for f in (metrics.psnr, metrics.ssim)}
        found["distance"] = float(np.mean([np.linalg.norm(f - true, axis=1).mean() for f in features]))
        found["recognized"] = float(np.mean([np.argmax(z, axis=1) == self.label for z in logits]))
        if len(drawn) == 1:
            return found
        # Of n exchangeable draws and the truth, the truth is within the others' range n - 1 times of n + 1.
        inside = (drawn.min(0) <= self.true) & (self.true <= drawn.max(0))
        return found | {"covered": float(inside[np.abs(self.true) < 0.98].mean())}

    def simple(self, task: str) -> np.ndarray:
        """What needs no network: bicubic interpolation, or A^T y as it is."""
        y = self.y[task]
        return np.asarray(bicubic(y, self.true.shape[1:3]) if task == "4x" else self.tasks[task].adjoint(y))[None]


def listed(methods: dict) -> list[str]:
    """What there is, in one order."""
    return [name for name in ("without a network", *METHODS, POINT) if name in methods]


def table(found: dict, samples: int) -> str:
    within = (samples - 1) / (samples + 1)
    heads = ["task", "method", "PSNR of the mean, dB", "SSIM", "feature distance", "recognized"]
    heads.append(f"in range ({within:.2f} is right)")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for task, methods in found.items():
        for method in listed(methods):
            values = methods[method]
            numbers = [f"{values[name]:.{digits}f}" if name in values else "" for name, digits in COLUMNS.items()]
            lines.append("| " + " | ".join([task, method, *numbers]) + " |")
    return "\n".join(lines)


def gallery(bench: Bench, folder: Path, found: dict, out: Path) -> None:
    """A line a task and method: truth, measurement, two samples, the standard deviation; of three pictures."""
    lines = []
    for task, methods in found.items():
        measured = bench.simple(task)[0]
        for method in listed(methods):
            path = folder / f"{task}-{method}.npy"
            if path.exists() and methods[method]:
                drawn = np.load(path)
                spread = 4 * drawn.std(0) - 1
                two = drawn[[0, min(1, len(drawn) - 1)]]
                lines += [np.stack([bench.true, measured, *two, spread])[:, i] for i in range(3)]
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
    parser.add_argument("--methods", nargs="+", default=[*METHODS, POINT], choices=[*METHODS, POINT])
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
