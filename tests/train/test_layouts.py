"""Orders of arrays in memory, as cuDNN reads them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.sharding import make_mesh
from jaxdiff.train.layouts import format_of, inner_axes


def _order(name, *shape):
    """The axes in memory, the outermost first, of an array in a tree."""
    sharding = NamedSharding(make_mesh(), P())
    path = tuple(map(jax.tree_util.DictKey, name.split("/")))
    placed = format_of(path, sharding, jax.ShapeDtypeStruct(shape, np.float32))
    return None if placed is sharding else placed.layout.major_to_minor


def test_kernels_of_convolutions_lie_as_cudnn_reads_them():
    assert _order("params/conv/kernel", 3, 3, 64, 128) == (3, 0, 1, 2)
    assert _order("opt/mu/large/conv/kernel", 5, 64, 128) == (2, 0, 1)
    assert _order("params/blocks.*/conv/kernel", 7, 3, 3, 64, 128) == (0, 4, 1, 2, 3)  # of stacked layers
    assert _order("params/conv/kernel", 1, 1, 64, 128) == (3, 0, 1, 2)
    assert _order("params/blocks.*/dense/kernel", 7, 64, 128) is None
    assert _order("params/table/embedding", 3, 3, 64, 128) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [("c/kernel", (3, 3, 4, 8)), ("d/kernel", (4, 8)), ("c/kernel", (1, 1, 4, 8)), ("bias", (8,)),
     ("b.*/d/kernel", (7, 4, 8)), ("b.*/c/kernel", (7, 3, 3, 4, 8))],
)  # fmt: skip
def test_the_outermost_axis_in_memory_is_left(name, shape):
    path = tuple(map(jax.tree_util.DictKey, name.split("/")))
    order = _order(name, *shape) or tuple(range(len(shape)))
    assert inner_axes(path, shape) == tuple(sorted(order[1:]))
