"""Densities of the plane, learned in seconds: where the particles go, and on which way."""

from collections.abc import Callable, Iterator

import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, media, models, networks, train
from jaxdiff.experiment import Experiment, Sampling, Training, UserError
from jaxdiff.options import Count, Run


def moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two interleaved half circles."""
    upper = rng.random(n) < 0.5
    angle = np.pi * rng.random(n)
    x = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], -1)
    return np.where(upper[:, None], x, -x) + 0.05 * rng.standard_normal((n, 2))


def rings(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two circles, one in the other."""
    radius = np.where(rng.random(n) < 0.5, 0.5, 1.25) + 0.04 * rng.standard_normal(n)
    angle = 2 * np.pi * rng.random(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """The eight dark fields of a board of four by four."""
    column, row = rng.integers(0, 4, n), rng.integers(0, 2, n)
    corner = np.stack([column, 2 * row + column % 2], -1)
    return 0.75 * (corner + rng.random((n, 2)) - 2)


DENSITIES: dict[str, Callable] = {"moons": moons, "rings": rings, "checkerboard": checkerboard}


def experiment(run: Run = Run(3000, batch=512, lr=2e-3), density: str = "moons", width: Count = 128) -> Experiment:
    """Flow matching on points, sampled by Heun's method; the picture shows the paths from noise to data.

    Args:
        density: moons, rings or checkerboard.
        width: units of a layer.
    """
    if density not in DENSITIES:
        raise UserError(f"density must be one of {', '.join(DENSITIES)}, got {density!r}")

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        step, mine = start, slice(None) if rows is None else rows
        while True:
            points = DENSITIES[density](np.random.default_rng((run.seed, step)), run.batch)
            yield {"x": points[mine].astype(np.float32)}
            step += 1

    condition, medium, process = conditions.none(), media.points(), jd.processes.Flow()
    network, velocity = networks.MLP(width=width), jd.parameterize.velocity
    model = models.of(network, process, velocity, shape=medium.shape, condition=condition)
    training = Training(
        loss=jd.losses.denoising_loss(model.apply, process, model.prediction, times=jd.times.stratified()),
        optimizer=train.adamw(run.lr, steps=run.steps, schedule="cosine"),
        ema=train.ema.warmup(0.999),
        batches=batches,
        batch=run.batch,
        steps=run.steps,
        grad_accum_steps=run.grad_accum_steps,
        preview_every=run.preview_every,
    )
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.heun(), steps=40)
    return Experiment(model, training, sampling, condition, medium, run.seed)
