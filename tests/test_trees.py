"""Paths in trees: names are those that checkpoints on disk have."""

import collections

import numpy as np
import pytest

from jaxdiff import trees

Pair = collections.namedtuple("Pair", "mean std")
NESTED = {"b": {"x.0": {"kernel": 1, "bias": 2}}, "a": 3}


def test_keys_of_dicts_fields_and_indices():
    tree = {"layer.*": Pair([np.zeros(1)], {"kernel": np.ones(1)})}
    assert list(trees.leaves(tree)) == [("layer.*", "mean", "0"), ("layer.*", "std", "kernel")]
    assert list(trees.flatten(tree)) == ["layer.*/mean/0", "layer.*/std/kernel"]
    assert trees.flatten(tree)["layer.*/std/kernel"][0] == 1


def test_leaves_come_in_the_order_of_the_tree_and_nest_again():
    assert trees.flatten(NESTED) == {"a": 3, "b/x.0/bias": 2, "b/x.0/kernel": 1}
    assert list(trees.flatten(NESTED).values()) == [3, 2, 1]
    assert trees.nest(trees.flatten(NESTED)) == NESTED


def test_an_entry_is_put_beside_others():
    tree = {"a": {"b": 1}}
    trees.put(tree, ("a", "c", "d"), 2)
    trees.put(tree, ("e",), 3)
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": 3} and trees.get(tree, ("a", "c", "d")) == 2


@pytest.mark.parametrize(
    ("path", "axes"), [(("a", "kernel"), 0), (("b.*", "kernel"), 1), (("b.*", "c.*", "k"), 2), (("a.*b", "k"), 0)]
)
def test_stacked_layers_have_an_axis_each(path, axes):
    assert trees.stack_axes(path) == axes
