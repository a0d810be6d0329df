"""What tensors tell by names and shapes: what is missing, odd or no number that counts is said."""

from types import SimpleNamespace

import pytest

from jaxdiff.interop.formats.shapes import check_count, count, shape, side
from jaxdiff.interop.models.blocks import unet_layout

HELD = {f"down.{i}.x": SimpleNamespace(shape=(i, 4)) for i in range(3)} | {"flat": SimpleNamespace(shape=(5,))}


def test_shapes_and_sides():
    assert shape(HELD, "down.2.x", 2) == (2, 4) and side(HELD, "down.2.x", 0) == 2 and side(HELD, "down.2.x", 1) == 4
    for name, words in (("up", "up is missing"), ("down.0.x", "must have elements"), ("flat", "no axis 1")):
        with pytest.raises(ValueError, match=words):
            side(HELD, name, 1)
    with pytest.raises(ValueError, match=r"flat must have 2 axes and elements, got \(5,\)"):
        shape(HELD, "flat", 2)


def test_counts():
    assert count(HELD, "down") == 3 and count(HELD, "up") == 0 and check_count(HELD, 4, "x") == 4
    for name in ("down.4.x", f"down.{10**12}.x"):
        with pytest.raises(ValueError, match=r"\d+ of down are named, and there are \d tensors"):
            count({"a": None, name: None}, "down")
    with pytest.raises(ValueError, match="output_blocks are named"):
        unet_layout([f"output_blocks.{10**12}.0.x"])
