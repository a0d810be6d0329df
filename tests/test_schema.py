"""What a value may be: each kind takes its own values and no other type's."""

import math

import numpy as np
import pytest

from jaxdiff.schema import FLAG, WORD, choice, each, either, integer, look_up, mapping, number, optional, whole_number

ODD = [None, True, 0, 1, 5, -1, 2**63, 0.5, 1e9, math.nan, math.inf, "", "a", [], [1], [1, 5], [[1]], {}, {"a": 1}]


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (whole_number(0, 5), [0, 1, 5]),
        (whole_number(1, 2**63), [1, 5, 2**63]),
        (number(0.0, 1.0), [0, 1, 0.5]),
        (number(-math.inf, math.inf), [0, 1, 5, -1, 2**63, 0.5, 1e9, math.inf]),
        (choice("a", 1, None), [None, 1, "a"]),
        (each(whole_number(0, 5), 2), [[1], [1, 5]]),
        (each(whole_number(0, 4), 1, 0), [[], [1]]),
        (each(each(whole_number(0, 5), 1), 1), [[[1]]]),
        (mapping(whole_number(0, 5), 1), [{}, {"a": 1}]),
        (mapping(WORD, 0), [{}]),
        (either(WORD, whole_number(5, 5)), [5, "", "a"]),
        (optional(FLAG), [None, True]),
        (FLAG, [None, True]),
    ],
)
def test_a_kind_holds_its_own(kind, held):
    found = [value for value in ODD if kind.holds(value)]
    assert repr(found) == repr(held)  # repr, since True == 1
    assert all(kind.check("x", value) is value for value in held)


def test_numbers_of_numpy_and_tuples_are_as_good():
    assert (
        whole_number(0, 5).holds(np.int64(5))
        and number(0, 1).holds(np.float32(0.5))
        and each(FLAG, 2).holds((True, False))
    )
    assert not whole_number(0, 1).holds(np.bool_(True)) and not WORD.holds("x" * 101)


def test_an_argument_is_an_integer_in_a_range():
    assert integer("n", np.int64(3), 1) == 3 and type(integer("n", np.int64(3), 1)) is int
    assert [integer("n", value, 1, 4) for value in (1, 4)] == [1, 4]
    for value in (0, 5, 2.0, True, np.bool_(True), "2", None):
        with pytest.raises(ValueError, match="n must be an integer from 1 to 4, got"):
            integer("n", value, 1, 4)
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got -1"):
        integer("n", -1, 1)


def test_what_is_said():
    with pytest.raises(ValueError, match=r"^n must be a whole number from 1 to 1,000 or null, got '2'$"):
        optional(whole_number(1, 1000)).check("n", "2")
    with pytest.raises(ValueError, match=r"^n must be a list of 1 to 3 values, each 'a' or 'b', got \['c'\]$"):
        each(choice("a", "b"), 3).check("n", ["c"])
    with pytest.raises(ValueError) as error:
        whole_number(0, 1).check("n", "x" * 10**6)
    assert len(str(error.value)) < 200


def test_a_name_of_a_table():
    assert look_up({"a": 3}, "a", "thing") == 3
    for name in ("b", None, ["a"], {}, 1):
        with pytest.raises(ValueError, match=r"unknown thing .* in here; there are: a"):
            look_up({"a": 3}, name, "thing", " in here")
