"""The rule of keys: every tensor fills one place, every place is filled by its own tensors."""

import jax
import numpy as np
import pytest
from helpers.tiny_model import tensors, tiny

from jaxdiff.interop.formats.keys import flatten, places

TREE = {
    "conv": {"kernel": np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5), "bias": np.arange(5.0)},
    "blocks.*": {"to_q": {"kernel": np.arange(24.0).reshape(2, 3, 4)}, "table": np.arange(12.0).reshape(2, 2, 3)},
    "norm": {"scale": np.ones(3)},
    "tokens": {"embedding": np.arange(6.0).reshape(2, 3)},
    "pos_embed": np.ones((1, 2, 3)),
    "gain": np.float32(2),
}


def same(key):
    return key


def test_names_and_layouts():
    assert {key: place.shape for key, place in places(TREE, same).items()} == {
        "conv.weight": (5, 4, 2, 3),
        "conv.bias": (5,),
        "blocks.0.to_q.weight": (4, 3),
        "blocks.1.to_q.weight": (4, 3),
        "blocks.0.table": (2, 3),
        "blocks.1.table": (2, 3),
        "norm.weight": (3,),
        "tokens.weight": (2, 3),
        "pos_embed": (1, 2, 3),
        "gain": (),
    }
    held = dict(flatten(TREE, same))
    kernel = TREE["conv"]["kernel"]
    assert held["conv.weight"][4, 3, 1, 2] == kernel[1, 2, 3, 4]
    assert held["blocks.1.to_q.weight"][3, 2] == TREE["blocks.*"]["to_q"]["kernel"][1, 2, 3]
    assert held["blocks.1.table"][0, 2] == TREE["blocks.*"]["table"][1, 0, 2]
    assert held["tokens.weight"][1, 2] == TREE["tokens"]["embedding"][1, 2]
    assert held["gain"].shape == () and all(value.flags.c_contiguous for value in held.values())


def test_the_map_is_a_bijection():
    """Every element of the tree is in exactly one tensor, once; every tensor is all of one place."""
    count = iter(range(10**6))
    tree = jax.tree.map(lambda a: np.array([next(count) for _ in range(a.size)]).reshape(a.shape), TREE)
    held = dict(flatten(tree, same))
    elements = np.concatenate([value.ravel() for value in held.values()])
    assert sorted(elements) == list(range(next(count)))
    assert held.keys() == places(tree, same).keys()
    # And back, by the place alone.
    for key, place in places(tree, same).items():
        leaf = tree
        for segment in place.path:
            leaf = leaf[segment]
        ours = leaf if place.layer is None else leaf[place.layer]
        np.testing.assert_array_equal(held[key].transpose(place.axes), ours)


def test_only_what_is_asked_for():
    assert [key for key, _ in flatten(TREE, same, ["gain", "blocks.1.table"])] == ["gain", "blocks.1.table"]


def test_the_reference_s_names():
    built = tiny({}, np.float32)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    assert {key: place.shape for key, place in places(shapes, built.rename).items()} == {
        key: value.shape for key, value in tensors().items()
    }


def test_refuses_two_leaves_of_one_name():
    with pytest.raises(ValueError, match=r"norm.scale|'norm.weight', which is taken"):
        places({"norm": {"scale": np.ones(2), "weight": np.ones(2)}}, same)
    with pytest.raises(ValueError, match="which is taken"):
        places(TREE, lambda key: key.replace(".1.", ".0."))
    with pytest.raises(ValueError, match="which is none"):
        places(TREE, lambda key: None)
    with pytest.raises(ValueError, match="not within each other"):
        places({"a.*": {"b.*": {"bias": np.ones((2, 3, 4))}}}, same)
