"""Every solver's error against its number of network evaluations, and its cost beside diffusers' schedulers.

    python benchmarks/solvers.py [RUN] [--plot docs/solvers.png]

RUN is the folder of a trained experiments/fashion.py; without it only the mixture is measured. Prints Markdown.

The error of a solver is the root mean square distance, a number, from where it would end with very many steps: for the
deterministic ones the exact end of the probability flow, for the others their own end with FINE steps along the same
Brownian path. Solvers without such a limit (consistency, Langevin, restart) have no place here.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scan import in_turns

import jaxdiff as jd
from jaxdiff import solvers
from jaxdiff.recipe import load_run
from jaxdiff.seeds import example_keys
from jaxdiff.train import load_params

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.exact import CLUSTERS

KEY = jax.random.key(0)
BUDGETS, FINE = (6, 8, 12, 16, 24, 32, 48, 64), 1024
TOLERANCES = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)


def all_solvers(process, path):
    """Each solver that has an order, by name, with the process and one Brownian path where it takes them."""
    for name in solvers.__all__:
        make = getattr(solvers, name)
        if isinstance(make, type) or typing.get_type_hints(make).get("return") is not solvers.Solver:
            continue
        known, given = inspect.signature(make).parameters, {}
        if "noise" in known:
            given["noise"] = jd.noise.brownian(path)
        if "process" in known and "churn" not in known:
            given["process"] = process
        solver = make(**given)
        if solver.order is not None and name != "restart":
            yield name, solver


def evaluations(solver, x, most: int) -> list[int]:
    """Evaluations of the denoiser in runs of 0..most steps, counted."""
    calls, counts = [], [0]

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * x

    levels = jd.grids.by_time(jd.processes.Flow(), most, start=0.9)
    run = jax.jit(lambda x, n: jd.sample(denoise, solver, levels, x, KEY, stop=n))
    while len(counts) <= most:
        calls.clear()
        jax.block_until_ready(run(jnp.zeros((len(x), 1), x.dtype), len(counts)))
        jax.effects_barrier()
        counts.append(len(calls))
    return counts


def errors(name, solver, denoise, grid, x, limit, budgets, fine: int) -> dict[int, float]:
    """Evaluations -> root mean square distance to the limit, of the most steps within each budget.

    One program for all numbers of steps, up to the largest: grids padded with their last level.
    """
    most = max(budgets)
    counts, found = evaluations(solver, x, most), {}

    @jax.jit
    def run(levels, n):
        return jd.sample(denoise, solver, levels, x, KEY, stop=n)

    if solver.stochastic:
        limit = jax.jit(lambda levels: jd.sample(denoise, solver, levels, x, KEY))(grid(fine // solver.nfe))
    for budget in budgets:
        n = max(n for n, count in enumerate(counts) if count <= budget)
        if n and counts[n] not in found:
            padded = jax.tree.map(lambda f: jnp.concatenate([f, jnp.repeat(f[-1:], most + 1 - f.size)]), grid(n))
            found[counts[n]] = float(jnp.sqrt(jnp.mean(jnp.square(run(padded, n) - limit))))
    print(f"  {name}: " + ", ".join(f"{n}: {e:.2e}" for n, e in found.items()), file=sys.stderr, flush=True)
    return found


def adaptive(make, denoise, levels, x, limit, process) -> dict[int, float]:
    """As `errors`, of an adaptive solver over tolerances; evaluations are the batch's, for it waits for the slowest."""
    run = jax.jit(lambda tol: jd.sample_state(denoise, make(rtol=tol, atol=tol, process=process), levels, x, KEY))
    found = {}
    for tol in TOLERANCES:
        end, state = run(tol)
        found[int(state.nfe.max())] = float(jnp.sqrt(jnp.mean(jnp.square(end - limit))))
    return found


def on_the_mixture() -> dict[str, dict[int, float]]:
    """Three Gaussians of the plane with their exact denoiser: VE from sigma 80 on Karras' grid, in float64."""
    process, n = jd.processes.EDM(), 512

    def grid(steps):
        # Without the step to sigma = 0, which is of order 1 for all.
        return jax.tree.map(lambda f: f[:-1], jd.grids.karras(process, steps + 1, sigma_min=0.02, sigma_max=80.0))

    keys = jax.random.split(KEY, n)
    x = jd.noise.prior(grid(1), keys, (n, 2), jnp.float64)
    reference = jax.jit(lambda x: jd.sample(CLUSTERS.denoise, solvers.rk4(), grid(4000), x, KEY))(x)
    table = {
        name: errors(name, solver, CLUSTERS.denoise, grid, x, reference, BUDGETS, FINE)
        for name, solver in all_solvers(process, keys)
    }
    for name in ("rk45", "dpm_adaptive"):
        table[name] = adaptive(getattr(solvers, name), CLUSTERS.denoise, grid(1), x, reference, process)
    return table


def on_the_fashion_model(run: Path, n: int = 40) -> dict[str, dict[int, float]]:
    """A trained flow-matching U-Net with guidance 2: from t = 1 to 0 in equal steps."""
    experiment, params = load_run(run), load_params(run, "ema")
    keys, model, grid = example_keys(0, n), experiment.model, experiment.sampling.grid
    label = experiment.condition.choose(np.arange(n))
    conds = (label, experiment.condition.without(label))
    cond, uncond = (jd.denoiser(model.apply, params, model.prediction, one) for one in conds)
    denoise = jd.guidance.cfg(cond, uncond, 2.0)
    x = jd.noise.prior(grid(1), keys, (n, *experiment.medium.shape))
    reference = jax.jit(lambda x: jd.sample(denoise, solvers.heun(), grid(200), x, KEY))(x)
    return {
        name: errors(name, solver, denoise, grid, x, reference, (8, 16, 32), 128)
        for name, solver in all_solvers(model.process, keys)
    }


