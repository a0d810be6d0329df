"""ADM on ImageNet 64x64 (Dhariwal and Nichol 2021, arXiv:2105.05233): class-conditional, with learned variance."""

from typing import Literal

import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import data, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, Seed, Source


def experiment(
    steps: Count = 540_000,
    batch: Count = 2048,
    lr: float = 3e-4,
    seed: Seed = 0,
    widths: tuple[Count, ...] = (192, 384, 576, 768),
    blocks: Count = 3,
    ema: float = 0.9999,
    accumulate: Count = 1,
    remat: Literal["none", "dots", "full"] = "none",
    drop_rate: float = 0.0,
    source: Source = "tfds:imagenet_resized/64x64",
    size: Count = 64,
    preview_every: Count = 10_000,
) -> Experiment:
    """The hybrid loss on cosine betas (Nichol and Dhariwal 2021), sampled by 250 ancestral steps.

    Args:
        steps: updates of the parameters.
        batch: images in an update.
        lr: learning rate.
        seed: of parameters, training noise and data order.
        widths: channels by level.
        blocks: residual blocks in a level.
        ema: decay of the parameters' average.
        accumulate: microbatches in an update.
        remat: what the backward pass computes again: none, dots (all but products) or full (each block).
        drop_rate: share of images trained without their class: 0 as published, 0.1 for classifier-free guidance.
        source: tfds:NAME, folder:PATH or fashion_mnist.
        size: side of the images in pixels.
        preview_every: steps between two grids of samples.
    """
    images = data.open_source(source, size=size, channels=3)
    null = images.num_classes
    network = networks.adm_imagenet64(
        widths=widths,
        blocks=blocks,
        attention=tuple(range(1, len(widths))),
        num_classes=null,
        remat=remat,
        dtype=compute_dtype(),
    )
    apply = networks.as_apply(network)
    process = jd.processes.Discrete.cosine()
    row = jd.parameterize.zero_based(jd.parameterize.eps)
    return Experiment(
        init=lambda key: networks.init(
            network, key, jnp.zeros((1, *images.shape)), {"label": jnp.zeros((1,), jnp.int32)}
        ),
        apply=apply,
        process=process,
        row=row,
        loss=jd.losses.hybrid_loss(
            apply, process, row, null={"label": jnp.full((1,), null)}, drop_rate=drop_rate, dropout=True
        ),
        optimizer=train.adamw(lr, clip=None),
        ema=train.ema.constant(ema),
        batches=lambda start, rows=None: data.batches(images, batch, seed=seed, start=start, rows=rows, flip=True),
        batch=batch,
        steps=steps,
        seed=seed,
        shape=images.shape,
        grid=lambda n: jd.grids.respaced(process, (n,)),
        solver=jd.solvers.ddpm("learned"),
        sample_steps=250,
        accumulate=accumulate,
        preview_every=preview_every,
        num_classes=images.num_classes,
        null_label=null if drop_rate > 0 else None,
        learned_variance=True,
        source=source,
    )
