"""What a model makes: one file for each kind, each of which returns a Medium."""

from jaxdiff.media.base import Evaluator, Medium, Report, Samples
from jaxdiff.media.captioned import captioned
from jaxdiff.media.compositions import compositions
from jaxdiff.media.embeddings import embeddings
from jaxdiff.media.hinted import edge_scores, hinted
from jaxdiff.media.images import images
from jaxdiff.media.latents import latents
from jaxdiff.media.points import points
from jaxdiff.media.reconstructions import reconstructions
from jaxdiff.media.unconditional import unconditional

__all__ = [
    "Evaluator", "Medium", "Report", "Samples", "captioned", "compositions", "edge_scores", "embeddings",
    "hinted", "images", "latents", "points", "reconstructions", "unconditional",
]  # fmt: skip
