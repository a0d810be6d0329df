"""Latent diffusion (Rombach et al. 2022, arXiv:2112.10752) in minutes on two cores, by an autoencoder of one's own."""

from typing import Annotated, Any

from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, latents, models, networks, text_encoders, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Decay, Encoder, File, Help, Natural, Run, Source, Width, refuse_unused


def experiment(
    autoencoder: Annotated[File, Help("run of the experiment autoencoder, or folder of AutoencoderKL or VQModel.")],
    run: Run = Run(steps=1500, batch=32, lr=8e-3, preview_every=500),
    source: Source = "fashion_mnist",
    size: Natural = 0,
    channels: Natural = 0,
    width: Width = 32,
    encoder: Encoder = "own",
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.995,
    encode_once: bool = True,
    mesh: Mesh | None = None,
) -> Experiment:
    """Flow matching on the latents of pictures, of their captions where they have any, else of their classes.

    Args:
        size: of the pictures; by default their own.
        channels: of the pictures, 1 or 3; by default their own.
        encode_once: encode all pictures before training, and not each batch in its step.
        mesh: where the autoencoder lies; None is the default device.
    """
    captions = data.has_captions(source)
    pictures = data.open_dataset(source, size=size or None, channels=channels or None, captions=captions)
    vae = latents.load_autoencoder(autoencoder, mesh)
    shape = latents.latent_shape(vae, pictures.shape)
    condition, of_text = text_encoders.condition_of_source(pictures, encoder, mesh=mesh)
    halvings = next(n for n in (2, 1, 0) if not any(side % 2**n for side in shape[:2]))
    network = networks.UNet(
        widths=(width, 2 * width, 3 * width)[: halvings + 1], num_blocks=1, attention=(halvings,), resample="pool",
        groups=8, scale_shift=True, head_dim=width, num_classes=None if of_text else pictures.num_classes or None,
        context_dim=of_text.width if of_text else None, pooled_dim=of_text.pooled if of_text else None,
        time=networks.Sinusoidal(), dtype=compute_dtype(),
    )  # fmt: skip
    process = jd.processes.Flow()
    model = models.of(
        network, process, jd.parameterize.velocity, shape=shape, condition=condition, autoencoder=vae, text=of_text
    )
    if not condition.null:
        refuse_unused(experiment, "data without captions and classes", cond_dropout=cond_dropout)
    dropout: Any = {"null_cond": condition.null, "cond_dropout": cond_dropout} if condition.null else {}
    apply, times = condition.encoded(model.apply), jd.times.stratified()
    loss = jd.losses.denoising_loss(apply, process, model.prediction, times=times, **dropout)
    of_latents = jd.losses.latent_loss
    examples: Any = latents.Latents(pictures, vae, condition, mesh) if encode_once else pictures
    learning = training.of(
        run, examples, condition, loss=loss, optimizer=training.muon(run, of_text), ema=train.ema.warmup(ema),
        encode=of_text.tokenize if of_text else None,
        of_batches=of_latents if encode_once else lambda loss: latents.encoding_loss(of_latents(loss), vae),
    )  # fmt: skip
    guidance = 3.0 if condition.null else 1.0
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=16, guidance=guidance)
    medium = models.latent_medium(shape, vae, models.picture_medium(pictures, source))
    return Experiment(model, learning, sampling, condition, medium, run.seed)
