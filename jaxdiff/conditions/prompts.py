"""A prompt: a text, whose tokens are encoded on the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxdiff.conditions.base import Cond, Condition
from jaxdiff.parameterize import Params

__all__ = ["prompts"]

Tokenize = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def prompts(
    tokenize: Tokenize,
    encode: Callable[[Params, Cond], Cond],
    *,
    captions: Sequence[str] = (),
    held_out: Sequence[str] = (),
    rephrase: Callable[[str], str] = str,
    vocabulary: Sequence[str] = (),
) -> Condition:
    """The condition of prompts, as tokens: every prompt is of the same shapes, so that none compiles anew.

    Args:
        tokenize: B texts -> the condition's entries, leaves [B, ...]; raises a ValueError for a text that has none.
        encode: (params, entries) -> what the network is given.
        captions: what previews show.
        held_out: more captions for previews, which are not trained with.
        rephrase: a prompt of the command line -> one that `tokenize` knows.
        vocabulary: the words that `tokenize` knows, if these are a closed set.

    Returns:
        the condition; its null condition is the empty text. Without captions its choices are unconditional.
    """
    empty = {name: np.asarray(a) for name, a in tokenize([""]).items()}
    names = (*captions, *held_out)
    table = tokenize(names) if names else empty

    def choose(index: np.ndarray) -> Cond:
        return {name: np.asarray(a)[np.asarray(index) % max(len(names), 1)] for name, a in table.items()}

    def parse(words: str) -> Cond:
        if not words.strip():
            raise ValueError("a prompt is a text, got an empty one")
        cond = dict(tokenize([rephrase(words)]))
        if all(np.array_equal(a, empty[name]) for name, a in cond.items()):  # as of a vocabulary's are marks and emoji
            raise ValueError(f"a prompt is a text, and {words!r:.80} has no words")
        return cond

    return Condition(
        {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in empty.items()},
        choose,
        parse,
        choices=len(names),
        names=names,
        held_out=tuple(range(len(captions), len(names))),
        vocabulary=tuple(vocabulary),
        null=empty,
        encode=encode,
        parse_text=parse,
    )
