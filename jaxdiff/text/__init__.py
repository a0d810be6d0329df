"""Text encoders, tokenizers and CLIP's image encoder: from prompts to what conditions a network."""

from jaxdiff.text.bert import Bert, sentence_embedding
from jaxdiff.text.clip import CLIPText
from jaxdiff.text.clip_image import CLIPImage, clip_pixels
from jaxdiff.text.parts import Encoded, as_apply, init
from jaxdiff.text.synonyms import nearest_words
from jaxdiff.text.t5 import T5Encoder
from jaxdiff.text.tokenizer import tokenizer
from jaxdiff.text.vocabulary import Vocabulary, split_words

__all__ = [
    "Bert", "CLIPImage", "CLIPText", "Encoded", "T5Encoder", "Vocabulary", "as_apply", "clip_pixels", "init",
    "nearest_words", "sentence_embedding", "split_words", "tokenizer",
]  # fmt: skip
