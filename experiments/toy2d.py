"""Densities of the plane, learned in seconds: where the particles go, and on which way."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import networks, train
from jaxdiff.experiment import Experiment, UserError, example_keys
from jaxdiff.options import Count, Seed
from jaxdiff.storage import replacing


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


DENSITIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
}


def experiment(
    steps: Count = 3000,
    batch: Count = 512,
    lr: float = 2e-3,
    seed: Seed = 0,
    density: str = "moons",
    width: Count = 128,
    preview_every: Count = 1000,
) -> Experiment:
    """Flow matching on points, sampled by Heun's method; the picture shows the paths from noise to data.

    Args:
        steps: updates of the parameters.
        batch: points in an update.
        lr: highest learning rate; it falls to zero.
        seed: of parameters, training noise and data.
        density: moons, rings or checkerboard.
        width: units of a layer.
        preview_every: steps between two pictures.
    """
    if density not in DENSITIES:
        raise UserError(f"density must be one of {', '.join(DENSITIES)}, got {density!r}")
    network = networks.MLP(width=width)
    apply = networks.as_apply(network)
    process = jd.processes.Flow()
    row = jd.parameterize.time_scaled(jd.parameterize.velocity)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        step, mine = start, slice(None) if rows is None else rows
        while True:
            points = DENSITIES[density](np.random.default_rng((seed, step)), batch)
            yield {"x": points[mine].astype(np.float32)}
            step += 1

    return Experiment(
        init=lambda key: networks.init(network, key, jnp.zeros((1, 2))),
        apply=apply,
        process=process,
        row=row,
        loss=jd.losses.denoising_loss(apply, process, row, times=jd.times.stratified()),
        optimizer=train.adamw(lr, steps=steps, schedule="cosine"),
        ema=train.ema.warmup(0.999),
        batches=batches,
        batch=batch,
        steps=steps,
        seed=seed,
        shape=(2,),
        grid=lambda n: jd.grids.by_time(process, n),
        solver=jd.solvers.heun(),
        sample_steps=40,
        preview_every=preview_every,
        draw=draw_paths,
    )


def draw_paths(experiment: Experiment, params, path: Path, count: int = 2000, shown: int = 60) -> None:
    """Write a picture: particles at the end in blue, some of their paths in grey, their beginnings in orange.

    Args:
        experiment, params: what to sample.
        path: the PNG file.
        count: particles.
        shown: how many of them draw their path.
    """
    from PIL import Image, ImageDraw

    levels = experiment.grid(experiment.sample_steps)

    @jax.jit
    def run(params, keys):
        x = jd.noise.prior(levels, keys, (count, 2))
        denoise = jd.denoiser(experiment.apply, params, experiment.row)
        return x, jd.sample_path(denoise, experiment.solver, levels, x, keys)[1]

    start, way = run(params, example_keys(experiment.seed, count))
    way = np.concatenate([np.asarray(start)[None], np.asarray(way)])  # [N + 1, count, 2]
    if not np.isfinite(way).all():
        raise ValueError("the particles' paths are not finite")
    side, scale = 800, 150  # pixels, and pixels a unit
    pixels = side / 2 + scale * way * np.asarray([1, -1])
    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    for i in range(shown):
        pen.line([tuple(point) for point in pixels[:, i]], fill=(190, 190, 190))
    for points, colour, radius in ((pixels[0, :shown], (240, 140, 40), 3), (pixels[-1], (40, 90, 200), 1)):
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    with replacing(path) as beside:
        picture.save(beside)
