"""Data: sources of images, and a Grain pipeline that streams deterministic batches."""

from jaxdiff.data.captions import captions_of, preview_captions
from jaxdiff.data.compositions import Compositions
from jaxdiff.data.folder import read_image
from jaxdiff.data.hints import Hinted, edges, low_resolution, open_hints
from jaxdiff.data.pairs import Pairs, pairs_of
from jaxdiff.data.pipeline import batches, load_arrays, read_ahead
from jaxdiff.data.shards import NpzShards, load_embeddings
from jaxdiff.data.skipping import Skipping
from jaxdiff.data.sources import ArraySource, Dataset, class_prompts, has_captions, open_dataset
from jaxdiff.data.transforms import to_float, to_uint8

__all__ = [
    "ArraySource",
    "Compositions",
    "Dataset",
    "Hinted",
    "NpzShards",
    "Pairs",
    "Skipping",
    "batches",
    "captions_of",
    "class_prompts",
    "edges",
    "has_captions",
    "load_arrays",
    "load_embeddings",
    "low_resolution",
    "open_dataset",
    "open_hints",
    "pairs_of",
    "preview_captions",
    "read_ahead",
    "read_image",
    "to_float",
    "to_uint8",
]
