"""Prompts as a condition: which are shown, what is parsed, and what stands for none."""

import re

import numpy as np
import pytest

from jaxdiff import conditions
from jaxdiff.conditions import Condition
from jaxdiff.drawing import Asked, _conditions, _turns
from jaxdiff.recipe import check_vocabulary, keep_vocabulary
from jaxdiff.text import Vocabulary

WORDS = Vocabulary.of(["a cat", "a dog", "two cats"], length=4)


def encode(params, cond):
    return {"tokens": params * cond["ids"][..., None], "mask": cond["mask"]}


def test_prompts_take_turns_and_the_last_are_held_out():
    condition = conditions.prompts(WORDS.tokenize, encode, captions=["a cat", "a dog"], held_out=["two cats"])
    assert condition.choices == 3 and condition.names == ("a cat", "a dog", "two cats") and condition.held_out == (2,)
    cond = condition.choose(np.arange(1, 5))
    for i, name in enumerate(["a dog", "two cats", "a cat", "a dog"]):
        np.testing.assert_array_equal(cond["ids"][i], WORDS.tokenize([name])["ids"][0])
    assert {name: (spec.shape, spec.dtype) for name, spec in condition.spec.items()} == {
        "ids": ((4,), np.int32),
        "mask": ((4,), bool),
    }


def test_samples_have_the_words_that_they_are_of():
    condition = conditions.prompts(WORDS.tokenize, encode, captions=["a cat", "a dog"], held_out=["two cats"])
    names = "two dog", "cat"
    for asked, choices in (
        (None, 3),
        (Asked(WORDS.tokenize(names), names), 2),
        (Asked(WORDS.tokenize(["a"]), ("a",)), 0),
    ):
        cond, shown = _conditions(condition, asked, 7), _turns(condition, asked, 7)
        np.testing.assert_array_equal(cond["ids"], WORDS.tokenize(shown["names"])["ids"])
        assert shown["choices"] == choices and len(set(shown["names"])) == max(choices, 1)
        if asked is None:
            assert shown["held_out"].tolist() == [False, False, True] * 2 + [False]
        else:
            assert shown["held_out"] is None and shown["names"][: len(asked.names)] == asked.names


def test_the_words_of_a_run_are_kept(tmp_path):
    def of(*words):
        return conditions.prompts(WORDS.tokenize, encode, vocabulary=words)

    keep_vocabulary(tmp_path, of())
    check_vocabulary(tmp_path, of("a"))  # of another kind of condition nothing is kept
    keep_vocabulary(tmp_path, of("a", "ñ"))
    check_vocabulary(tmp_path, of("a", "ñ"))
    for words, change in (
        (("a", "b", "ñ"), "new are b"),
        (("a",), "lost are ñ"),
        (("b", "ñ"), "new are b, lost are a"),
    ):
        with pytest.raises(ValueError, match=f"other words than in its training: {change}$"):
            check_vocabulary(tmp_path, of(*words))


def test_the_null_condition_is_the_empty_text():
    condition = conditions.prompts(WORDS.tokenize, encode)
    empty = WORDS.tokenize(["", ""])
    for cond in (condition.choose(np.arange(2)), condition.without(WORDS.tokenize(["a cat", "two"]))):
        assert cond.keys() == empty.keys() and all(np.array_equal(cond[name], empty[name]) for name in empty)
    assert condition.choices == 0 and condition.names == ()


def test_a_prompt_is_rephrased_and_must_not_be_empty():
    condition = conditions.prompts(WORDS.tokenize, encode, rephrase=lambda prompt: prompt.replace("kitten", "cat"))
    assert np.array_equal(condition.parse("A kitten")["ids"], WORDS.tokenize(["a cat"])["ids"])
    for words in ("", "  "):
        with pytest.raises(ValueError, match="got an empty one"):
            condition.parse(words)
    for words in ("🍕", "???", " - "):  # whose tokens are those of the null condition
        for parse in (condition.parse, condition.parse_text):
            with pytest.raises(ValueError, match=f"{re.escape(repr(words))} has no words"):
                parse(words)
    assert np.array_equal(condition.parse("a dog 🍕")["ids"], condition.parse("a dog")["ids"])
    with pytest.raises(ValueError, match="unknown word 'mouse'"):
        condition.parse("a mouse")


def test_a_loss_is_given_an_encoding_network():
    condition = conditions.prompts(WORDS.tokenize, encode)
    apply = lambda params, x, noise, cond, *, key=None: (params, x, noise, cond["tokens"], key)  # noqa: E731
    params, x, noise, tokens, key = condition.encoded(apply)(3, 5, 7, WORDS.tokenize(["a"]), key=11)
    assert (params, x, noise, key) == (3, 5, 7, 11) and tokens[0, :, 0].tolist() == [3, 6, 0, 0]


def test_held_out_choices_are_among_the_choices():
    with pytest.raises(ValueError, match=r"condition\.held_out must be an integer from 0 to 1, got 2"):
        Condition({}, dict, dict, choices=2, held_out=(2,))
