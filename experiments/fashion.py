"""Clothes from Fashion-MNIST in minutes on two cores: flow matching with a small class-conditional U-Net."""

import jaxdiff as jd
from jaxdiff import conditions, data, media, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Decay, Natural, Run, Source, Width, refuse_unused


def experiment(
    run: Run = Run(steps=900, batch=32, lr=8e-3, preview_every=900),
    width: Width = 32,
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.99,
    source: Source = "fashion_mnist",
    size: Natural = 0,
) -> Experiment:
    """Flow matching (Lipman et al. 2022), guidance (Ho and Salimans 2022), Muon (Jordan et al. 2024).

    Args:
        size: side of the pictures, a multiple of 4; by default their own.
    """
    clothes = data.open_dataset(source, size=size or None)
    classes = clothes.num_classes
    condition = conditions.label(classes, clothes.class_names) if classes else conditions.none()
    if not classes:
        refuse_unused(experiment, "data without classes", cond_dropout=cond_dropout)
    network = networks.UNet(
        widths=(width, 2 * width),
        num_blocks=1,
        mid_attention=False,
        resample="pool",
        groups=8,
        patch_size=2,
        scale_shift=True,
        num_classes=classes or None,
        time=networks.Sinusoidal(),
        dtype=compute_dtype(),
    )
    process = jd.processes.Flow()
    model = models.of(network, process, jd.parameterize.velocity, shape=clothes.shape, condition=condition)
    dropout = {"null_cond": condition.null, "cond_dropout": cond_dropout} if classes else {}
    loss = jd.losses.denoising_loss(model.apply, process, model.prediction, times=jd.times.logit_normal(), **dropout)
    optimizer = train.muon(run.lr, warmup_steps=min(50, run.steps // 10), steps=run.steps, schedule="cosine")
    sampling = Sampling(
        lambda n: jd.grids.by_time(process, n),
        jd.solvers.dpmpp_2m(),
        steps=16,
        guidance=4.35 if classes else 1.0,
        # Guidance in the middle alone (Kynkäänniemi et al. 2024): at the highest noise levels it costs variety, at the
        # lowest it changes little.
        guide=lambda cond, uncond, scale: jd.guidance.interval(jd.guidance.cfg(cond, uncond, scale), cond, 0.18, 2.7),
    )
    return Experiment(
        model,
        training.of(run, clothes, condition, loss=loss, optimizer=optimizer, ema=train.ema.warmup(ema)),
        sampling,
        condition,
        media.images(clothes.shape, source=source),
        run.seed,
    )
