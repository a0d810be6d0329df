"""An experiment of pictures with classes whose network is as small as can be."""

from collections.abc import Iterator

import flax.linen as nn
import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, media, models, networks, train
from jaxdiff.experiment import Experiment, Sampling, Training
from jaxdiff.options import Count, Run


class Network(nn.Module):
    """A block on all pixels."""

    @nn.compact
    def __call__(self, x, noise, cond, *, train=False):
        mlp = networks.MLP(width=16, num_blocks=1, num_classes=3, name="mlp")
        return mlp(x.reshape(len(x), -1), noise, cond).reshape(x.shape)


def experiment(run: Run = Run(20, batch=16, lr=1e-3, preview_every=0), size: Count = 8) -> Experiment:
    """Flow matching of noise with three labels."""
    condition, medium, process = conditions.label(3), media.images((size, size, 1)), jd.processes.Flow()
    prediction = jd.parameterize.time_scaled(jd.parameterize.velocity)
    model = models.of(Network(), process, prediction, shape=medium.shape, condition=condition)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, run.steps):
            rng, kept = np.random.default_rng(step), slice(None) if rows is None else rows
            x = rng.uniform(-1, 1, (run.batch, *medium.shape)).astype(np.float32)
            yield {"x": x[kept], "label": rng.integers(0, 3, run.batch).astype(np.int32)[kept]}

    training = Training(
        loss=jd.losses.denoising_loss(model.apply, process, prediction),
        optimizer=train.adamw(run.lr),
        ema=train.ema.warmup(0.999),
        batches=batches,
        batch=run.batch,
        steps=run.steps,
        preview_every=run.preview_every,
    )
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.heun(), steps=8, guidance=2.0)
    return Experiment(model, training, sampling, condition, medium, run.seed)
