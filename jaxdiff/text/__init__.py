"""Text encoders and tokenizers: from prompts to the tokens and vectors that condition a network."""

from jaxdiff.text.bert import Bert, sentence_embedding
from jaxdiff.text.clip import CLIPText
from jaxdiff.text.parts import Encoded, as_apply, init
from jaxdiff.text.synonyms import nearest_words
from jaxdiff.text.t5 import T5Encoder
from jaxdiff.text.tokenizer import tokenizer
from jaxdiff.text.vocabulary import Vocabulary, split_words

__all__ = [
    "Bert", "CLIPText", "Encoded", "T5Encoder", "Vocabulary", "as_apply", "init", "nearest_words",
    "sentence_embedding", "split_words", "tokenizer",
]  # fmt: skip
