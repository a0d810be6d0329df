"""Clothes from Fashion-MNIST in minutes on two cores: flow matching with a small class-conditional U-Net."""

import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import data, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, Seed, Source


def experiment(
    steps: Count = 900,
    batch: Count = 32,
    lr: float = 8e-3,
    seed: Seed = 0,
    width: Count = 32,
    drop_rate: float = 0.1,
    ema: float = 0.99,
    source: Source = "fashion_mnist",
    preview_every: Count = 450,
) -> Experiment:
    """Flow matching (Lipman et al. 2022), classifier-free guidance (Ho and Salimans 2022), Muon (Jordan et al. 2024).

    Args:
        steps: updates of the parameters.
        batch: images in an update.
        lr: highest learning rate; it warms up and falls to zero.
        seed: of parameters, training noise and data order.
        width: channels at the network's first level.
        drop_rate: share of images trained without their class, which guidance needs.
        ema: decay of the parameters' average.
        source: fashion_mnist, tfds:NAME or folder:PATH.
        preview_every: steps between two grids of samples.
    """
    images = data.open_source(source)
    network = networks.UNet(
        widths=(width, 2 * width),
        blocks=1,
        mid_attention=False,
        resample="pool",
        groups=8,
        patch=2,
        scale_shift=True,
        num_classes=images.num_classes,
        time=networks.Sinusoidal(),
        dtype=compute_dtype(),
    )
    apply = networks.as_apply(network)
    process = jd.processes.Flow()
    # The network's sinusoids are made for times of hundreds.
    row = jd.parameterize.time_scaled(jd.parameterize.velocity)
    x, label = jnp.zeros((1, *images.shape)), jnp.zeros((1,), jnp.int32)
    null = images.num_classes
    return Experiment(
        init=lambda key: networks.init(network, key, x, {"label": label}),
        apply=apply,
        process=process,
        row=row,
        loss=jd.losses.denoising_loss(
            apply,
            process,
            row,
            times=jd.times.logit_normal(),
            null={"label": jnp.full((1,), null)},
            drop_rate=drop_rate,
        ),
        optimizer=train.muon(lr, warmup=min(50, steps // 10), steps=steps, schedule="cosine"),
        ema=train.ema.warmup(ema),
        batches=lambda start, rows=None: data.batches(images, batch, seed=seed, start=start, rows=rows),
        batch=batch,
        steps=steps,
        seed=seed,
        shape=images.shape,
        grid=lambda n: jd.grids.by_time(process, n),
        solver=jd.solvers.dpmpp_2m(),
        sample_steps=16,
        preview_every=preview_every,
        num_classes=images.num_classes,
        null_label=null,
        guidance=4.35,
        # Guidance in the middle alone (Kynkäänniemi et al. 2024): at the highest noise levels it costs variety, at the
        # lowest it changes little.
        guide=lambda cond, uncond, scale: jd.guidance.interval(jd.guidance.cfg(cond, uncond, scale), cond, 0.18, 2.7),
        source=source,
    )
