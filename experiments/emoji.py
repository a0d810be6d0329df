"""Emoji from words in minutes on two cores: a U-Net with cross-attention to a text encoder that learns with it."""

from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, models, networks, text_encoders, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Count, Decay, Encoder, Natural, Run, Source, Width


def experiment(
    run: Run = Run(steps=2500, batch=32, lr=8e-3, preview_every=500),
    width: Width = 32,
    patch_size: Count = 2,
    encoder: Encoder = "own",
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.995,
    source: Source = "compositions:few",
    size: Natural = 0,
    mesh: Mesh | None = None,
) -> Experiment:
    """Flow matching on pictures with captions, guided; the text encoder learns with the network.

    Args:
        patch_size: edge of a patch, in pixels.
        size: side of the pictures; by default their own.
        mesh: where a pretrained encoder lies; None is the default device.
    """
    emoji = data.open_dataset(source, size=size or None, captions=True)
    of_text = text_encoders.of_source(encoder, emoji, mesh=mesh)
    condition = text_encoders.condition_of(of_text, *data.preview_captions(emoji))
    network = networks.UNet(
        widths=(width, 2 * width, 3 * width),
        num_blocks=1,
        attention=(2,),
        resample="pool",
        groups=8,
        patch_size=patch_size,
        scale_shift=True,
        head_dim=width,
        context_dim=of_text.width,
        pooled_dim=of_text.pooled,
        time=networks.Sinusoidal(),
        dtype=compute_dtype(),
    )
    process = jd.processes.Flow()
    model = models.of(network, process, jd.parameterize.velocity, shape=emoji.shape, condition=condition, text=of_text)
    loss = jd.losses.denoising_loss(
        condition.encoded(model.apply),
        process,
        model.prediction,
        times=jd.times.stratified(),  # what a caption says of places and colours is decided at the highest noise levels
        null_cond=condition.null,
        cond_dropout=cond_dropout,
    )
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=16, guidance=3.0)
    learning = training.of(
        run, emoji, condition, loss=loss, optimizer=training.muon(run, of_text), ema=train.ema.warmup(ema),
        encode=of_text.tokenize,
    )  # fmt: skip
    return Experiment(model, learning, sampling, condition, models.picture_medium(emoji, source), run.seed)
