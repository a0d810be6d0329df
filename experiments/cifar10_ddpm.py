"""DDPM on CIFAR-10, as published (Ho et al. 2020, arXiv:2006.11239, appendix B): 35.7 million parameters."""

from typing import Literal

import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import data, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, Natural, Seed, Source


def experiment(
    steps: Count = 800_000,
    batch: Count = 128,
    lr: float = 2e-4,
    seed: Seed = 0,
    widths: tuple[Count, ...] = (128, 256, 256, 256),
    blocks: Count = 2,
    warmup: Natural = 5000,
    ema: float = 0.9999,
    accumulate: Count = 1,
    remat: Literal["none", "dots", "full"] = "none",
    source: Source = "tfds:cifar10",
    size: Count = 32,
    preview_every: Count = 10_000,
) -> Experiment:
    """Ancestral sampling of eps predictions on 1000 linear betas.

    Args:
        steps: updates of the parameters.
        batch: images in an update.
        lr: learning rate.
        seed: of parameters, training noise and data order.
        widths: channels by level.
        blocks: residual blocks in a level.
        warmup: steps of linear warm-up.
        ema: decay of the parameters' average.
        accumulate: microbatches in an update.
        remat: what the backward pass computes again: none, dots (all but products) or full (each block).
        source: tfds:NAME, folder:PATH or fashion_mnist.
        size: side of the images in pixels.
        preview_every: steps between two grids of samples.
    """
    images = data.open_source(source, size=size, channels=3)
    network = networks.ddpm_cifar10(widths=widths, blocks=blocks, remat=remat, dtype=compute_dtype())
    apply = networks.as_apply(network)
    process = jd.processes.Discrete.linear()
    row = jd.parameterize.zero_based(jd.parameterize.eps)
    return Experiment(
        init=lambda key: networks.init(network, key, jnp.zeros((1, *images.shape))),
        apply=apply,
        process=process,
        row=row,
        loss=jd.losses.denoising_loss(apply, process, row, dropout=True),
        optimizer=train.adamw(lr, warmup=warmup, clip=1.0),
        ema=train.ema.warmup(ema),
        batches=lambda start, rows=None: (
            {"x": each["x"]} for each in data.batches(images, batch, seed=seed, start=start, rows=rows, flip=True)
        ),
        batch=batch,
        steps=steps,
        seed=seed,
        shape=images.shape,
        grid=lambda n: jd.grids.ddpm(process, n),
        solver=jd.solvers.ddpm("large"),
        sample_steps=1000,
        accumulate=accumulate,
        preview_every=preview_every,
        source=source,
    )
