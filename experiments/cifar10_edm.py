"""EDM on CIFAR-10 (Karras et al. 2022, arXiv:2206.00364, table 1 and appendix F).

The training, the sampling and the network, DDPM++, are the paper's; mirroring is the only augmentation.
"""

import jaxdiff as jd
from jaxdiff import conditions, data, media, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import Count, Natural, Remat, Run, Source


def experiment(
    run: Run = Run(steps=390_625, batch=512, lr=1e-3, preview_every=10_000),
    widths: tuple[Count, ...] = (256, 256, 256),
    num_blocks: Count = 4,
    warmup: Natural = 19_531,
    half_life: float = 500_000,
    power: tuple[float, ...] = (),
    snapshots: Natural = 0,
    remat: Remat = "none",
    source: Source = "tfds:cifar10",
    size: Count = 32,
) -> Experiment:
    """Preconditioned denoising over log-normal noise for 200 million images, sampled by Heun's method on 18 levels.

    Args:
        widths: channels by level; the first convolution has half as many as the first.
        num_blocks: residual blocks in a level.
        warmup: steps of linear warm-up; the default is 10 million images.
        half_life: of the parameters' average, in images; at first a twentieth of those seen.
        power: lengths of power-function averages in place of that one, 0.05 0.1 say, as in EDM2.
        snapshots: steps between two snapshots of them, of which `sample --ema` makes other lengths; 0: none.
        size: side of the images in pixels.
    """
    images, condition = data.open_dataset(source, size=size, channels=3), conditions.none()
    network = networks.ddpmpp_cifar10(
        resolution=size,
        model_channels=widths[0] // 2,
        widths=widths,
        num_blocks=num_blocks,
        attention=(size // 2,),
        remat=remat,
        dtype=compute_dtype(),
    )
    process, edm = jd.processes.EDM(), jd.parameterize.edm(0.5)
    model = models.of(network, process, edm, shape=images.shape, condition=condition)
    times = jd.times.log_normal(process, mean=-1.2, std=1.2)
    learning = training.of(
        run,
        images,
        condition,
        loss=jd.losses.denoising_loss(model.apply, process, edm, weight=jd.weights.edm(0.5), times=times, dropout=True),
        optimizer=train.adamw(run.lr, warmup_steps=warmup, clip_norm=None),
        ema=tuple(train.ema.power(std) for std in power) or train.ema.half_life(half_life / run.batch),
        flip=True,
        snapshot_every=snapshots,
    )
    grid = lambda n: jd.grids.karras(process, n, sigma_min=0.002, sigma_max=80.0)  # noqa: E731
    sampling = Sampling(grid, jd.solvers.heun(), steps=18)
    return Experiment(model, learning, sampling, condition, media.images(images.shape, source=source), run.seed)
