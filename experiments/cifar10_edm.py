"""EDM on CIFAR-10 (Karras et al. 2022, arXiv:2206.00364, table 1 and appendix F).

The training, the sampling and the network, DDPM++, are the paper's; mirroring is the only augmentation.
"""

from typing import Literal

import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import data, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, Natural, Seed, Source


def experiment(
    steps: Count = 390_625,
    batch: Count = 512,
    lr: float = 1e-3,
    seed: Seed = 0,
    widths: tuple[Count, ...] = (256, 256, 256),
    blocks: Count = 4,
    warmup: Natural = 19_531,
    half_life: float = 500_000,
    power: tuple[float, ...] = (),
    snapshots: Natural = 0,
    accumulate: Count = 1,
    remat: Literal["none", "dots", "full"] = "none",
    source: Source = "tfds:cifar10",
    size: Count = 32,
    preview_every: Count = 10_000,
) -> Experiment:
    """Preconditioned denoising over log-normal noise, sampled by Heun's method on 18 levels.

    Args:
        steps: updates of the parameters; the default shows 200 million images.
        batch: images in an update.
        lr: learning rate.
        seed: of parameters, training noise and data order.
        widths: channels by level; the first convolution has half as many as the first.
        blocks: residual blocks in a level.
        warmup: steps of linear warm-up; the default is 10 million images.
        half_life: of the parameters' average, in images; at first a twentieth of those seen.
        power: lengths of power-function averages in place of that one, 0.05 0.1 say, as in EDM2.
        snapshots: steps between two snapshots of them, of which `sample --ema` makes other lengths; 0: none.
        accumulate: microbatches in an update.
        remat: what the backward pass computes again: none, dots (all but products) or full (each block).
        source: tfds:NAME, folder:PATH or fashion_mnist.
        size: side of the images in pixels.
        preview_every: steps between two grids of samples.
    """
    images = data.open_source(source, size=size, channels=3)
    network = networks.ddpmpp_cifar10(
        resolution=size,
        base=widths[0] // 2,
        widths=widths,
        blocks=blocks,
        attention=(size // 2,),
        remat=remat,
        dtype=compute_dtype(),
    )
    apply = networks.as_apply(network)
    process, sigma_data = jd.processes.EDM(), 0.5
    row = jd.parameterize.edm(sigma_data)
    return Experiment(
        init=lambda key: networks.init(network, key, jnp.zeros((1, *images.shape))),
        apply=apply,
        process=process,
        row=row,
        loss=jd.losses.denoising_loss(
            apply,
            process,
            row,
            weight=jd.weights.edm(sigma_data),
            times=jd.times.log_normal(process, mean=-1.2, std=1.2),
            dropout=True,
        ),
        optimizer=train.adamw(lr, warmup=warmup, clip=None),
        ema=tuple(train.ema.power(std) for std in power) or train.ema.half_life(half_life / batch),
        batches=lambda start, rows=None: (
            {"x": each["x"]} for each in data.batches(images, batch, seed=seed, start=start, rows=rows, flip=True)
        ),
        batch=batch,
        steps=steps,
        seed=seed,
        shape=images.shape,
        grid=lambda n: jd.grids.karras(process, n, sigma_min=0.002, sigma_max=80.0),
        solver=jd.solvers.heun(),
        sample_steps=18,
        accumulate=accumulate,
        snapshot_every=snapshots,
        preview_every=preview_every,
        source=source,
    )
