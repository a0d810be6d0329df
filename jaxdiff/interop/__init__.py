"""Other projects' checkpoints: Hugging Face directories, read and written without PyTorch."""

from jaxdiff.interop.checkpoint import Loaded, architecture, load, save
from jaxdiff.interop.keys import flatten

__all__ = ["Loaded", "architecture", "flatten", "load", "save"]
