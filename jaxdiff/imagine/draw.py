"""The pictures of a history, each drawn again from what the history says of it and of those it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.distributed import gather
from jaxdiff.imagine.generator import Generator, fingerprint
from jaxdiff.imagine.history import History, Picture, lineage
from jaxdiff.seeds import keys_at, seed_key

__all__ = ["Drawn", "draw", "sign"]

# Pictures of a program. Each has a place in it that depends on its number alone, so that it is drawn again by the same
# arithmetic, whatever is drawn with it.
BATCH = 4


class Drawn(NamedTuple):
    """A picture.

    Attributes:
        x0: as the network gets it, [...]: the latents of a latent model.
        picture: decoded, e.g. [H, W, C] in [-1, 1].
    """

    x0: np.ndarray
    picture: np.ndarray


def draw(
    generator: Generator, history: History, numbers: Sequence[int], *, known: Mapping[int, np.ndarray] | None = None
) -> dict[int, Drawn]:
    """Draw pictures of a history, and before them those that they are made of.

    Args:
        generator: the model.
        history: the pictures.
        numbers: which of them to draw.
        known: x0 of pictures that others are made of, by their numbers, which are then not drawn for that.

    Returns:
        the pictures by their numbers. A picture is the same, bit for bit, whichever are drawn with it and whether
        `known` is given, on the same device and version of JAX.

    Raises:
        ValueError: no such picture, a history of another model, words that the model does not know, a picture of a
            size that it doesn't make, or a hint whose file has changed.
    """
    generator.check(history)
    held = dict(known or {})
    needed = set(numbers)
    for n in numbers:
        for m in reversed(lineage(history, n)[:-1]):
            if m in held:
                break
            needed.add(m)
    for n in needed:
        generator.stage(history.picture(n).scale)  # a size that it doesn't make is refused before anything is drawn
    drawn: dict[int, Drawn] = {}
    for group in _groups(history, sorted(needed)):
        drawn |= _draw(generator, history, group, held)
        held |= {n: drawn[n].x0 for n in group}
    return {n: drawn[n] for n in numbers}


def sign(history: History, drawn: Mapping[int, Drawn]) -> History:
    """Keep the fingerprints of pictures in their history.

    Args:
        history: the pictures.
        drawn: some of them, as they were drawn first.

    Returns:
        the history, in which these have their `x0`.
    """
    pictures = list(history.pictures)
    for n, each in drawn.items():
        pictures[n - 1] = pictures[n - 1]._replace(x0=fingerprint(each.x0))
    return history._replace(pictures=tuple(pictures))


def _groups(history: History, numbers: Sequence[int]) -> Iterator[list[int]]:
    """Numbers that are drawn by one call: each with a place of its own, and after the picture that it is made of."""
    group: list[int] = []
    for n in numbers:
        same = group and _common(history, group[0]) == _common(history, n)
        free = n % BATCH not in {m % BATCH for m in group}
        if group and not (same and free and history.picture(n).parent not in group):
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def _common(history: History, n: int) -> tuple:
    """What the pictures of one call have in common."""
    picture = history.picture(n)
    parent = None if picture.parent is None else history.picture(picture.parent)
    return picture.scale, picture.guidance, picture.strength, picture.hints, parent and parent.scale


def _draw(generator: Generator, history: History, group: Sequence[int], held: Mapping[int, np.ndarray]) -> dict:
    places = {n % BATCH: n for n in group}
    numbers = [places.get(place, group[0]) for place in range(BATCH)]
    pictures = [history.picture(n) for n in numbers]
    scale, guidance, strength, hints, _ = _common(history, group[0])
    asked = {prompt: generator.cond(scale, prompt, guidance, hints) for prompt in {p.prompt for p in pictures}}
    conds, scales = zip(*(asked[p.prompt] for p in pictures), strict=True)
    cond = jax.tree.map(lambda *a: jnp.concatenate([jnp.asarray(each) for each in a]), *conds)
    keys = jnp.concatenate(
        [keys_at(seed_key(p.seed), jnp.array([n - 1])) for n, p in zip(numbers, pictures, strict=True)]
    )
    image = _begin(generator, history, pictures, held), jnp.float32(1 if strength is None else strength)
    params, sample = generator.stage(scale).params, generator.sampler(scale, scales[0] != 1)
    x0, decoded = jax.device_get(gather(sample(params, keys, cond, jnp.float32(scales[0]), image=image)))
    return {n: Drawn(x0[n % BATCH], decoded[n % BATCH]) for n in group}


def _begin(
    generator: Generator, history: History, pictures: Sequence[Picture], held: Mapping[int, np.ndarray]
) -> Array:
    """What the pictures are made of, at their size; zeros where that is nothing."""
    scale, parent = pictures[0].scale, pictures[0].parent
    if parent is None:
        return jnp.zeros((BATCH, *generator.stage(scale).medium.shape))
    x0 = jnp.stack([jnp.asarray(held[p.parent]) for p in pictures if p.parent is not None])
    if history.picture(parent).scale == scale:
        return x0
    return generator.enlarge(scale)(x0)
