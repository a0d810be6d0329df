"""Are samples of a posterior samples of it? python benchmarks/calibration.py runs/fashion --page docs/inverse.md.

Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): pictures are drawn from the network itself and
measured, and each method restores them. A picture and exact samples given its measurement are exchangeable, so that the
rank of any number of the picture among theirs is uniform; chi-squared tests say how likely ranks as uneven as those
found are. It needs no true data, and no exact posterior.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from few_steps import write_table
from scipy import stats

import jaxdiff as jd
from jaxdiff import Level, inverse, run, solvers
from jaxdiff.inverse import operators
from jaxdiff.pretrained import open_run

STD = 0.2  # of the noise; less of it makes the gradient of `dps` too stiff for few steps
METHODS = {
    "pigdm": lambda d, a, y: (inverse.pigdm(d, a, y, STD, prior_std=0.7), solvers.ddim(1.0)),
    "daps": lambda d, a, y: (d, inverse.daps(inverse.exact(a, y, STD), prior_std=0.7)),
    "dps": lambda d, a, y: (inverse.dps(d, a, y, STD), solvers.ddim(1.0)),
    "tmpd": lambda d, a, y: (inverse.tmpd(d, a, y, STD, iterations=3), solvers.ddim(1.0)),
}


def numbers(x: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of pictures [..., H, W, 1], and of what their measurement is off by."""
    steps = np.abs(np.diff(x, axis=-2)).mean((-3, -2, -1))
    middle = x.shape[-2] // 2
    fixed = np.random.default_rng(0).normal(size=x.shape[-3:])
    return {
        "mean": x.mean((-3, -2, -1)),
        "a pixel": x[..., middle, middle, 0],
        "a projection": (fixed * x).mean((-3, -2, -1)),
        "roughness": steps,
        "misfit": np.square(error).mean(tuple(range(x.ndim - 3, x.ndim))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("fashion"))
    parser.add_argument("--num", type=int, default=150, help="pictures")
    parser.add_argument("--samples", type=int, default=9, help="of each picture; the ranks are one more")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    path = open_run(arguments.run)
    experiment = run.load_run(path)
    params = run.parameters(experiment, path)
    model, condition, shape = experiment.model, experiment.condition, experiment.medium.shape
    levels, _ = experiment.sampling.prepare()
    ends = jnp.linspace(0, 1, arguments.steps + 1)
    levels = Level(*(jnp.interp(ends, jnp.linspace(0, 1, len(f)), f) for f in levels))
    operator = operators.average(4)

    def draw(params, y, keys, method=None):
        cond = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(keys), *a.shape[1:])), condition.null)
        plain = jd.denoiser(model.apply, params, model.prediction, condition.encode(params, cond))
        denoise, solver = (plain, solvers.ddim(1.0)) if method is None else METHODS[method](plain, operator, y)
        x = jd.noise.prior(levels, jd.noise.fold_in(keys, 0), (len(keys), *shape))
        return jd.sample(denoise, solver, levels, x, jd.noise.fold_in(keys, 1))

    keys = lambda i: jax.random.split(jax.random.key(i), arguments.num)  # noqa: E731
    true = jax.jit(draw)(params, None, keys(0))
    clean = operator.apply(true)
    y = clean + STD * jax.random.normal(jax.random.key(1), clean.shape)
    off = lambda x: np.repeat(np.repeat(np.asarray(operator.apply(x) - y), 4, 1), 4, 2)  # noqa: E731
    lines: list[str] = []
    for name in METHODS:
        compiled = jax.jit(draw, static_argnames="method")
        drawn = [compiled(params, y, keys(2 + i), method=name) for i in range(arguments.samples)]
        truth = numbers(np.asarray(true), off(true))
        found = [numbers(np.asarray(x), off(x)) for x in drawn]
        values = {}
        for number, of_truth in truth.items():
            ranks = sum((f[number] < of_truth).astype(int) for f in found)
            counts = np.bincount(ranks, minlength=arguments.samples + 1)
            values[number] = stats.chisquare(counts).pvalue
            print(name, number, counts.tolist(), f"p = {values[number]:.2g}", flush=True)
        if not lines:
            lines = [f"| method | {' | '.join(truth)} |", "|---" * (len(truth) + 1) + "|"]
        cells = [f"{p:.2f}" if p >= 0.005 else f"{p:.0e}" for p in values.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if arguments.page:
        write_table(arguments.page, "calibration", lines)


if __name__ == "__main__":
    main()
