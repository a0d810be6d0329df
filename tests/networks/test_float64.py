"""In double precision nothing is computed in less, in any network, encoder or autoencoder."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jaxdiff import autoencoders, networks, quantize, text
from jaxdiff.networks import as_apply

WIDTHS = {"widths": (8, 8), "num_blocks": 1, "groups": 4}
TOKENS, VECTOR = ("tokens", (2, 3, 4)), ("vector", (2, 4))
TEXT = {"vocab_size": 9, "width": 8, "layers": 2, "num_heads": 2, "mlp_dim": 8}
X = {"dance": (2, 8, 4), "mlp": (2, 4), "text to video": (2, 3, 8, 8, 4)}  # others see [2, 8, 8, 4]
# Each network and its condition.
NETWORKS = {
    "dance": (networks.DanceUNet(widths=(8, 32), attention=(1,), features=4), ()),
    "dit": (networks.DiT(width=8, layers=2, num_heads=2, num_classes=3, learned_variance=True), ("label",)),
    "dit, own embeddings": (
        networks.DiT(width=8, layers=2, num_heads=2, num_classes=3, per_block_embeddings=True, next_noise=True),
        ("label", "next_noise"),
    ),
    "edm2": (networks.EDM2UNet(widths=(8, 8), num_blocks=1, attention=(32,), head_dim=4, num_classes=3), ("label",)),
    "flux": (
        networks.Flux(
            width=16, layers=1, single_layers=1, num_heads=2, axes=(2, 2, 4), context_dim=4, pooled_dim=4, guidance=True
        ),
        (TOKENS, VECTOR, "guidance"),
    ),
    "joint u-net": (
        networks.JointUNet(
            **WIDTHS, attention=(1,), resample="resblock", context_dim=32, token_norm=True, pool_num_heads=2
        ),
        (("tokens", (2, 3, 32)), "mask"),
    ),
    "mlp": (networks.MLP(width=8, num_blocks=1, num_classes=3, next_noise=True), ("label", "next_noise")),
    "mmdit": (
        networks.MMDiT(
            width=8, layers=2, num_heads=2, context_dim=4, pooled_dim=4, pos_embed_max_size=8, qk_norm=True, dual=(0,)
        ),
        (TOKENS, VECTOR),
    ),
    "score u-net": (networks.ScoreUNet(widths=(64, 64), num_blocks=1, attention=(1,), groups=None), ()),
    "song u-net": (
        networks.SongUNet(widths=(16, 16), model_channels=16, num_blocks=1, attention=(16,), embedding="fourier"),
        (),
    ),
    "text to video": (
        networks.TextVideoUNet(
            **WIDTHS,
            frames=3,
            attention=(1,),
            transformer=networks.TransformerConfig(depth=(1, 1), num_heads=(2, 2)),
            context_dim=4,
            temporal_head_dim=4,
        ),
        (TOKENS,),
    ),
    "u-net": (
        networks.UNet(**WIDTHS, attention=(1,), num_classes=3, time=networks.Fourier(), pooled_dim=4, next_noise=True),
        ("label", VECTOR, "next_noise"),
    ),
    "u-net of transformers": (
        networks.UNet(
            **WIDTHS,
            attention=(1,),
            transformer=networks.TransformerConfig(depth=(1, 2), num_heads=(2, 2)),
            context_dim=4,
            guidance_dim=4,
        ),
        (TOKENS, "mask", "guidance"),
    ),
    "u-vit": (networks.UViT(width=8, layers=2, num_heads=2, num_classes=3), ("label",)),
}


def reduced(function, *args):
    """The operations of a function whose results are floats of less than double precision."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            kinds = {v.aval.dtype for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
            if kinds - {jnp.dtype(jnp.float64)}:
                found.append(f"{equation.primitive} {equation.source_info.name_stack}")
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def double(tree):
    kinds = {jnp.dtype(jnp.float32): jnp.float64}
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, kinds.get(a.dtype, a.dtype)), tree)


@pytest.mark.parametrize("name", ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "dit")])
def test_networks(name, x64, monkeypatch):
    module, names = NETWORKS[name]
    module = module.clone(dtype=jnp.float64)
    plain = {
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((2, 3), bool),
        "guidance": jax.ShapeDtypeStruct((2,), jnp.float64),
        "next_noise": jax.ShapeDtypeStruct((2,), jnp.float64),
    }
    cond = {n: plain[n] for n in names if isinstance(n, str)}
    cond |= {n[0]: jax.ShapeDtypeStruct(n[1], jnp.float64) for n in names if not isinstance(n, str)}
    x = jax.ShapeDtypeStruct(X.get(name, (2, 8, 8, 4)), jnp.float64)
    shapes = jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))
    noise = jax.ShapeDtypeStruct((2,), jnp.float64)
    assert not reduced(as_apply(module), double(shapes), x, noise, cond)
    monkeypatch.setattr(quantize, "MIN_SIZE", 1)
    small = jax.eval_shape(quantize.quantize, double(shapes))
    assert any(a.dtype == jnp.int8 for a in jax.tree.leaves(small))
    assert not reduced(as_apply(module), small, x, noise, cond)


def test_networks_that_expect_hundreds():
    """Those with sinusoids that were made for them; not those of Fourier features, or of logarithms."""
    expecting = {name for name, (module, _) in NETWORKS.items() if as_apply(module).expects_hundreds}
    assert expecting == {
        "dit", "dit, own embeddings", "joint u-net", "mlp", "mmdit", "score u-net", "text to video",
        "u-net of transformers", "u-vit",
    }  # fmt: skip
    for kind in (networks.VideoUNet, networks.VideoDiT):
        assert isinstance(kind.time, networks.Sinusoidal)


@pytest.mark.parametrize(
    "module", [text.T5Encoder, *(pytest.param(m, marks=pytest.mark.slow) for m in (text.Bert, text.CLIPText))]
)
def test_text_encoders(module, x64):
    encoder = module(**TEXT, dtype=jnp.float64)
    shapes = jax.eval_shape(lambda key: text.init(encoder, key), jax.random.key(0))
    ids, mask = (jax.ShapeDtypeStruct((2, 5), kind) for kind in (jnp.int32, bool))
    assert not reduced(text.as_apply(encoder), double(shapes), ids, mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_autoencoders(kind, x64):
    layout = {"widths": (8, 8), "num_blocks": 1, "groups": 4, "dtype": jnp.float64}
    if kind == "kl":
        module, latent = autoencoders.KLAutoencoder(**layout), 4
        codec = autoencoders.kl_codec(module, scale=0.2, shift=0.1)
    else:
        module, latent = autoencoders.VQAutoencoder(**layout, latent_channels=3, codes=5, code_dim=3), 3
        codec = autoencoders.vq_codec(module, scale=0.2)
    shapes = double(jax.eval_shape(lambda key: autoencoders.init(module, key), jax.random.key(0)))
    x, z = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((2, 8, 8, 3), (2, 4, 4, latent)))
    assert not reduced(codec.encode, shapes, x)
    assert not reduced(codec.decode, shapes, z)
    if kind == "kl":
        assert not reduced(codec.decode_latents, shapes, z)
