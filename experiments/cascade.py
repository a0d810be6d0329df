"""A stage of a cascade: small pictures made larger (`--size 28 --low 14`), or the small ones (`--size 14 --low 0`)."""

import jaxdiff as jd
from jaxdiff import cascade, conditions, data, media, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Count, Decay, Natural, Run, Share, Source, Width, refuse_unused


def experiment(
    run: Run = Run(steps=900, batch=32, lr=8e-3, preview_every=450),
    source: Source = "fashion_mnist",
    size: Count = 28,
    low: Natural = 14,
    max_level: Share = 0.5,
    level: Share = 0.1,
    blur: Share = 0.0,
    split: str = "test",
    width: Width = 32,
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.99,
) -> Experiment:
    """Cascaded diffusion with noise conditioning augmentation (Ho et al. 2021), by flow matching.

    Args:
        size: side of the pictures.
        low: side of the low-resolution pictures that are made larger; 0: none, a model of small pictures.
        max_level: largest level of noise on low-resolution pictures while training; 0 is a clean picture, 1 noise.
        level: level of noise on them in samples.
        blur: share of them that are blurred while training.
        split: split of the data whose low-resolution pictures are made larger in previews and by `jaxdiff eval`.
    """
    pictures = data.open_dataset(source, size=size)
    classes = pictures.num_classes
    condition = conditions.label(classes, pictures.class_names) if classes else conditions.none()
    if not classes:
        refuse_unused(experiment, "data without classes", cond_dropout=cond_dropout)
    if not low:
        refuse_unused(experiment, "--low 0", max_level=max_level, level=level, blur=blur, split=split)
    process, given = jd.processes.Flow(), condition
    if low:
        shown = data.open_dataset(source, split, size=low, channels=pictures.shape[-1])
        small = data.load_arrays(shown, min(1000, len(shown)))
        pictures = data.low_resolution(pictures, low)
        given = conditions.hint(condition, small["x"], small.get("label"))
        condition = conditions.noised(given, process, (size, size), level=level, max_level=max_level)
    network = networks.UNet(
        widths=(width, 2 * width),
        num_blocks=1,
        mid_attention=False,
        groups=8,
        patch_size=max(p for p in range(1, 1 + max(1, size // 14)) if size % p == 0),  # it works at 14 pixels or more
        scale_shift=True,
        num_classes=classes or None,
        concat_channels=pictures.shape[-1] if low else None,
        concat_noise=low > 0,
        time=networks.Sinusoidal(),
        dtype=compute_dtype(),
    )
    model = models.of(network, process, jd.parameterize.velocity, shape=pictures.shape, condition=condition)
    dropout = {"null_cond": condition.null, "cond_dropout": cond_dropout} if classes else {}
    loss = jd.losses.denoising_loss(model.apply, process, model.prediction, times=jd.times.logit_normal(), **dropout)
    optimizer = train.muon(run.lr, warmup_steps=min(50, run.steps // 10), steps=run.steps, schedule="cosine")
    guidance = 2.0 if classes and not low else 1.0
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=16, guidance=guidance)
    learning = training.of(
        run, pictures, given, loss=loss, optimizer=optimizer, ema=train.ema.warmup(ema),
        of_batches=(lambda f: cascade.augmented_loss(f, condition, max_level=max_level, blur=blur)) if low else None,
    )  # fmt: skip
    medium = media.images(pictures.shape, source=source)
    return Experiment(model, learning, sampling, condition, medium, run.seed)
