"""Text encoders and tokenizers: from prompts to the tokens and vectors that condition a network."""

from jaxdiff.text.bert import Bert, sentence_embedding
from jaxdiff.text.clip import CLIPText
from jaxdiff.text.parts import Encoded, as_apply, init
from jaxdiff.text.t5 import T5Encoder
from jaxdiff.text.tokenizer import tokenizer

__all__ = ["Bert", "CLIPText", "Encoded", "T5Encoder", "as_apply", "init", "sentence_embedding", "tokenizer"]
