"""A stage of a cascade whose network is known: it answers with the low-resolution picture as it is given it."""

import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import cascade, conditions, data, media, train, training
from jaxdiff.experiment import Experiment, Model, Sampling
from jaxdiff.options import Run

MEANINGS = ("coat", "shoe", "bag")


def experiment(
    run: Run = Run(steps=1, batch=4, lr=0.1, preview_every=0),
    size: int = 8,
    low: int = 4,
    channels: int = 1,
    names: tuple[str, ...] = ("coat", "bag"),
    level: float = 0.0,
    words: tuple[str, ...] = (),
) -> Experiment:
    """Answers with the noised picture; without one, of the base, with the class's grey.

    Args:
        words: a vocabulary, in which captions are written in place of classes, and the picture is lighter or darker.
    """
    flow = jd.processes.Flow()
    pictures = np.random.default_rng(0).integers(0, 256, (6, size, size, channels), np.uint8)
    source = data.ArraySource(pictures, np.arange(6) % 2, 2, names)
    condition = given = captioned(words, names) if words else conditions.label(2, names)
    if low:
        source = data.low_resolution(source, low)
        shown = data.load_arrays(source)
        given = conditions.hint(condition, shown["hint"], shown["label"])
        condition = conditions.noised(given, flow, (size, size), level=level, max_level=0.5)

    def apply(params, x, noise, cond):
        grey = 0.5 * (cond["label"] - 1)[:, None, None, None].astype(x.dtype)
        if not low:
            return params["w"] * x + grey
        return params["w"] * x + cond["concat"] + (0.5 * grey if words else 0)

    def loss(params, key, batch):
        return jnp.mean(jnp.square(params["w"] * batch["x"])), {}

    return Experiment(
        Model(lambda key: {"w": jnp.zeros(())}, apply, flow, jd.parameterize.x0),
        training.of(
            run, source, given, optimizer=train.adamw(run.lr), ema=train.ema.constant(0.5),
            loss=cascade.augmented_loss(loss, condition, max_level=0.5) if low else loss,
        ),
        Sampling(lambda n: jd.grids.by_time(flow, n), jd.solvers.ddim(), steps=2),
        condition,
        media.images((size, size, channels)),
        run.seed,
    )  # fmt: skip


def captioned(words, names):
    """A condition of texts of one word, by its number in a vocabulary, that the network is given as the label.

    The label is the word's number among MEANINGS, whatever the vocabulary; none, of the empty text, is 1.
    """

    def tokenize(texts):
        unknown = [text for text in texts if text and text not in words]
        if unknown:
            raise ValueError(f"unknown words: {unknown}")
        return {"ids": np.array([words.index(text) if text else len(words) for text in texts], np.int32)}

    meaning = jnp.array([*(MEANINGS.index(word) for word in words), 1], jnp.int32)

    def encode(params, cond):
        return {name: a for name, a in cond.items() if name != "ids"} | {"label": meaning[cond["ids"]]}

    return conditions.prompts(tokenize, encode, captions=names, vocabulary=words)
