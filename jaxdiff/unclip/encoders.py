"""The experiment that trains an image-text model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import training
from jaxdiff.conditions import Cond, Condition
from jaxdiff.data import Pairs, pairs_of
from jaxdiff.experiment import Experiment, Model
from jaxdiff.image_text import ImageText, contrastive_loss
from jaxdiff.media import Report, Samples, embeddings
from jaxdiff.metrics import recall_at_1
from jaxdiff.options import Run
from jaxdiff.types import Params

__all__ = ["MEASURED", "by_part", "format_shares", "image_text_experiment"]

MEASURED = 1000  # pairs, half of them held out where the data holds out any
AMONG = 100  # of which a pair is to be found


def image_text_experiment(model: ImageText, source: Any, run: Run, *, optimizer: Any, ema: Any) -> Experiment:
    """Make the experiment of an image-text model.

    Its examples are the vectors of pictures and captions, [2, D]; an evaluation looks for one by the other, among 100.

    Args:
        model: the model.
        source: pictures with captions.
        run: the common knobs.
        optimizer: an optax optimizer.
        ema: decay of the average.
    """
    pairs, tokenize = pairs_of(source, MEASURED), model.vocabulary.tokenize
    condition = _condition(model, pairs)

    def generate(params: Params, keys: Array, cond: Cond) -> Array:
        vectors = model.image(params, cond["x"]), model.text(params, cond["ids"], cond["mask"])
        return jnp.stack(vectors, axis=1)

    learning = training.of(
        run, source, condition, loss=contrastive_loss(model), optimizer=optimizer, ema=ema, encode=tokenize
    )
    medium = embeddings((2, model.width), _measure)
    sampling: Any = None  # vectors are made in one call
    return Experiment(
        Model(model.init, generate=generate, network=model), learning, sampling, condition, medium, run.seed
    )


def by_part(samples: Samples) -> dict[str, np.ndarray]:
    """The numbers of the examples whose captions are of training, and of those held out, where 100 can be compared."""
    held = np.zeros(len(samples.x), bool) if samples.held_out is None else samples.held_out
    parts = {"seen": np.flatnonzero(~held), "held_out": np.flatnonzero(held)}
    kept = {name: index for name, index in parts.items() if len(index) >= AMONG}
    if not kept:
        raise ValueError(f"R@1 of {AMONG} needs at least {AMONG} captions of a kind, got {len(samples.x)} in all")
    return kept


def format_shares(shares: dict[str, dict[str, float]], title: str) -> str:
    """A table of shares: a line for each of training's and held-out captions."""
    columns = list(next(iter(shares.values())))
    lines = [f"{title:24}" + "".join(f"{name.replace('_', ' '):>20}" for name in columns)]
    for part, each in shares.items():
        lines.append(f"  {part.replace('_', '-'):22}" + "".join(f"{each[name]:20.3f}" for name in columns))
    return "\n".join(lines)


def _condition(model: ImageText, pairs: Pairs) -> Condition:
    tokens, count = model.vocabulary.tokenize(pairs.captions), len(pairs.captions)

    def choose(index: np.ndarray) -> Cond:
        numbers = np.asarray(index) % count
        return {"x": pairs.read(numbers), **{name: a[numbers] for name, a in tokens.items()}}

    def parse(words: str) -> Cond:
        raise ValueError(f"an image-text model embeds pairs and draws nothing, got {words!r}")

    spec = {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in tokens.items()}
    return Condition(
        {"x": jax.ShapeDtypeStruct(model.shape, jnp.float32), **spec},
        choose,
        parse,
        choices=count,
        names=pairs.captions,
        held_out=tuple(range(count - pairs.held_out, count)),
        vocabulary=model.vocabulary.words,
    )


def _measure(samples: Samples) -> Report:
    found = {}
    for part, index in by_part(samples).items():
        image, text = samples.x[index].transpose(1, 0, 2)
        names = [samples.names[i] for i in index]
        found[part] = {
            "captions": recall_at_1(image, text, names, of=AMONG),
            "pictures": recall_at_1(text, image, names, of=AMONG),
            "chance": 1 / AMONG,
        }
    return Report({"samples": found}, format_shares(found, f"found, of {AMONG}"))
