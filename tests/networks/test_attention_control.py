"""Attention control: maps written out in numpy, and networks whose second half attends as the first does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

import jaxdiff as jd
from jaxdiff import networks
from jaxdiff.networks.attention import attend

B, N, L, H, D = 2, 3, 4, 2, 5


def maps(q, k, mask):
    """Softmax maps [B, H, N, L]."""
    logits = np.einsum("bnhd,blhd->bhnl", q, k) / np.sqrt(D)
    weights = np.exp(logits) * mask[:, None, None]
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("align", [None, [0, 2, -1, 1], [[0, 0, -1, -1], [3, 2, 1, 0]]])
def test_maps_of_cross_attention_are_the_sources_word_by_word(align):
    """Against maps that are written down: taken, kept where a word is new, scaled, and not normalized again."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2 * B, N, H, D)), *rng.normal(size=(2, 2 * B, L, H, D))
    mask, weights = np.arange(L) < np.array([4, 3, 4, 2])[:, None], np.array([1.0, 2.0, 0.5, -1.0])
    old, new = np.split(maps(q, k, mask), 2)
    places = np.broadcast_to(np.arange(L) if align is None else align, (B, L))
    changed = new.copy()
    for b in range(B):
        for j in range(L):
            if places[b, j] >= 0:
                changed[b, :, :, j] = old[b, :, :, places[b, j]]

    @jax.jit
    def controlled(active):
        control = networks.prompt_to_prompt(
            cross_attention=active, align=None if align is None else jnp.asarray(align), weights=jnp.asarray(weights)
        )
        return control(lambda *a, mask: attend(*a, mask=mask), *map(jnp.asarray, (q, k, v, mask)), True)

    for active, expected in ((True, changed), (False, new)):
        y = controlled(active)
        np.testing.assert_allclose(y[:B], np.einsum("bhnl,blhd->bnhd", old, v[:B]), atol=1e-12)
        np.testing.assert_allclose(y[B:], np.einsum("bhnl,blhd->bnhd", expected * weights, v[B:]), atol=1e-12)


def network(kind):
    transformers = networks.TransformerConfig(depth=(2,), num_heads=(2,)) if kind == "transformers" else None
    return networks.UNet(
        widths=(8,),
        num_blocks=0,
        attention=(0,),
        head_dim=None if transformers else 2,
        groups=2,
        context_dim=3,
        transformer=transformers,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "transformers"])
def test_a_network_whose_second_half_attends_as_the_first(kind):
    """All of the source's attention draws the source, none draws the plain picture; a switch compiles nothing new."""
    module, rng = network(kind), np.random.default_rng(0)
    x = jnp.asarray(np.tile(rng.normal(size=(2, 8, 8, 1)), (2, 1, 1, 1)), jnp.float32)
    noise, cond = jnp.full(4, 0.3), {"tokens": jnp.asarray(rng.normal(size=(4, L, 3)), jnp.float32)}
    apply, params = networks.as_apply(module), random_weights(lambda key: networks.init(module, key, x, cond), 0)

    @partial(jax.jit, static_argnums=0)
    def evaluate(kind, own, cross):
        if kind == "prompt":
            control = networks.prompt_to_prompt(self_attention=own, cross_attention=cross)
        else:
            control = networks.shared_attention(kind, self_attention=own, cross_attention=cross)
        return networks.control_attention(apply, control)(params, x, noise, cond)

    plain = jax.jit(apply)(params, x, noise, cond)
    assert np.abs(plain[2:] - plain[:2]).min() > 1e-6  # other tokens draw another picture
    for name in ("qkv", "kv", "qk", "prompt"):
        for own in (False, True):
            y = evaluate(name, own, False)
            np.testing.assert_allclose(y[:2], plain[:2], atol=1e-5)
            if own:
                assert np.abs(y[2:] - plain[2:]).max() > 1e-4
            else:
                np.testing.assert_allclose(y[2:], plain[2:], atol=1e-5)
    # The text enters by cross-attention alone, and all else is the same in both halves.
    for own in (False, True):
        same = evaluate("qkv", own, True)
        np.testing.assert_allclose(same[2:], same[:2], atol=1e-5)
    assert np.abs(evaluate("prompt", True, True) - same)[2:].max() > 1e-4  # words have their own values
    assert evaluate._cache_size() == 4
    np.testing.assert_array_equal(jax.jit(apply)(params, x, noise, cond), plain)  # the control ends with its call


def test_names_are_checked():
    with pytest.raises(ValueError, match='some of "qkv"'):
        networks.shared_attention("value")


def test_a_doubled_batch_and_windows_leave_the_halves_of_the_batch():
    """Guidance in one call is that in two, and the mean of windows that of each alone, under attention control."""
    rng = np.random.default_rng(0)
    x, c, null = (jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32) for shape in ((6, 2, 3), (1, 1, 3), (1, 1, 3)))
    network = lambda params, x, noise, cond: attend(x + cond, x, x * cond)  # noqa: E731
    shared = networks.control_attention(network, networks.shared_attention())
    level = jd.Level(*(jnp.float32(a) for a in (0.3, 0.8, 0.6)))
    two = jd.guidance.cfg(*(jd.denoiser(shared, {}, jd.parameterize.v, a) for a in (c, null)), 2.5)
    both = jd.guidance.cfg_batched(shared, {}, jd.parameterize.v, cond=c, null_cond=null, scale=2.5)
    np.testing.assert_allclose(both(x, level), two(x, level), rtol=1e-5, atol=1e-5)
    first, last = (shared({}, part, jnp.ones(4), c) for part in (x[:, :4], x[:, 2:]))
    mean = jnp.concatenate([first[:, :2], 0.5 * (first[:, 2:] + last[:, :2]), last[:, 2:]], axis=1)
    wide = jd.inverse.windows(shared, (4, 2), (2, 1))({}, x, jnp.ones(4), c)
    np.testing.assert_allclose(wide, mean, rtol=1e-5, atol=1e-5)
