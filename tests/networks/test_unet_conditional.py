"""The U-Net with transformers, and the ControlNet that steers it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import UNet
from jaxdiff.networks.configs import sdxl_vector, stable_diffusion_1, stable_diffusion_2, stable_diffusion_xl
from jaxdiff.networks.controlnet import ControlNet, controlled, copy_encoder
from jaxdiff.networks.transformer2d import TransformerConfig

CONFIG = {
    "widths": (8,),
    "num_blocks": 1,
    "groups": 4,
    "attention": (0,),
    "transformer": TransformerConfig(depth=(2,), num_heads=(2,)),
    "context_dim": 5,
}
NOISE = np.array([3.0, 700.0], np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


X = normal(0, 2, 4, 4, 3)
COND = {"tokens": normal(1, 2, 3, 5), "mask": np.array([[True, True, False], [True] * 3]), "guidance": NOISE / 100}
HINT = {"hint": normal(2, 2, 8, 8, 3)}


def shapes(module, x, cond):
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


def randomized(module, x, cond):
    """Parameters with no zeros left, in numpy: nothing to compile."""
    rng = np.random.default_rng(5)

    def draw(path, a):
        spread = np.sqrt(np.prod(a.shape[:-1])) if len(a.shape) > 1 else 10
        return ((path[-1].key == "scale") + rng.standard_normal(a.shape) / spread).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, x, cond))


def compiled(function):
    """Jitted, with half the time to compile: what runs here is tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def net():
    """A network and its parameters."""
    module = UNet(**CONFIG, guidance_dim=4)
    return compiled(networks.as_apply(module)), randomized(module, X, COND)


@pytest.mark.slow
def test_every_condition_matters_and_hidden_tokens_do_not(net):
    apply, params = net
    plain = apply(params, X, NOISE, COND)
    hidden = np.where(COND["mask"][..., None], COND["tokens"], np.float32(np.nan))
    np.testing.assert_array_equal(apply(params, X, NOISE, COND | {"tokens": hidden}), plain)
    changes = {"tokens": normal(11, 2, 3, 5), "mask": np.ones((2, 3), bool), "guidance": COND["guidance"] + 1}
    for name, value in changes.items():
        difference = np.abs(apply(params, X, NOISE, COND | {name: value}) - plain).max((1, 2, 3))
        # All of the second example's tokens were visible before.
        assert difference[0] > 1e-4 and (name == "mask" or difference[1] > 1e-4), name


def test_layers_are_stacked_and_named_by_their_star():
    block = shapes(UNet(**CONFIG), X, {"tokens": COND["tokens"]})["down_blocks.0.attentions.0"]
    assert block["transformer_blocks.*"]["attn2.to_k"]["kernel"].shape == (2, 5, 8)
    assert block["transformer_blocks.*"]["ff.net.0.proj"]["bias"].shape == (2, 64)


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [(8,), (4, 8), (4, 2, 4)])
def test_one_two_and_three_dimensions(spatial):
    module, x = UNet(**CONFIG), normal(0, 2, *spatial, 3)
    cond = {"tokens": COND["tokens"]}
    y = compiled(networks.as_apply(module))(randomized(module, x, cond), x, NOISE, cond)
    assert y.shape == x.shape and np.isfinite(y).all() and np.std(y) > 0.01


@pytest.mark.slow
def test_bfloat16_parameters_and_computation_stay_close(net):
    apply, params = net
    full = apply(params, X, NOISE, COND)
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    stored = apply(half, X, NOISE, COND)
    computed = compiled(networks.as_apply(UNet(**CONFIG, guidance_dim=4, dtype=jnp.bfloat16)))(half, X, NOISE, COND)
    for got in (stored, computed):
        assert got.dtype == jnp.float32
        assert 1e-6 < np.sqrt(np.mean((got - full) ** 2) / np.mean(full**2)) < 0.03


@pytest.mark.slow
def test_remat_changes_no_value():
    config = CONFIG | {"num_blocks": 0, "guidance_dim": 4}  # transformers at the bottom and on the way up
    params = randomized(UNet(**config), X, COND)

    def gradient(module):
        apply = networks.as_apply(module)
        return compiled(jax.grad(lambda p: jnp.square(apply(p, X, NOISE, COND)).mean()))(params)

    got, want = (gradient(UNet(**config, remat=remat)) for remat in ("full", "none"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got, want)


@pytest.mark.slow
def test_identity_attention_perturbs_its_stages_alone(net):
    apply, params = net
    perturbed = UNet(**CONFIG, guidance_dim=4, identity_attention=("mid_block",))
    other = compiled(networks.as_apply(perturbed))
    assert np.abs(other(params, X, NOISE, COND) - apply(params, X, NOISE, COND)).max() > 1e-3
    # Without the values of self-attention at the bottom its map makes no difference.
    bottom = params["mid_block.attentions.0"]
    blocks = bottom["transformer_blocks.*"]
    mute = blocks | {"attn1.to_v": {"kernel": np.zeros_like(blocks["attn1.to_v"]["kernel"])}}
    muted = params | {"mid_block.attentions.0": bottom | {"transformer_blocks.*": mute}}
    np.testing.assert_allclose(other(muted, X, NOISE, COND), apply(muted, X, NOISE, COND), rtol=1e-5, atol=1e-5)


def refused(module, cond, *, match):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: module.init(jax.random.key(0), X, NOISE, cond))


