"""Tokenizers of small vocabularies, read from their files; ids worked out by hand."""

import json
import sys

import numpy as np
import pytest

from jaxdiff import text

pytest.importorskip("tokenizers")

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP = ["a", "b", "a</w>", "b</w>", "ab</w>", "!", "!</w>", START, END]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "cafe", "!"]


def clip(directory, **config):
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(CLIP)}))
    (directory / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return configured(directory, **config)


def bert(directory, **config):
    (directory / "vocab.txt").write_text("\n".join(BERT) + "\n")
    return configured(directory, **config)


def configured(directory, **config):
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_clip(tmp_path):
    encode = text.tokenizer(clip(tmp_path, model_max_length=6))
    with pytest.warns(UserWarning, match="a text is longer than 6 tokens, and is read without 'a a'") as warned:
        ids, mask = encode(["AB \n a!", "aab", "", "a a a a a a"])
    assert len(warned) == 1
    assert ids.tolist() == [[7, 4, 2, 6, 8, 8], [7, 0, 4, 8, 8, 8], [7, 8, 8, 8, 8, 8], [7, 2, 2, 2, 2, 8]]
    assert mask.sum(1).tolist() == [5, 4, 2, 6], "the end that ends a text is seen, those that pad are not"
    assert mask[:, 0].all()
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
    assert encode([])[0].shape == (0, 6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_max_length": "8"}, "model_max_length must be a number"),
        ({"model_max_length": 8, "padding_side": "up"}, "padding_side must be 'right' or 'left', got 'up'"),
        ({"model_max_length": 8, "pad_token": {"content": 3}}, "pad_token must be a token"),
        ({"model_max_length": 8, "added_tokens_decoder": {"8": {"content": END, "lstrip": 1}}}, "added_tokens_decoder"),
        ({"model_max_length": 8, "added_tokens_decoder": []}, "added_tokens_decoder must be an object"),
    ],
)
def test_a_config_of_other_types(tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        text.tokenizer(clip(tmp_path, **config))


def test_files_that_the_library_cannot_read(tmp_path, monkeypatch):
    clip(tmp_path, model_max_length=8)
    (tmp_path / "added_tokens.json").write_text('{"<new>": "9"}')
    with pytest.raises(ValueError, match=r"added_tokens\.json must be an object"):
        text.tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no tokenizer that can be read"):
        text.tokenizer(tmp_path)
    monkeypatch.setattr(sys.modules["jaxdiff.text.tokenizer"], "JSON_BYTES", 10)  # a function has the name, too
    with pytest.raises(ValueError, match=r"has .* bytes, and at most 10 are read"):
        text.tokenizer(tmp_path)


def test_bert(tmp_path):
    ids, mask = text.tokenizer(bert(tmp_path), length=6)(["Playing CAFÉ!", "zebra [MASK]"])
    assert ids.tolist() == [[2, 5, 6, 7, 8, 3], [2, 1, 4, 3, 0, 0]]
    assert mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    cased = text.tokenizer(bert(tmp_path, do_lower_case=False), length=6)
    assert cased(["Play play"])[0].tolist() == [[2, 1, 5, 3, 0, 0]]


@pytest.mark.parametrize("entry", ["!", {"content": "!", "normalized": False}])
def test_what_pads(tmp_path, entry):
    """The map of special tokens rules, but not where the configuration lists the added tokens."""
    clip(tmp_path, pad_token=END)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": entry}))
    assert text.tokenizer(tmp_path, length=4)(["a"])[0].tolist() == [[7, 2, 8, 5]]
    clip(tmp_path, pad_token=END, added_tokens_decoder={})
    assert text.tokenizer(tmp_path, length=4)(["a"])[0].tolist() == [[7, 2, 8, 8]]
    clip(tmp_path, pad_token=END, added_tokens_decoder={}, padding_side="left")
    assert text.tokenizer(tmp_path, length=4)(["a"])[0].tolist() == [[8, 7, 2, 8]]


def test_added_tokens(tmp_path):
    clip(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<toy>": 9}))
    assert text.tokenizer(tmp_path, length=5)(["a <toy>"])[0].tolist() == [[7, 2, 9, 8, 8]]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<toy>": 11}))
    with pytest.raises(ValueError, match="can't be token 11"):
        text.tokenizer(tmp_path, length=5)


def test_the_file_of_the_library_comes_first(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"cat": 3, "<pad>": 7, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    bert(tmp_path)
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no pad_token"):
        text.tokenizer(tmp_path, length=3)
    configured(tmp_path, pad_token="<pad>")
    assert text.tokenizer(tmp_path, length=3)(["cat dog"])[0].tolist() == [[3, 1, 7]]
    made.enable_padding(pad_id=7, pad_token="<pad>", length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    configured(tmp_path)
    assert text.tokenizer(tmp_path, length=3)(["cat cat cat cat", ""])[0].tolist() == [[3, 3, 3], [7, 7, 7]]


@pytest.mark.parametrize("length", [None, 1e30])
def test_no_length(tmp_path, length):
    with pytest.raises(ValueError, match="give a length"):
        text.tokenizer(bert(tmp_path, model_max_length=length))


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"must hold tokenizer\.json"):
        text.tokenizer(tmp_path, length=8)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a tokenizer\.json is needed"):
        text.tokenizer(tmp_path, length=8)
    bert(tmp_path, pad_token="<none>")
    with pytest.raises(ValueError, match="has no '<none>'"):
        text.tokenizer(tmp_path, length=8)
    bert(tmp_path, cls_token="<s>")
    with pytest.raises(ValueError, match="must have '<s>'"):
        text.tokenizer(tmp_path, length=8)
    bert(tmp_path)
    with pytest.raises(ValueError, match="got 2"):
        text.tokenizer(tmp_path, length=2)
    with pytest.raises(ValueError, match="one string"):
        text.tokenizer(tmp_path, length=8)("play")
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ValueError, match="is no JSON"):
        text.tokenizer(tmp_path, length=8)
