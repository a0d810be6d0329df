"""Text to image: Stable Diffusion 1, 2, XL, 3 and Flux, from a directory to one pure function of prompts."""

from jaxdiff.text_to_image.index import encode_prompts, prompt_encoder
from jaxdiff.text_to_image.pipeline import Pipeline, describe, load

__all__ = ["Pipeline", "describe", "encode_prompts", "load", "prompt_encoder"]
