"""Embeddings of pictures and captions in one space, in minutes on two cores; unclip.py draws pictures of them."""

from jaxdiff import data, image_text, text, train, unclip
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, Decay, Run, Source


def experiment(
    run: Run = Run(steps=500, batch=128, lr=2e-3, preview_every=0),
    width: Count = 64,
    channels: tuple[Count, ...] = (48, 128, 192),
    ema: Decay = 0.995,
    source: Source = "compositions:core",
) -> Experiment:
    """A contrastive model of pictures and texts (CLIP: Radford et al. 2021, arXiv:2103.00020), from nothing.

    `jaxdiff eval` looks for captions by their pictures and for pictures by their captions, among 100.

    Args:
        width: length of an embedding.
        channels: of the image encoder's convolutions, each of which halves the picture.
    """
    pictures = data.open_dataset(source, captions=True)
    words = text.Vocabulary.of(data.captions_of(pictures), length=24)
    model = image_text.make(words, pictures.shape, width=width, channels=channels, dtype=compute_dtype())
    optimizer = train.adamw(run.lr, warmup_steps=run.steps // 7, steps=run.steps, schedule="cosine")
    return unclip.image_text_experiment(model, pictures, run, optimizer=optimizer, ema=train.ema.warmup(ema))