def test_wrong_options_are_refused():
    tokens = {"tokens": COND["tokens"]}
    refused(UNet(**CONFIG | {"context_dim": None}), tokens, match="unknown condition 'tokens'")
    refused(UNet(**CONFIG, head_dim=4), tokens, match="head_dim must be None")
    for depth, num_heads in (((1, 1), (2, 2)), ((0,), (2,))):
        config = CONFIG | {"transformer": TransformerConfig(depth=depth, num_heads=num_heads)}
        refused(UNet(**config), tokens, match="for each of the 1 levels")
    config = CONFIG | {"transformer": TransformerConfig(depth=(1,), num_heads=(3,))}
    refused(UNet(**config), tokens, match="3 heads for 8 channels")


def test_a_score_unet_embeds_one_level():
    for name in ("next_noise", "concat_noise"):
        network = networks.ScoreUNet(widths=(64,), groups=None, num_blocks=1, **{name: True})
        with pytest.raises(ValueError, match="the logarithm of one noise level"):
            network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), {})


def test_wrong_residuals_are_refused():
    good = [np.zeros((2, 4, 4, 8), np.float32)] * 3
    for residuals in (good[:2], [*good, good[0]], [*good[:2], good[0][:, :2]]):
        refused(UNet(**CONFIG), {"tokens": COND["tokens"], "residuals": residuals}, match="must be 3 arrays like")


CONTROL = ControlNet(**CONFIG, guidance_dim=4, hint_widths=(4, 6))


@pytest.mark.slow
def test_a_new_controlnet_changes_nothing_and_learns_from_its_last_layers_on(net):
    plain, params = net
    unet = networks.as_apply(UNet(**CONFIG, guidance_dim=4))
    fresh = copy_encoder(randomized(CONTROL, X, COND | HINT), params)
    zeros = [name for name in fresh if name.startswith(("controlnet_down", "controlnet_mid"))]
    assert len(zeros) == 3
    fresh |= {name: jax.tree.map(np.zeros_like, fresh[name]) for name in zeros}
    apply = controlled(networks.as_apply(CONTROL), unet)

    @compiled
    def both(control):
        def value(control):
            y = apply({"controlnet": control, "unet": params}, X, NOISE, COND | HINT)
            return jnp.square(y).mean(), y

        return jax.grad(value, has_aux=True)(control)

    grads, steered = both(fresh)
    np.testing.assert_allclose(steered, plain(params, X, NOISE, COND), rtol=1e-5, atol=1e-6)
    assert {name for name in grads if any(np.any(g) for g in jax.tree.leaves(grads[name]))} == set(zeros)


@pytest.mark.slow
def test_the_hint_is_seen_and_its_scale_turns_it_off(net):
    apply, params = net
    control = networks.as_apply(CONTROL)
    both = {"controlnet": randomized(CONTROL, X, COND | HINT), "unet": params}

    @compiled
    def steered(scale, hint):
        return controlled(control, networks.as_apply(UNet(**CONFIG, guidance_dim=4)), scale)(
            both, X, NOISE, COND | {"hint": hint}
        )

    plain, hint = apply(params, X, NOISE, COND), HINT["hint"]
    full = steered(np.float32(1), hint)
    assert np.abs(full - plain).max() > 1e-2
    assert np.abs(steered(np.float32(1), -hint) - full).max() > 1e-3
    np.testing.assert_allclose(steered(np.float32(0), hint), plain, rtol=1e-5, atol=1e-5)


def test_a_hint_s_size_and_a_scale_s_length_are_checked():
    refused(CONTROL, COND | {"hint": HINT["hint"][:, :4]}, match=r"hint must have shape \(2, 8, 8, 3\)")
    with pytest.raises(ValueError, match="one number or 3"):
        controlled(lambda *_, **__: (X,) * 3, lambda *_, **__: X, [1.0, 2.0])(
            {"controlnet": {}, "unet": {}}, X, NOISE, HINT
        )
    with pytest.raises(ValueError, match="other shapes"):
        copy_encoder({"conv_in": {"bias": np.zeros(3)}}, {"conv_in": {"bias": np.zeros(4)}})


def test_the_vector_of_stable_diffusion_xl():
    pooled, numbers = normal(3, 2, 3), np.array([[1024, 768], [0, 3]], np.int32)
    angle = numbers[..., None] * 10_000.0 ** (-np.arange(2) / 2)
    want = np.concatenate([np.cos(angle), np.sin(angle)], -1).reshape(2, -1)
    got = sdxl_vector(jnp.asarray(pooled), jnp.asarray(numbers), 4)
    np.testing.assert_allclose(got, np.concatenate([pooled, want], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "vector", "count"),
    [
        (stable_diffusion_1(), None, 859_520_964),
        (stable_diffusion_2(), None, 865_910_724),
        (stable_diffusion_xl(), 2816, 2_567_463_684),
    ],
)
def test_published_parameter_counts(module, vector, count):
    cond = {"tokens": jax.ShapeDtypeStruct((1, 1, module.context_dim), jnp.float32)}
    if vector:
        cond["vector"] = jax.ShapeDtypeStruct((1, vector), jnp.float32)
    tree = shapes(module, jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), cond)
    assert sum(a.size for a in jax.tree.leaves(tree)) == count
