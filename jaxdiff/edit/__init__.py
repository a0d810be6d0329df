"""Editing a picture with a trained run or a text-to-image directory."""

from jaxdiff.edit.draw import STYLE_WEIGHT, check_canvas, check_part, edit
from jaxdiff.edit.source import Method

__all__ = ["STYLE_WEIGHT", "Method", "check_canvas", "check_part", "edit"]
