"""ADM on ImageNet 64x64 (Dhariwal and Nichol 2021, arXiv:2105.05233): class-conditional, with learned variance."""

import jaxdiff as jd
from jaxdiff import conditions, data, media, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Count, Decay, Remat, Run, Source


def experiment(
    run: Run = Run(steps=540_000, batch=2048, lr=3e-4, preview_every=10_000),
    widths: tuple[Count, ...] = (192, 384, 576, 768),
    num_blocks: Count = 3,
    ema: Decay = 0.9999,
    remat: Remat = "none",
    cond_dropout: CondDropout = 0.0,
    source: Source = "tfds:imagenet_resized/64x64",
    size: Count = 64,
) -> Experiment:
    """The hybrid loss on cosine betas (Nichol and Dhariwal 2021), sampled by 250 ancestral steps.

    Args:
        widths: channels by level.
        num_blocks: residual blocks in a level.
        size: side of the images in pixels.
    """
    images = data.open_dataset(source, size=size, channels=3)
    guidable = cond_dropout > 0  # as published it is not
    condition = conditions.label(images.num_classes, images.class_names, null=-1 if guidable else None)
    network = networks.adm_imagenet64(
        widths=widths,
        num_blocks=num_blocks,
        attention=tuple(range(1, len(widths))),
        num_classes=images.num_classes,
        remat=remat,
        dtype=compute_dtype(),
    )
    process, eps = jd.processes.Discrete.cosine(), jd.parameterize.zero_based(jd.parameterize.eps)
    model = models.of(network, process, eps, shape=images.shape, condition=condition, learned_variance=True)
    learning = training.of(
        run,
        images,
        condition,
        loss=jd.losses.hybrid_loss(
            model.apply, process, eps, null_cond=condition.null, cond_dropout=cond_dropout, dropout=True
        ),
        optimizer=train.adamw(run.lr, clip_norm=None),
        ema=train.ema.constant(ema),
        flip=True,
    )
    sampling = Sampling(lambda n: jd.grids.respaced(process, (n,)), jd.solvers.ddpm("learned"), steps=250)
    return Experiment(model, learning, sampling, condition, media.images(images.shape, source=source), run.seed)
