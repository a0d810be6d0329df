"""Editing a picture with a trained run or a text-to-image directory."""

from jaxdiff.edit.draw import edit
from jaxdiff.edit.source import METHODS

__all__ = ["METHODS", "edit"]
