"""An experiment of captions in miniature: squares of two colours at two sides, a caption for each."""

import itertools

import numpy as np

import jaxdiff as jd
from jaxdiff import media, models, networks, text, text_encoders, train, training
from jaxdiff.experiment import Experiment, Sampling
from jaxdiff.options import CondDropout, Run

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
SIDES = {"left": slice(0, 4), "right": slice(4, 8)}
CAPTIONS = [f"a {colour} square on the {side}" for colour, side in itertools.product(COLOURS, SIDES)]


class Squares:
    """A source of pictures with the tokens of their captions."""

    shape = (8, 8, 3)

    def __init__(self, tokenize, captions=tuple(CAPTIONS)):
        self.tokenize, self.captions = tokenize, captions

    def __len__(self):
        return 64

    def __getitem__(self, index):
        caption = self.captions[index % len(self.captions)]
        _, colour, *_, side = caption.split()
        x = np.full(self.shape, 255, np.uint8)
        x[2:6, SIDES[side]] = COLOURS[colour]
        return {"x": x, **{name: a[0] for name, a in self.tokenize([caption]).items()}}


def network(encoder):
    """A U-Net of one level with cross-attention."""
    return networks.UNet(
        widths=(8,),
        num_blocks=1,
        mid_blocks=0,
        attention=(0,),
        groups=4,
        head_dim=8,
        patch_size=2,
        context_dim=encoder.width,
        pooled_dim=encoder.pooled,
    )


def experiment(
    run: Run = Run(steps=4, batch=8, lr=3e-3, preview_every=0),
    cond_dropout: CondDropout = 0.1,
    encoder: str = "own",
    length: int = 8,
    extra: str = "",
) -> Experiment:
    """Squares.

    Args:
        encoder: see `text_encoders.of`.
        length: tokens of a text.
        extra: a word that the captions have, too.
    """
    of_text = text_encoders.of(encoder, text.Vocabulary.of([*CAPTIONS, extra], length=length))
    condition = text_encoders.condition_of(of_text, CAPTIONS[:3], CAPTIONS[3:])
    process, velocity = jd.processes.Flow(), jd.parameterize.velocity
    model = models.of(network(of_text), process, velocity, shape=(8, 8, 3), condition=condition, text=of_text)
    loss = jd.losses.denoising_loss(
        condition.encoded(model.apply), process, model.prediction, null_cond=condition.null, cond_dropout=cond_dropout
    )
    return Experiment(
        model,
        training.of(
            run,
            Squares(of_text.tokenize, CAPTIONS[:3]),
            condition,
            loss=loss,
            optimizer=train.adamw(run.lr),
            ema=train.ema.warmup(0.9),
        ),
        Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.ddim(), steps=4, guidance=2.0),
        condition,
        media.images((8, 8, 3), preview=4, captions=True),
        run.seed,
    )
