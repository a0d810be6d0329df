"""What one may ask for: in turn, by words, and not at all."""

import numpy as np
import pytest

from jaxdiff import conditions
from jaxdiff.conditions import Condition

CLOTHES = conditions.label(3, ("Coat", "7", "Ankle boot"))


def test_classes_in_turn_by_number_and_by_name():
    label = CLOTHES.choose(np.arange(2, 7))["label"]
    assert label.tolist() == [2, 0, 1, 2, 0] and label.dtype == np.int32
    for words, number in (("Ankle boot", 2), ("0", 0), ("7", 1)):
        assert CLOTHES.parse(words)["label"].tolist() == [number]
    for words in ("3", "-1", "1.0", "coat", ""):
        with pytest.raises(ValueError, match=r"label must be in 0..2, or one of Coat, 7, Ankle boot; got"):
            CLOTHES.parse(words)
    assert CLOTHES.without({"label": np.array([0, 2], np.int32)})["label"].tolist() == [3, 3]
    assert conditions.label(3, null=10).null["label"].tolist() == [10]
    with pytest.raises(ValueError, match="--guidance 1"):
        conditions.label(3, null=None).check_null()
    with pytest.raises(ValueError, match="data with classes, got num_classes = 0"):
        conditions.label(0)
    assert {name: (a.shape, a.dtype) for name, a in CLOTHES.zeros().items()} == {"label": ((1,), np.int32)}


def test_a_scale_is_an_entry_of_each_example_that_can_be_set_again():
    condition = conditions.guidance_scale(CLOTHES, 3.0, 4.5)
    again = conditions.guidance_scale(condition, 1.5, 4.5)
    for made, scale in ((condition, 3.0), (again, 1.5)):
        for cond in (made.choose(np.arange(2)), made.parse("Ankle boot")):
            assert cond["guidance"].tolist() == [scale] * len(cond["label"]) and cond["guidance"].dtype == np.float32
        assert made.bounds == {"guidance": (1.0, 4.5)} and made.unasked == ("guidance",)
    assert condition.zeros()["guidance"].shape == (1,)
    for scale in (0.9, 4.6):
        with pytest.raises(ValueError, match=rf"has learned guidance from 1 to 4\.5, got {scale}"):
            conditions.guidance_scale(CLOTHES, scale, 4.5)


def test_a_hint_belongs_to_its_class_and_stays_without_it():
    pictures = np.arange(3, dtype=np.uint8).repeat(4).reshape(3, 2, 2, 1) * 100
    condition = conditions.hint(CLOTHES, pictures)
    cond = condition.choose(np.array([1, 5]))
    np.testing.assert_allclose(cond["hint"][:, 0, 0, 0], [100 / 255, 200 / 255], rtol=1e-6)
    np.testing.assert_array_equal(condition.parse("Ankle boot")["hint"][0], cond["hint"][1])
    empty = condition.without(cond)
    assert empty["label"].tolist() == [3, 3] and empty["hint"] is cond["hint"]
    assert condition.spec["hint"].shape == (2, 2, 1)


def test_several_pictures_of_a_choice_take_turns():
    """Classes in turn, and within each its pictures; what has none has no turn."""
    pictures = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    condition = conditions.hint(CLOTHES, pictures, [2, 0, 2, 2])
    cond = condition.choose(np.arange(7))
    assert cond["label"].tolist() == [0, 2, 0, 2, 0, 2, 0] and condition.choices == 3
    assert np.rint(255 * cond["hint"][:, 0, 0, 0]).tolist() == [1, 0, 1, 2, 1, 3, 1]
    assert condition.names == () and conditions.hint(CLOTHES, pictures, [2, 0, 1, 2]).names == CLOTHES.names
    assert condition.unasked == ("hint",)
    assert np.rint(255 * condition.parse("Ankle boot")["hint"][0, 0, 0, 0]) == 0
    with pytest.raises(ValueError, match="no picture of '7' among the 4 at hand"):
        condition.parse("7")
    alone = conditions.hint(conditions.none(), pictures).choose(np.arange(5))
    assert alone.keys() == {"hint"} and np.rint(255 * alone["hint"][:, 0, 0, 0]).tolist() == [0, 1, 2, 3, 0]
    texts = conditions.hint(conditions.text({"vector": np.arange(3.0)[:, None]}), pictures, [1, 1, 0, 1])
    assert texts.choose(np.arange(3))["vector"].tolist() == [[0], [1], [0]]
    assert np.rint(255 * texts.parse("1")["hint"][0, 0, 0, 0]) == 0
    for wrong in (pictures[0], pictures[:0], pictures.astype(np.float32)):
        with pytest.raises(ValueError, match=r"pictures must be uint8 \[N, H, W, C\], got "):
            conditions.hint(CLOTHES, wrong)
    for numbers in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, -1]):
        with pytest.raises(ValueError, match=r"numbers must be 4 choices in 0..2, one for each picture, got"):
            conditions.hint(CLOTHES, pictures, numbers)


def test_prompts_of_a_table():
    table = {"tokens": np.arange(12, dtype=np.float16).reshape(3, 2, 2), "vector": np.arange(3.0)[:, None]}
    condition = conditions.text(table)
    assert condition.choices == 2 and condition.spec["vector"].dtype == np.float32
    cond = condition.choose(np.arange(3))
    np.testing.assert_array_equal(cond["tokens"], table["tokens"][[0, 1, 0]])
    np.testing.assert_array_equal(condition.parse("1")["vector"], [[1.0]])
    np.testing.assert_array_equal(condition.without(cond)["vector"], [[2.0]] * 3)
    with pytest.raises(ValueError, match=r"a prompt's number in 0..1; got 2"):
        condition.parse("2")
    alone = conditions.text({"vector": np.zeros((1, 4), np.float16)})
    assert alone.choices == 0 and alone.choose(np.arange(3))["vector"].shape == (3, 4)
    with pytest.raises(ValueError, match="no prompts"):
        alone.parse("0")
    with pytest.raises(ValueError, match=r"as many rows in each array, at least 1, got \[1, 2\]"):
        conditions.text({"a": np.zeros((1, 2)), "b": np.zeros((2, 2))})


def test_a_picture_by_its_number():
    condition = conditions.picture((1, 2, 1), lambda index: np.stack([np.full((1, 2, 1), i, np.int64) for i in index]))
    cond = condition.choose(np.arange(2, 5))
    assert cond["x"][:, 0, 0, 0].tolist() == [2, 3, 4] and cond["x"].dtype == condition.spec["x"].dtype == np.float32
    np.testing.assert_array_equal(condition.parse("3")["x"], cond["x"][1:2])
    assert condition.choices == 0 and condition.null is None
    for words in ("-1", "a.png", "1.5"):
        with pytest.raises(ValueError, match=f"picture's number, at least 0; got {words}"):
            condition.parse(words)


def test_none():
    condition = conditions.none()
    assert condition.choose(np.arange(3)) == {} and condition.zeros() == {}
    assert condition.parse("") == {}  # nothing is asked for
    with pytest.raises(ValueError, match="no condition that guidance could lead to: use --guidance 1"):
        condition.check_null()
    with pytest.raises(ValueError, match="no condition to ask for, got '3'"):
        condition.parse("3")


def test_wrong_parts_are_refused_by_name():
    with pytest.raises(ValueError, match=r"condition.names must be 2, one for each choice, got 1"):
        Condition({}, dict, dict, choices=2, names=("a",))
    with pytest.raises(ValueError, match=r"condition.null must have entries of spec, \['label'\], got \['text'\]"):
        Condition(CLOTHES.spec, dict, dict, null={"text": np.zeros(1)})
