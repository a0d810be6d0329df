"""A stage of a cascade: small pictures made larger (`--size 28 --low 14`), or the small ones (`--size 14 --low 0`)."""

from typing import Any

from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import cascade, conditions, data, models, networks, text_encoders, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Count, Decay, Encoder, Natural, Run, Share, Source, Width, refuse_unused


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
    encoder: Encoder = "own",
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.99,
    mesh: Mesh | None = None,
) -> Experiment:
    """Cascaded diffusion with noise conditioning augmentation (Ho et al. 2021), by flow matching.

    Args:
        size: side of the pictures.
        low: side of the low-resolution pictures that are made larger; 0: none, a model of small pictures.
        max_level: largest level of noise on low-resolution pictures while training; 0 is a clean picture, 1 noise.
        level: level of noise on them in samples.
        blur: share of them that are blurred while training.
        split: split of the data whose low-resolution pictures are made larger in previews and by `jaxdiff eval`.
        mesh: where a pretrained encoder lies; None is the default device.
    """
    captions = data.has_captions(source)
    measured = pictures = data.open_dataset(source, size=size, captions=captions)
    if low:
        measured = data.open_dataset(source, split, size=size, channels=pictures.shape[-1], captions=captions)
    condition, of_text = text_encoders.condition_of_source(pictures, encoder, measured, mesh=mesh)
    if not condition.null:
        refuse_unused(experiment, "data without captions and classes", cond_dropout=cond_dropout)
    process, given = jd.processes.Flow(), condition
    if low:
        given = cascade.known_pictures(condition, data.low_resolution(measured, low), of_text)
        condition = conditions.noised(given, process, (size, size), level=level, max_level=max_level)
        pictures = data.low_resolution(pictures, low)
    else:
        refuse_unused(experiment, "--low 0", max_level=max_level, level=level, blur=blur, split=split)
    network = networks.UNet(
        widths=(width, 2 * width), num_blocks=1, mid_attention=False, attention=(1,) if of_text else (), groups=8,
        patch_size=max(p for p in range(1, 1 + max(1, size // 14)) if size % p == 0),  # it works at 14 pixels or more
        scale_shift=True, head_dim=width, num_classes=None if of_text else pictures.num_classes or None,
        context_dim=of_text.width if of_text else None, pooled_dim=of_text.pooled if of_text else None,
        concat_channels=pictures.shape[-1] if low else None, concat_noise=low > 0, dtype=compute_dtype(),
    )  # fmt: skip
    velocity, times = jd.parameterize.velocity, jd.times.logit_normal()
    model = models.of(network, process, velocity, shape=pictures.shape, condition=condition, text=of_text)
    dropout: Any = {"null_cond": condition.null, "cond_dropout": cond_dropout} if condition.null else {}
    loss = jd.losses.denoising_loss(condition.encoded(model.apply), process, model.prediction, times=times, **dropout)
    augmented = (lambda f: cascade.augmented_loss(f, condition, max_level=max_level, blur=blur)) if low else None
    guidance = 2.0 if condition.null and not low else 1.0
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=16, guidance=guidance)
    optimizer, decay, tokenize = training.muon(run, of_text), train.ema.warmup(ema), of_text and of_text.tokenize
    common: Any = {"of_batches": augmented, "optimizer": optimizer, "ema": decay, "encode": tokenize}
    learning = training.of(run, pictures, given, loss=loss, **common)
    return Experiment(model, learning, sampling, condition, models.picture_medium(measured, source), run.seed)
