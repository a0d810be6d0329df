"""Image transformers against diffusers': DiT."""

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import jax
import jax.numpy as jnp
import numpy as np
from parity.checkpoints import close, gradients, nchw, nhwc, randomize, roundtrip

import jaxdiff as jd

DIT = dict(num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, patch_size=2)


def dit(**changes):
    return randomize(diffusers.DiTTransformer2DModel(**DIT | {"num_embeds_ada_norm": 5} | changes))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_dit(tmp_path):
    model = dit(num_layers=3, out_channels=6)
    loaded = roundtrip(model, tmp_path)
    x, t, y = numbers(2, 8, 8, 3), np.array([3.0, 977.0], np.float32), np.array([4, 5])
    with torch.no_grad():
        want = nhwc(model(nchw(x), torch.from_numpy(t), torch.from_numpy(y)).sample)
    f, frac = jax.jit(loaded.apply)(loaded.params, x, t, {"label": y})
    close(np.concatenate([f, 2 * frac - 1], -1), want, 5e-5)
