"""Tokenizers from the files of a Hugging Face directory, with the library `tokenizers` and without network access."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.schema import FLAG, Kind, choice, mapping, number, optional, whole_number
from jaxdiff.storage import JSON_BYTES, read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

Tokenizer = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

# An unset model_max_length is stored as about 1e30, which is no length.
LONGEST = 10**6
MOST = 10**7  # tokens of a vocabulary
CONTENT = Kind("a string of at most 10,000 characters", lambda v: isinstance(v, str) and len(v) <= 10_000)
SIDE = choice("right", "left")
FLAGS = "single_word", "lstrip", "rstrip", "normalized", "special"


def _is_token(value: Any) -> bool:
    if not isinstance(value, dict):
        return CONTENT.holds(value)
    return CONTENT.holds(value.get("content")) and all(isinstance(value.get(name, True), bool) for name in FLAGS)


TOKEN = Kind("a token: a string, or an object of its content and flags", _is_token)
CONFIG = {
    "added_tokens_decoder": mapping(TOKEN, MOST),
    "do_lower_case": FLAG,
    "model_max_length": optional(number(1, 1e40)),
    "padding_side": SIDE,
    "strip_accents": FLAG,
    "tokenize_chinese_chars": FLAG,
    "truncation_side": SIDE,
}
ADDED = mapping(whole_number(0, MOST), MOST)
# Contractions, words, single digits, and runs of anything else but spaces (Radford et al. 2021, their code).
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer(directory: str | Path, *, length: int | None = None, warn: bool = True) -> Tokenizer:
    """Read a tokenizer: tokenizer.json, or CLIP's vocab.json and merges.txt, or BERT's vocab.txt.

    Args:
        directory: the directory of the files, e.g. "tokenizer" or "tokenizer_2" of a pipeline.
        length: number of tokens of the result; None: model_max_length of its tokenizer_config.json.
        warn: tell of what longer texts are read without.

    Returns:
        texts -> (ids int32[B, length], mask bool[B, length]). Longer texts are truncated before their end token;
        shorter ones are padded. The mask is True for the text and its start and end tokens. It depends on
        positions, not on ids, since some models pad with the end token.

    Raises:
        ValueError: none of these files exist, or they define no length or padding.
    """
    directory = Path(directory)
    config = _read(directory / "tokenizer_config.json")
    for name, kind in CONFIG.items():
        if name in config:
            kind.check(f"{directory}: {name}", config[name])
    if length is None:
        length = config.get("model_max_length")
        if length is None or length > LONGEST:
            raise ValueError(f"{directory}: tokenizer_config.json has no model_max_length; give a length")
    with _named(directory):
        return _encoder(directory, config, int(length), warn)


def _encoder(directory: Path, config: dict[str, Any], length: int, warn: bool) -> Tokenizer:
    tokenizer, pad = _build(directory, config)
    if length <= tokenizer.num_special_tokens_to_add(False):
        raise ValueError(f"length must hold the tokens around a text and one more, got {length}")
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise ValueError(f"{directory}: the vocabulary has no {pad!r}, the token to pad with")
    tokenizer.enable_truncation(length, direction=config.get("truncation_side", "right"))
    tokenizer.enable_padding(direction=config.get("padding_side", "right"), pad_id=pad_id, pad_token=pad, length=length)

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of strings, got one string")
        with _named(directory):
            encodings = tokenizer.encode_batch(list(texts))
            ids = np.array([e.ids for e in encodings], np.int32).reshape(-1, length)  # an id may be too large
        mask = np.array([e.attention_mask for e in encodings], bool).reshape(-1, length)
        for words, e in zip(texts, encodings, strict=True):
            if warn and e.overflowing:
                places = [place for part in e.overflowing for place in part.offsets]
                cut = [place for place in places if place != (0, 0)] or places  # added tokens are of no place
                without = words[min(cut)[0] : max(cut)[1]]
                warnings.warn(f"a text is longer than {length} tokens, and is read without {without!r}", stacklevel=2)
        return ids, mask

    return encode


@contextlib.contextmanager
def _named(directory: Path) -> Iterator[None]:
    """Turn exceptions of the library, plain ones and Rust's panics, into a ValueError that names the directory."""
    try:
        yield
    except ValueError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{directory} holds no tokenizer that can be read: {error!s:.300}") from error


