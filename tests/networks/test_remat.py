"""What blocks keep for their backward pass."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import DiT, EDM2UNet, Flux, MMDiT, SongUNet, UNet, UViT
from jaxdiff.networks.layers import Conv, Dense
from jaxdiff.networks.remat import rematted

WORDS = ("none", "dots", "full")
NOISE = np.array([0.3, 0.7], np.float32)
X = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
TEXT = {"tokens": np.ones((2, 3, 6), np.float32), "vector": np.ones((2, 5), np.float32)}
NETWORKS = {
    "unet": UNet((8, 16), num_blocks=1, groups=4, attention=(1,), head_dim=8),
    "song": SongUNet(resolution=8, model_channels=8, widths=(8, 16), num_blocks=1, attention=(4,)),
    "edm2": EDM2UNet(resolution=8, widths=(64, 64), num_blocks=1, attention=(4,)),
    "dit": DiT(width=8, layers=2, num_heads=2),
    "uvit": UViT(width=8, layers=2, num_heads=2, patch_size=2),
    "mmdit": MMDiT(width=16, layers=2, num_heads=2, context_dim=6, pooled_dim=5),
    "flux": Flux(width=16, layers=1, single_layers=2, num_heads=2, axes=(2, 2, 4), context_dim=6, pooled_dim=5),
}


def kept(run, *args):
    """Shapes of what the backward pass gets from the forward one, and how many there are of each."""
    backward = jax.eval_shape(lambda *args: jax.vjp(run, *args)[1], *args)
    return Counter(leaf.shape for leaf in jax.tree.leaves(backward))


class Both(nn.Module):
    """A convolution, a blur, a linear layer and attention's two products."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(Conv(5, name="conv")(jnp.sin(x)))
        x = nn.silu(jax.lax.conv_general_dilated(
            x, jnp.ones((3, 3, 1, 5)), (1, 1), [(0, 0)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        ))  # fmt: skip
        x = jnp.tanh(Dense(7, name="dense")(x).reshape(2, -1, 7))
        return jnp.einsum("bnl,blc->bnc", nn.softmax(jnp.einsum("bnc,blc->bnl", x, x)), x)


def test_each_word_keeps_what_it_says():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 3, 5)), "bias": jnp.ones((5,))},
        "dense": {"kernel": jnp.ones((5, 7)), "bias": jnp.ones((7,))},
    }
    seen = {word: kept(rematted(Both, word)().apply, {"params": params}, X) for word in WORDS}
    assert seen["none"][2, 36, 36] > 0
    inputs = Counter(leaf.shape for leaf in jax.tree.leaves((params, X)))
    assert seen["full"] == inputs
    # The convolution's and the linear layer's outputs, with their biases, which are not added again; neither the blur's
    # (2, 6, 6, 5) nor the logits.
    biases = Counter([(5,), (7,)])
    assert seen["dots"] == inputs - biases + Counter([(2, 8, 8, 5), (2, 6, 6, 7)])


@pytest.mark.slow
def test_each_word_gives_the_same_gradient():
    """Of convolutions and attention; the tests of networks compare theirs."""
    params = jax.jit(Both().init)(jax.random.key(0), X)

    def gradient(word):
        block = rematted(Both, word)()
        return jax.jit(jax.grad(lambda p, x: jnp.square(block.apply(p, x)).mean(), argnums=(0, 1)))(params, X)

    want, *others = (gradient(word) for word in WORDS)
    for got in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_less(name):
    module = NETWORKS[name]
    cond = TEXT if name in ("mmdit", "flux") else {}
    params = jax.eval_shape(lambda key: networks.init(module, key, X, cond), jax.random.key(0))

    def numbers(word):
        shapes = kept(lambda params: networks.as_apply(module.clone(remat=word))(params, X, NOISE, cond), params)
        return sum(int(np.prod(shape)) * count for shape, count in shapes.items())

    assert all(np.diff([numbers(word) for word in WORDS]) < 0)


@pytest.mark.slow
def test_temporaries_of_the_compiled_gradient_shrink():
    module = DiT(width=32, layers=8, num_heads=4)
    x, noise = jnp.ones((8, 32, 32, 3)), jnp.ones((8,))
    params = jax.eval_shape(lambda key: networks.init(module, key, x), jax.random.key(0))

    def temporaries(word):
        apply = networks.as_apply(module.clone(remat=word))
        compiled = jax.jit(jax.grad(lambda params: apply(params, x, noise).sum())).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert all(np.diff([temporaries(word) for word in WORDS]) < 0)


@pytest.mark.parametrize("word", [True, "all"])
def test_other_words(word):
    with pytest.raises(ValueError, match=f"none, dots, full, got {word!r}"):
        rematted(Dense, word)
