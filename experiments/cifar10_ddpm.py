"""DDPM on CIFAR-10, as published (Ho et al. 2020, arXiv:2006.11239, appendix B): 35.7 million parameters."""

import jaxdiff as jd
from jaxdiff import conditions, data, media, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import Count, Decay, Natural, Remat, Run, Source


def experiment(
    run: Run = Run(steps=800_000, batch=128, lr=2e-4, preview_every=10_000),
    widths: tuple[Count, ...] = (128, 256, 256, 256),
    num_blocks: Count = 2,
    warmup: Natural = 5000,
    ema: Decay = 0.9999,
    remat: Remat = "none",
    source: Source = "tfds:cifar10",
    size: Count = 32,
) -> Experiment:
    """Ancestral sampling of eps predictions on 1000 linear betas.

    Args:
        widths: channels by level.
        num_blocks: residual blocks in a level.
        warmup: steps of linear warm-up.
        size: side of the images in pixels.
    """
    images, condition = data.open_dataset(source, size=size, channels=3), conditions.none()
    network = networks.ddpm_cifar10(widths=widths, num_blocks=num_blocks, remat=remat, dtype=compute_dtype())
    process, eps = jd.processes.Discrete.linear(), jd.parameterize.zero_based(jd.parameterize.eps)
    model = models.of(network, process, eps, shape=images.shape, condition=condition)
    learning = training.of(
        run,
        images,
        condition,
        loss=jd.losses.denoising_loss(model.apply, process, eps, dropout=True),
        optimizer=train.adamw(run.lr, warmup_steps=warmup, clip_norm=1.0),
        ema=train.ema.warmup(ema),
        flip=True,
    )
    sampling = Sampling(lambda n: jd.grids.ddpm(process, n), jd.solvers.ddpm("large"), steps=1000)
    return Experiment(model, learning, sampling, condition, media.images(images.shape, source=source), run.seed)
