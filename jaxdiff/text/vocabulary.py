"""Words as tokens: the vocabulary of a set of captions."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from jaxdiff.messages import listed

__all__ = ["Vocabulary", "split_words"]

# Tokens before those of the words: padding, and the start of every text, which is all that an empty one has.
PAD, START, SPECIAL = 0, 1, 2
# Combining classes of what makes another word of a word: vowels of India and Thailand, voiced kana. The others are of
# accents, and of the points of Hebrew and Arabic, which may as well be left out.
SIGNS = {0, *range(6, 10), *range(84, 200)}


def split_words(text: str) -> list[str]:
    """Split a text into its words, in lower case, without accents and punctuation.

    >>> split_words("A piñata, 2 T-shirts")
    ['a', 'pinata', '2', 't', 'shirts']
    """
    # Twice: of a trademark sign the first makes capitals, of a folded letter the second takes the accent.
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = (c if c.isalnum() or _is_sign(c) else "" if unicodedata.combining(c) else " " for c in letters)
    return "".join(kept).split()


def _is_sign(c: str) -> bool:
    selects = "\ufe00" <= c <= "\ufe0f"  # how an emoji is drawn
    return unicodedata.category(c) in ("Mc", "Mn") and unicodedata.combining(c) in SIGNS and not selects


@dataclass(frozen=True)
class Vocabulary:
    """The words of a set of captions, each of which is a token.

    Attributes:
        words: distinct, as `split_words` returns them; word i is token i + 2.
        length: tokens of a text: its start, its words, and padding.
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.words or len(set(self.words)) != len(self.words):
            raise ValueError(f"a vocabulary needs distinct words, at least one, got {len(self.words)}")
        wrong = [word for word in self.words if split_words(word) != [word]]
        if wrong:
            raise ValueError(f"the words of a vocabulary are as split_words returns them, got {listed(wrong)}")
        if self.length < 2:
            raise ValueError(f"length must hold the start of a text and a word, got {self.length}")

    @classmethod
    def of(cls, captions: Iterable[str], *, length: int = 2) -> Vocabulary:
        """Collect the words of captions, in alphabetical order: the order of the captions has no influence.

        Args:
            captions: texts.
            length: see `Vocabulary`; at least, since the longest caption fits in any case.

        Raises:
            ValueError: the captions have no words.
        """
        texts = [split_words(caption) for caption in captions]
        longest = max(map(len, texts), default=0)
        words = tuple(sorted({word for text in texts for word in text}))
        if not words:
            raise ValueError(f"the captions have no words, which are of letters or digits: {len(texts)} captions")
        return cls(words, max(longest + 1, length))

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.words) + SPECIAL

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i + SPECIAL for i, word in enumerate(self.words)}

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks."""
        return [word for word in dict.fromkeys(split_words(text)) if word not in self._ids]

    def tokenize(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Turn texts into tokens.

        Args:
            texts: B of them.

        Returns:
            {"ids": int32 [B, length], "mask": bool [B, length]}; the mask is True for the start and the words. An
            empty text has its start alone.

        Raises:
            ValueError: a word is unknown, a text is too long, or the texts are one string.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of strings, got one string")
        ids = np.full((len(texts), self.length), PAD, np.int32)
        for tokens, text in zip(ids, texts, strict=True):
            words, unknown = split_words(text), self.unknown(text)
            if unknown:
                raise ValueError(self.explain(unknown))
            if len(words) >= self.length:
                raise ValueError(f"{text!r:.80} has {len(words)} words; a text has at most {self.length - 1}")
            tokens[: len(words) + 1] = [START, *(self._ids[word] for word in words)]
        return {"ids": ids, "mask": ids != PAD}

    def explain(self, unknown: Sequence[str]) -> str:
        """Say which words are unknown, and which known ones are spelled like them."""
        near = [f"{word!r}{self._near(word)}" for word in unknown]
        many = "s" if len(near) > 1 else ""
        return f"unknown word{many} {listed(near)}: {len(self.words)} words are known, such as {listed(self.words, 3)}"

    def _near(self, word: str) -> str:
        found = get_close_matches(word, self.words, n=3)
        return f" (did you mean {' or '.join(found)}?)" if found else ""
