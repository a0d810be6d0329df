"""An experiment of points whose network is as small as can be, so that what is made of it compiles fast."""

from collections.abc import Iterator

import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, media, models, networks, train
from jaxdiff.experiment import Experiment, Sampling, Training
from jaxdiff.options import Run


def experiment(run: Run = Run(20, batch=16, lr=1e-3, preview_every=0)) -> Experiment:
    """Flow matching of a single block."""
    condition, medium, process = conditions.none(), media.points(preview=8), jd.processes.Flow()
    velocity = jd.parameterize.velocity
    network = networks.MLP(width=8, num_blocks=1)
    model = models.of(network, process, velocity, shape=medium.shape, condition=condition)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, run.steps):
            yield {
                "x": np.random.default_rng(step)
                .normal(size=(run.batch, 2))
                .astype(np.float32)[slice(None) if rows is None else rows]
            }

    training = Training(
        loss=jd.losses.denoising_loss(model.apply, process, model.prediction),
        optimizer=train.adamw(run.lr),
        ema=train.ema.warmup(0.999),
        batches=batches,
        batch=run.batch,
        steps=run.steps,
        preview_every=run.preview_every,
    )
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.heun(), steps=8)
    return Experiment(model, training, sampling, condition, medium, run.seed)
