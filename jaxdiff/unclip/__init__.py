"""Pictures from the embeddings of texts and of other pictures (unCLIP: Ramesh et al. 2022, arXiv:2204.06125).

caption -> text embedding -> prior -> image embedding -> decoder -> picture
picture -> image embedding -> decoder -> variations
"""

from jaxdiff.unclip.decoders import Decoder, decoder, of_embeddings
from jaxdiff.unclip.embedders import Embedder, embedded_loss, load_embedder
from jaxdiff.unclip.encoders import image_text_experiment
from jaxdiff.unclip.priors import Prior, direct_prior, load_prior, of_texts, prior, prior_medium, prior_sampler
from jaxdiff.unclip.sphere import slerp, text_difference

__all__ = [
    "Decoder",
    "Embedder",
    "Prior",
    "decoder",
    "direct_prior",
    "embedded_loss",
    "image_text_experiment",
    "load_embedder",
    "load_prior",
    "of_embeddings",
    "of_texts",
    "prior",
    "prior_medium",
    "prior_sampler",
    "slerp",
    "text_difference",
]