def overhead(steps: int = 50, samples: int = 10) -> dict[str, float]:
    """Time of a step of diffusers' schedulers over that of our scan's, where the network is one multiplication.

    A side draws a few samples in its turn: what the first costs, after the other side had the machine, is not the step.
    Noise is given to both, for random numbers cost the same whoever asks for them: 1 to 2 us for these 32 in JAX.
    """
    import diffusers
    import torch

    start, table = torch.randn(16, 2), jd.processes.Discrete.linear(1000)
    levels, x = jd.grids.ddpm(table, steps), jax.random.normal(KEY, (16, 2))

    def loop(scheduler):
        scheduler.set_timesteps(steps)  # once, outside of what is timed, as our grid is
        again = vars(scheduler).copy()

        def run():
            for _ in range(samples):
                vars(scheduler).update(again)  # multistep schedulers keep their history
                x = start
                with torch.no_grad():
                    for t in scheduler.timesteps:
                        x = scheduler.step(0.5 * x, t, x).prev_sample

        return run

    def ours(solver):
        denoise = jd.denoiser(lambda params, x, noise, cond: 0.5 * x, None, jd.parameterize.eps)
        sample = jax.jit(lambda x, key: jd.sample(denoise, solver, levels, x, key))
        return lambda: [sample(x, KEY).block_until_ready() for _ in range(samples)]

    pairs = {
        "ddim": diffusers.DDIMScheduler(1000, timestep_spacing="trailing"),
        "ddpm": diffusers.DDPMScheduler(1000, timestep_spacing="trailing"),
        "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler(1000),
        "lms": diffusers.LMSDiscreteScheduler(1000),
        "plms": diffusers.PNDMScheduler(1000, skip_prk_steps=True),
        "deis": diffusers.DEISMultistepScheduler(1000),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(1000),
        "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler(1000, algorithm_type="sde-dpmsolver++"),
        "unipc": diffusers.UniPCMultistepScheduler(1000),
        "sa_solver": diffusers.SASolverScheduler(1000),
    }
    ratios = {}
    for name, scheduler in pairs.items():
        scheduler.is_scale_input_called = True
        sys.modules[type(scheduler).__module__].randn_tensor = lambda *args, **kwargs: start
        make = getattr(solvers, name)
        given = {"noise": lambda key, x, cur, nxt: x} if "noise" in inspect.signature(make).parameters else {}
        sides = {"ours": ours(make(**given)), "theirs": loop(scheduler)}
        seconds = in_turns(sides, repeats=9)
        ratios[name] = seconds["theirs"] / seconds["ours"]
        a, b = (1e6 * seconds[side] / (samples * steps) for side in ("ours", "theirs"))
        print(f"  {name}: {a:.2f} us a step, diffusers {b:.0f} us", file=sys.stderr, flush=True)
    return ratios


def markdown(title: str, table: dict[str, dict[int, float]], budgets) -> str:
    """A row a solver: its smallest error within each budget of evaluations; the best first."""

    def best(found, budget):
        within = [error for n, error in found.items() if n <= budget]
        return within[-1] if within else np.inf

    rows = sorted(table.items(), key=lambda row: best(row[1], budgets[-1]))
    lines = [f"| {title} | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for name, found in rows:
        cells = ["" if np.isinf(best(found, budget)) else f"{best(found, budget):.1e}" for budget in budgets]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(path: Path, tables: dict[str, dict[str, dict[int, float]]]) -> None:
    """A panel for each table's solvers without noise, and one for those with; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    noisy = {name for name, solver in all_solvers(jd.processes.EDM(), KEY) if solver.stochastic}
    figure, axes = plt.subplots(len(tables), 2, figsize=(13, 5.5 * len(tables)), squeeze=False, layout="constrained")
    styles = [(c, m) for m in ("o-", "s--", "^:") for c in plt.get_cmap("tab10").colors]
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        for ax, kind in zip(row, ("deterministic", "stochastic"), strict=True):
            names = [name for name in table if (name in noisy) == (kind == "stochastic")]
            for name, (color, marker) in zip(names, styles, strict=False):
                ax.loglog(*zip(*table[name].items(), strict=True), marker, color=color, label=name, markersize=4, lw=1)
            ax.set(title=f"{title}: {kind} solvers", xlabel="network evaluations", ylabel="error (RMS)")
            ax.xaxis.set_major_formatter("{x:.0f}")
            ax.grid(alpha=0.3, which="both")
            ax.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Prints the tables and ratios, and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a trained run of experiments/fashion.py")
    parser.add_argument("--plot", type=Path, help="where to draw the errors")
    args = parser.parse_args()
    with jax.enable_x64(True):
        tables = {"three Gaussians": on_the_mixture()}
    print(markdown("three Gaussians, evaluations", tables["three Gaussians"], BUDGETS), end="\n\n")
    if args.run is not None:
        tables["fashion model"] = on_the_fashion_model(args.run)
        print(markdown("fashion model, evaluations", tables["fashion model"], (8, 16, 32)), end="\n\n")
    if args.plot is not None:
        plot(args.plot, tables)
    try:
        for name, ratio in overhead().items():
            print(f"step of diffusers' {name} / step of the scan: {ratio:.0f} (at least 50)")
    except ImportError as error:
        print(f"diffusers' schedulers: left out ({error})")


if __name__ == "__main__":
    main()
