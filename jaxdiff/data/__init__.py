"""Data: sources of images, and the Grain pipeline that makes a deterministic stream of batches of them."""

from jaxdiff.data.pipeline import batches, load_arrays
from jaxdiff.data.sources import ArraySource, Source, open_source
from jaxdiff.data.transforms import to_float, to_uint8

__all__ = ["ArraySource", "Source", "batches", "load_arrays", "open_source", "to_float", "to_uint8"]
