"""Data: sources of images, and the Grain pipeline of a deterministic stream of batches."""

from jaxdiff.data.hints import Hinted, open_hints
from jaxdiff.data.pipeline import batches, load_arrays
from jaxdiff.data.shards import Shards, open_table
from jaxdiff.data.skipping import Skipping
from jaxdiff.data.sources import ArraySource, Source, class_prompts, open_source
from jaxdiff.data.transforms import to_float, to_uint8

__all__ = [
    "ArraySource",
    "Hinted",
    "Shards",
    "Skipping",
    "Source",
    "batches",
    "class_prompts",
    "load_arrays",
    "open_hints",
    "open_source",
    "open_table",
    "to_float",
    "to_uint8",
]