def _build(directory: Path, config: dict[str, Any]) -> tuple[Library, str]:
    """Return the library's tokenizer and the padding token."""
    from tokenizers import Tokenizer as Library

    roles = _roles(directory, config)
    files = {
        name for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt") if (directory / name).is_file()
    }
    for name in files:
        if (size := (directory / name).stat().st_size) > JSON_BYTES:
            raise ValueError(f"{directory / name} has {size:,} bytes, and at most {JSON_BYTES:,} are read")
    if "tokenizer.json" in files:
        tokenizer = Library.from_file(str(directory / "tokenizer.json"))
        if "pad_token" not in roles:
            if tokenizer.padding is None:
                raise ValueError(f"{directory} names no pad_token")
            roles["pad_token"] = _token(tokenizer.padding["pad_token"])
    elif {"vocab.json", "merges.txt"} <= files:
        end = _token("<|endoftext|>")
        roles = {"bos_token": _token("<|startoftext|>"), "eos_token": end, "unk_token": end, "pad_token": end} | roles
        tokenizer = _clip(directory, roles)
    elif "vocab.txt" in files:
        roles = {f"{role}_token": _token(f"[{role.upper()}]") for role in ("pad", "unk", "cls", "sep", "mask")} | roles
        tokenizer = _bert(directory, config, roles)
    elif (directory / "spiece.model").is_file():
        raise ValueError(
            f"{directory} has a spiece.model alone; a tokenizer.json is needed, which transformers makes of it: "
            "`AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)`"
        )
    else:
        raise ValueError(f"{directory} must hold tokenizer.json, or vocab.json and merges.txt, or vocab.txt")
    _add(tokenizer, directory, config)
    # Special tokens within a text are also recognized, as in the references: even "!", if it is the padding token.
    special = [token for token in roles.values() if tokenizer.token_to_id(token.content) is not None]
    tokenizer.add_special_tokens(special)
    return tokenizer, roles["pad_token"].content


def _clip(directory: Path, roles: dict[str, AddedToken]) -> Library:
    """Return CLIP's byte-pair encoding (Sennrich et al. 2016, algorithm 1) of bytes, with marked ends of words."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    files = str(directory / "vocab.json"), str(directory / "merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(*files, unk_token=roles["unk_token"].content, end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    _put_between(tokenizer, roles["bos_token"].content, roles["eos_token"].content, directory)
    return tokenizer


def _bert(directory: Path, config: dict[str, Any], roles: dict[str, AddedToken]) -> Library:
    """Return BERT's WordPiece, which matches the longest known piece first (Devlin et al. 2019, sec. 3)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocab = models.WordPiece.read_file(str(directory / "vocab.txt"))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=roles["unk_token"].content))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _put_between(tokenizer, roles["cls_token"].content, roles["sep_token"].content, directory)
    return tokenizer


def _put_between(tokenizer: Library, start: str, end: str, directory: Path) -> None:
    """Enclose every text in two tokens."""
    from tokenizers.processors import TemplateProcessing

    ids = {token: tokenizer.token_to_id(token) for token in (start, end)}
    if None in ids.values():
        raise ValueError(f"{directory}: the vocabulary must have {start!r} and {end!r}; another needs a tokenizer.json")
    tokenizer.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=list(ids.items()))


def _roles(directory: Path, config: dict[str, Any]) -> dict[str, AddedToken]:
    """Return the special tokens; special_tokens_map.json takes precedence over an old tokenizer_config.json."""
    named = config
    if "added_tokens_decoder" not in config:
        named = config | _read(directory / "special_tokens_map.json")
    roles = {name: v for name, v in named.items() if name.endswith("_token") and isinstance(v, str | dict)}
    return {name: _token(TOKEN.check(f"{directory}: {name}", v)) for name, v in roles.items()}


def _add(tokenizer: Library, directory: Path, config: dict[str, Any]) -> None:
    """Add tokens that are not in the vocabulary, e.g. those of a textual inversion."""
    from tokenizers import AddedToken

    added = {int(number): _token(value) for number, value in config.get("added_tokens_decoder", {}).items()}
    if not added:
        named = ADDED.check(f"{directory}: added_tokens.json", _read(directory / "added_tokens.json"))
        added = {number: AddedToken(content) for content, number in named.items()}
    for place, token in sorted(added.items(), key=lambda item: item[0]):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != place:
            raise ValueError(f"{directory}: {token.content!r} can't be token {place} of the vocabulary")


def _token(value: str | dict[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    options = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=value.get("special", True), **options)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
