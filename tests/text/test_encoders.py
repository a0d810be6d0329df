"""What holds of the text encoders whatever their weights; the references are in tests/parity/test_text.py."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import text
from jaxdiff.networks.attention import attend

SMALL = {"vocab_size": 20, "width": 16, "layers": 2, "num_heads": 2, "mlp_dim": 24}
CLIP = partial(text.CLIPText, **SMALL, max_length=6, eos=19)
T5 = partial(text.T5Encoder, **SMALL, head_dim=8, buckets=8, max_distance=6)
BERT = partial(text.Bert, **SMALL, max_length=6)
ALL = {"clip": CLIP, "t5": T5, "bert": BERT}
IDS = np.array([[5, 9, 19, 2, 19, 7], [19, 3, 4, 5, 6, 8]], np.int32)
each = pytest.mark.parametrize("name", ALL)


@cache
def params(name):
    return text.init(ALL[name](), jax.random.key(0))


def encode(module, weights, ids=IDS, mask=None):
    return jax.jit(text.as_apply(module))(weights, ids, mask)


@pytest.mark.slow
def test_later_tokens_of_clip():
    """A later token changes nothing of the earlier, visible or not."""
    later_and_hidden("clip")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_hidden_tokens(name):
    """A hidden token changes nothing of the visible."""
    later_and_hidden(name)


def later_and_hidden(name):
    apply, weights = jax.jit(text.as_apply(ALL[name]())), params(name)
    other, all_but_last = IDS.copy(), np.ones(IDS.shape, bool)
    other[:, -1] = 11
    all_but_last[:, -1] = False
    for mask, same in ((all_but_last, True), (np.ones_like(all_but_last), name == "clip")):
        a, b = (apply(weights, ids, mask).hidden for ids in (IDS, other))
        assert np.array_equal(a[:, :-1], b[:, :-1]) == same
        assert not np.array_equal(a[:, -1], b[:, -1])


@pytest.mark.slow
def test_where_clip_pools():
    weights = params("clip")
    first, largest = (encode(CLIP(eos=eos), weights) for eos in (5, None))
    hidden = np.asarray(first.hidden)
    np.testing.assert_allclose(first.pooled, hidden[[0, 1], [0, 3]], rtol=1e-5)
    np.testing.assert_allclose(largest.pooled, hidden[[0, 1], [2, 0]], rtol=1e-5)


@pytest.mark.slow
@each
def test_bfloat16(name):
    want = encode(ALL[name](), params(name)).hidden
    halved = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params(name))
    got = encode(ALL[name](dtype=jnp.bfloat16), halved).hidden
    assert got.dtype == jnp.bfloat16
    assert np.abs(got.astype(jnp.float32) - want).max() < 0.1
    # Parameters in half precision, computed with in single.
    mixed = encode(ALL[name](), halved).hidden
    assert mixed.dtype == jnp.float32
    assert np.abs(mixed - want).max() < np.abs(got.astype(jnp.float32) - want).max()


@pytest.mark.slow
def test_t5_beyond_the_range_of_float16(monkeypatch):
    """As in the XXL model: products, and a sum through the blocks, that float16 can't hold."""
    # jax.nn's attention does not compute in float16 on a CPU.
    wider = lambda q, k, v, **options: attend(*(a.astype(jnp.float32) for a in (q, k, v)), **options)  # noqa: E731
    monkeypatch.setattr(
        "jaxdiff.text.t5.attend", lambda q, *rest, **options: wider(q, *rest, **options).astype(q.dtype)
    )
    weights = jax.tree.map(lambda a: a, params("t5"))
    for name in ("wi_0", "wi_1"):
        weights["encoder.block.*"][f"layer.1.DenseReluDense.{name}"]["kernel"] *= 1000
    want = encode(T5(), weights).hidden
    got = encode(T5(dtype=jnp.float16), weights).hidden
    assert np.abs(got.astype(jnp.float32) - want).max() < 0.05


@pytest.mark.slow
@each
def test_size_of_the_program_does_not_grow(name):
    def equations(layers):
        module = ALL[name](layers=layers)
        shapes = jax.eval_shape(partial(text.init, module), jax.random.key(0))
        return str(jax.make_jaxpr(text.as_apply(module))(shapes, IDS)).count("\n")

    assert equations(2) == equations(9)


@pytest.mark.slow
def test_unknown_ids_give_nan():
    weights = params("clip")
    for bad in (-1, 20):
        ids = IDS.copy()
        ids[1, 5] = bad
        hidden = encode(CLIP(), weights, ids).hidden
        assert np.isnan(hidden).any((1, 2)).tolist() == [False, True]


@pytest.mark.slow
def test_initial_values():
    wide = text.init(T5(width=128, head_dim=64), jax.random.key(1))
    queries = wide["encoder.block.*"]["layer.0.SelfAttention.q"]["kernel"]
    assert queries.dtype == jnp.float32
    assert np.std(queries) == pytest.approx((2 / (128 + 128)) ** 0.5 / 8, rel=0.05), "they carry the missing scale"
    assert not np.array_equal(queries[0], queries[1])
    assert np.std(wide["shared"]["embedding"]) == pytest.approx(1, rel=0.1)
    table = params("clip")["text_model.embeddings.token_embedding"]["embedding"]
    assert np.std(table) == pytest.approx(0.02, rel=0.2)


@pytest.mark.slow
def test_sentence_embedding():
    hidden = jnp.array([[[3.0, 0.0], [3.0, 8.0], [99.0, jnp.nan]], [[1.0, 1.0]] * 3])
    mask = np.array([[True, True, False], [False] * 3])
    np.testing.assert_allclose(text.sentence_embedding(hidden, mask), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    grad = jax.grad(lambda h: text.sentence_embedding(h, mask).sum())(hidden)
    assert np.isfinite(grad).all()
    assert text.sentence_embedding(hidden.astype(jnp.bfloat16), mask).dtype == jnp.float32


@pytest.mark.parametrize(
    ("module", "ids", "options", "message"),
    [
        (CLIP(), IDS[0], {}, r"int\[B, L\]"),
        (CLIP(), IDS.astype(np.float32), {}, r"int\[B, L\]"),
        (CLIP(), np.zeros((1, 7), np.int32), {}, "up to 6 tokens, got 7"),
        (CLIP(), IDS, {"layer": -3}, "-2..-1, got -3"),
        (CLIP(), IDS, {"layer": 0}, "-2..-1, got 0"),
        (CLIP(num_heads=3), IDS, {}, "divide the width 16"),
        (CLIP(act="swish"), IDS, {}, "activation must be one of"),
        (BERT(), IDS, {"mask": np.ones((2, 5), bool)}, "mask must be bool"),
        (BERT(), IDS, {"mask": np.ones((2, 6), np.int32)}, "mask must be bool"),
        (BERT(), IDS, {"segments": IDS[:1]}, "segments must have the shape"),
        (BERT(), np.zeros((1, 7), np.int32), {}, "up to 6 tokens"),
        (T5(buckets=2), IDS, {}, "a quarter of the buckets"),
    ],
)
def test_refuses(module, ids, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(module.init, **options), jax.random.key(0), ids)
