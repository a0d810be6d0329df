"""Words as tokens, and the nearest known word in place of an unknown one."""

import numpy as np
import pytest

from jaxdiff.text import Vocabulary, nearest_words, split_words

CAPTIONS = ["a red heart", "Cat and dog", "a small piñata on the left"]


def test_words_have_no_case_accents_or_punctuation():
    assert split_words("A  PIÑATA, 2 T-shirts!") == ["a", "pinata", "2", "t", "shirts"]
    assert split_words("Coca-Cola™ № ÉTÉ İ") == ["coca", "colatm", "no", "ete", "i"]  # signs that are made of capitals
    assert split_words("man's shoe_left") == ["man", "s", "shoe", "left"] and split_words(" .,") == []


@pytest.mark.parametrize("words", ["का की कु", "கி கு", "กี กิ", "กุ กู", "が か", "क्या कया"])
def test_signs_of_vowels_are_no_accents(words):
    found = split_words(words)
    assert len(set(found)) == len(words.split()) and [split_words(word) for word in found] == [[word] for word in found]


def test_signs_of_emoji_are_no_words():
    assert split_words("\u2764\ufe0f 2\ufe0f\u20e3 x\u0338 \u05e9\u05b8") == ["2", "x", "\u05e9"]


def test_tokens_are_the_words_in_their_order_behind_the_start():
    vocabulary = Vocabulary.of(CAPTIONS)
    assert vocabulary.words == ("a", "and", "cat", "dog", "heart", "left", "on", "pinata", "red", "small", "the")
    assert vocabulary.length == 7 and vocabulary.size == 13
    assert Vocabulary.of(CAPTIONS[::-1] * 2) == Vocabulary.of(CAPTIONS, length=5) == vocabulary
    assert Vocabulary.of(CAPTIONS, length=9).length == 9
    made = vocabulary.tokenize(["dog and CAT", "", CAPTIONS[2]])
    assert made["ids"].dtype == np.int32 and made["mask"].dtype == bool
    assert made["mask"].sum(1).tolist() == [4, 1, 7]
    for ids, mask, text in zip(made["ids"], made["mask"], ["dog and cat", "", CAPTIONS[2]], strict=True):
        start, *rest = ids[mask]
        assert start == 1 and not ids[~mask].any()
        assert [vocabulary.words[i - 2] for i in rest] == split_words(text)
    assert len({tuple(ids) for ids in vocabulary.tokenize(["cat and dog", "dog and cat"])["ids"]}) == 2


def test_what_has_no_tokens_is_refused():
    vocabulary = Vocabulary.of(CAPTIONS)
    with pytest.raises(ValueError, match=r"unknown word 'hart' \(did you mean heart\?\): 11 words are known"):
        vocabulary.tokenize(["a red hart"])
    with pytest.raises(ValueError, match="unknown words 'xylophone', 'zebra': "):
        vocabulary.tokenize(["xylophone, zebra xylophone"])
    full = "a red heart on the left"
    assert vocabulary.tokenize([full])["mask"].all()
    with pytest.raises(ValueError, match="has 7 words; a text has at most 6"):
        vocabulary.tokenize([f"{full} and"])
    with pytest.raises(ValueError, match="got one string"):
        vocabulary.tokenize("cat")
    for words, length in (((), 3), (("a", "a"), 3), (("A",), 3), (("a b",), 3), (("a",), 1)):
        with pytest.raises(ValueError, match=r"vocabulary|length"):
            Vocabulary(words, length)


# Directions in the plane, in degrees.
ANGLES = {"kitten": 4.0, "car": 170.0, "cat": 0.0, "dog": 30.0, "bus": 200.0, "sky": 90.0, "nothing": 270.0}


def embed(texts):
    angle = np.deg2rad([ANGLES[text] for text in texts])
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_the_nearest_word_by_the_angle():
    known = ["sky", "dog", "cat", "bus"]
    assert nearest_words(["kitten", "nothing", "car"], known, embed) == {"kitten": "cat", "car": "bus"}
    assert nearest_words(["nothing"], known, embed, least=0.3) == {"nothing": "bus"}
    assert nearest_words([], known, embed) == {}
