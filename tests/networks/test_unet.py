import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import UNet

SMALLEST = {"widths": (8,), "num_blocks": 1, "groups": 4}
TINY = {"widths": (8, 16), "num_blocks": 1, "groups": 4, "attention": (1,), "head_dim": 8}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def shapes(module, x, cond):
    return jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))


def count(module, shape, cond=None):
    tree = shapes(module, jax.ShapeDtypeStruct(shape, jnp.float32), cond or {})
    return sum(a.size for a in jax.tree.leaves(tree))


def randomized(module, x, cond=None):
    """Parameters with no zeros left, in numpy: nothing to compile."""
    rng = np.random.default_rng(5)

    def draw(path, a):
        spread = np.sqrt(np.prod(a.shape[:-1])) if len(a.shape) > 1 else 10
        return ((path[-1].key == "scale") + rng.standard_normal(a.shape) / spread).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, x, cond or {}))


def compiled(function):
    """Jitted, with half the time to compile: what runs here is tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def run(module, params, x, noise, cond=None):
    return compiled(networks.as_apply(module))(params, x, noise, cond or {})


NOISE = np.array([3.0, 700.0], np.float32)


@pytest.mark.slow
def test_published_parameter_counts():
    assert count(networks.ddpm_cifar10(), (1, 32, 32, 3)) == 35_746_307
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    # The reference implementation's UNetModel with the published flags, plus the null class's row.
    assert count(networks.adm_imagenet64(), (1, 64, 64, 3), label) == 295_904_454 + 4 * 192


def test_names_are_the_reference_checkpoint_s():
    tree = shapes(UNet(**TINY), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), {})
    keys = {".".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    assert {
        "conv_in.kernel",
        "time_embedding.linear_1.kernel",
        "down_blocks.0.resnets.0.conv1.kernel",
        "down_blocks.0.downsamplers.0.conv.bias",
        "down_blocks.1.attentions.0.to_out.0.bias",
        "mid_block.resnets.1.time_emb_proj.kernel",
        "mid_block.attentions.0.group_norm.scale",
        "up_blocks.0.attentions.1.to_q.kernel",
        "up_blocks.0.upsamplers.0.conv.kernel",
        "up_blocks.1.resnets.1.conv_shortcut.kernel",
        "conv_norm_out.scale",
    } <= keys


@pytest.mark.parametrize(
    "spatial", [pytest.param((8,), marks=pytest.mark.slow), (4, 8), pytest.param((4, 2, 4), marks=pytest.mark.slow)]
)
def test_one_two_and_three_dimensions(spatial):
    module = UNet(**TINY)
    x = normal(0, 2, *spatial, 3)
    params = randomized(module, x)
    y = run(module, params, x, NOISE)
    assert y.shape == x.shape and y.dtype == jnp.float32 and np.isfinite(y).all() and np.std(y) > 0.01


@pytest.mark.slow
def test_constant_along_an_axis_is_one_dimension_less():
    # A length of 4 that halves to 2: with a kernel of ones' worth along that axis in its middle tap alone, and
    # resampling by averages, the 2-D network is the 1-D network repeated.
    config = {**TINY, "resample": "pool"}
    flat, line = normal(0, 2, 8, 3), UNet(**config)
    params = randomized(line, flat)

    def widen(path, a):
        if path[-1].key != "kernel" or a.ndim != 3:
            return a
        wide = np.zeros((a.shape[0], a.shape[0], *a.shape[1:]), np.float32)
        wide[:, a.shape[0] // 2] = a
        return wide

    square = jax.tree_util.tree_map_with_path(widen, params)
    got = run(line, square, np.repeat(flat[:, :, None], 4, 2), NOISE)
    want = run(line, params, flat, NOISE)
    np.testing.assert_allclose(got, np.repeat(want[:, :, None], 4, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_output_is_zero_at_initialization_and_so_is_each_branch():
    module = UNet(**TINY, num_classes=3, learned_variance=True)
    x, label = normal(0, 2, 8, 8, 3), np.array([0, 3], np.int32)
    params = networks.init(module, jax.random.key(0), x, {"label": label})
    assert type(params) is dict and all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))
    f, frac = run(module, params, x, NOISE, {"label": label})
    assert f.shape == frac.shape == x.shape
    np.testing.assert_array_equal(f, 0)
    np.testing.assert_array_equal(frac, 0.5)
    for name, block in params.items():
        for last in ("conv2", "to_out.0"):
            assert last not in block or not np.any(block[last]["kernel"]), name


@pytest.mark.slow
def test_init_depends_on_the_key_alone():
    module = UNet(**SMALLEST)
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    draw = [networks.init(module, jax.random.key(seed), x, {})["conv_in"]["kernel"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


@pytest.mark.slow
def test_dropout_needs_a_key_and_nothing_else_is_random():
    module = UNet(**SMALLEST, dropout=0.5)
    x = normal(0, 2, 8, 8, 3)
    params = randomized(module, x)
    apply = compiled(networks.as_apply(module))
    still = apply(params, x, NOISE)
    np.testing.assert_array_equal(still, run(UNet(**SMALLEST), params, x, NOISE))
    first, again, other = (apply(params, x, NOISE, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, still)


EVERYTHING = {
    **TINY, "num_classes": 3, "context_dim": 5, "pooled_dim": 6, "concat_channels": 2, "concat_noise": True,
    "patch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def everything():
    """A network with all conditions, its parameters and an input."""
    module = UNet(**EVERYTHING, scale_shift=True)
    x = normal(0, 2, 8, 8, 3)
    cond = {
        "label": np.array([1, 3], np.int32),
        "tokens": normal(1, 2, 4, 5),
        "mask": np.array([[True, True, False, False], [True] * 4]),
        "vector": normal(2, 2, 6),
        "concat": normal(3, 2, 8, 8, 2),
        "concat_noise": np.array([100.0, 400.0], np.float32),
    }
    params = randomized(module, x, cond)
    return compiled(networks.as_apply(module)), params, x, cond


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", np.array([0, 2], np.int32)),
        ("tokens", normal(11, 2, 4, 5)),
        ("mask", np.ones((2, 4), bool)),
        ("vector", normal(12, 2, 6)),
        ("concat", normal(13, 2, 8, 8, 2)),
        ("concat_noise", np.array([0.0, 200.0], np.float32)),
    ],
)
def test_every_condition_matters(everything, name, value):
    apply, params, x, cond = everything
    changed = apply(params, x, NOISE, cond | {name: value})
    difference = np.abs(changed - apply(params, x, NOISE, cond)).max((1, 2, 3))
    # All of the second example's tokens were visible before.
    assert difference[0] > 1e-4 and (name == "mask" or difference[1] > 1e-4)


def test_hidden_tokens_change_nothing(everything):
    apply, params, x, cond = everything
    tokens = np.where(cond["mask"][..., None], cond["tokens"], np.float32(np.nan))
    got = apply(params, x, NOISE, cond | {"tokens": tokens})
    np.testing.assert_array_equal(got, apply(params, x, NOISE, cond))


def test_examples_do_not_meet(everything):
    apply, params, x, cond = everything
    both = apply(params, x, NOISE, cond)
    changed = {k: v.copy() for k, v in cond.items()} | {"x": x.copy(), "noise": NOISE.copy()}
    for value in changed.values():
        value[0] = value[1]
    other = apply(params, changed.pop("x"), changed.pop("noise"), changed)
    np.testing.assert_allclose(other[1], both[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(other[0], both[0])


@pytest.mark.slow
def test_a_batch_of_two_is_two_batches_of_one(everything):
    apply, params, x, cond = everything
    both = apply(params, x, NOISE, cond)
    for i in range(2):
        one = apply(params, x[i : i + 1], NOISE[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        np.testing.assert_allclose(one[0], both[i], rtol=1e-4, atol=1e-5)


def test_null_class_is_the_last_row(everything):
    apply, params, x, cond = everything
    table = params["class_embedding"]["embedding"]
    swapped = params | {"class_embedding": {"embedding": table[[0, 3, 2, 1]]}}
    label = np.array([3, 1], np.int32)
    np.testing.assert_array_equal(apply(swapped, x, NOISE, cond | {"label": label}), apply(params, x, NOISE, cond))


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_and_returns_float32(everything):
    apply, params, x, cond = everything
    module = UNet(**EVERYTHING, scale_shift=True, dtype=jnp.bfloat16)
    half, full = run(module, params, x, NOISE, cond), apply(params, x, NOISE, cond)
    assert half.dtype == jnp.float32
    error = np.sqrt(np.mean((half - full) ** 2) / np.mean(full**2))
    assert 1e-6 < error < 0.03
    # Noise levels that bfloat16 can't tell apart are still told apart.
    near = run(module, params, x, NOISE + np.float32(0.3), cond)
    assert np.abs(near - half).max() > 0


@pytest.mark.slow
def test_remat_changes_no_value():
    x = normal(0, 2, 8, 8, 3)
    config = {**SMALLEST, "num_blocks": 0, "dropout": 0.3}  # two blocks and attention at the bottom, one on the way up
    params = randomized(UNet(**config), x)
    key = jax.random.key(0)

    def value_and_grad(module):
        apply = networks.as_apply(module)
        return compiled(jax.value_and_grad(lambda p: jnp.square(apply(p, x, NOISE, key=key)).mean()))(params)

    want, want_grad = value_and_grad(UNet(**config))
    for remat in ("dots", "full"):
        got, got_grad = value_and_grad(UNet(**config, remat=remat))
        np.testing.assert_allclose(got, want, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got_grad, want_grad)


@pytest.mark.parametrize("resample", ["conv", "pool", "resblock"])
def test_resampling_and_output_channels(resample):
    module = UNet(**TINY, resample=resample, out_channels=5)
    x = normal(0, 2, 4, 4, 3)
    params = randomized(module, x)
    y = jax.eval_shape(networks.as_apply(module), params, x, NOISE)
    assert y.shape == (2, 4, 4, 5)
    own = {"conv": "conv", "pool": None, "resblock": "conv2"}[resample]
    for name in ("down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"):
        assert (own in params[name]) if own else name not in params


def refused(module, x, cond=None, noise=NOISE, *, match):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: module.init(jax.random.key(0), x, noise, cond))


def test_wrong_conditions_are_refused():
    x, label = np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int32)
    plain, classes = UNet(**TINY), UNet(**TINY, num_classes=3)
    refused(plain, x, {"label": label}, match="unknown condition 'label'; this network is configured for: none")
    refused(classes, x, {"labels": label}, match="unknown condition 'labels'.*: label")
    refused(classes, x, {}, match="'label', which is missing")
    refused(classes, x, {"label": label[:1]}, match=r"label must have shape \(2,\), got \(1,\)")
    refused(plain, x, noise=np.zeros((1,), np.float32), match=r"noise must have shape \(2,\), got \(1,\)")
    tokens = UNet(**TINY, context_dim=5)
    good = {"tokens": np.zeros((2, 4, 5), np.float32)}
    refused(tokens, x, {"tokens": np.zeros((2, 4, 6), np.float32)}, match="tokens must have shape")
    refused(tokens, x, good | {"mask": np.ones((2, 3), bool)}, match="mask must have shape")


def test_wrong_shapes_and_options_are_refused():
    x = np.zeros((2, 8, 8, 3), np.float32)
    refused(UNet(**TINY, patch_size=2, resample="pool"), x[:, :6], match="multiple of 4, got 6 .* nearest are 4 and 8")
    refused(UNet(**TINY, patch_size=2), x[:, :5], match="multiple of 2, got 5 .* nearest are 4 and 6")
    refused(UNet(**TINY, down_pad=(0, 1)), x[:, :1], match="at least 2, got shape")
    refused(UNet(**TINY), x[:, 0, 0], match="one to three spatial axes")
    refused(UNet(**TINY, resample="magic"), x, match="'conv', 'pool' or 'resblock', got 'magic'")
    refused(UNet(**(TINY | {"attention": (2,)})), x, match=r"levels 0..1, got \(2,\)")
    refused(UNet(**(TINY | {"groups": 3})), x, match="3 groups for 8 channels")


@pytest.mark.slow
def test_identity_attention_perturbs_its_stages_alone():
    x, module = normal(0, 2, 8, 3), UNet(**TINY)
    params = randomized(module, x)
    perturbed = module.clone(identity_attention=("mid_block", "up_blocks.0"))
    assert jax.tree.map(jnp.shape, randomized(perturbed, x)) == jax.tree.map(jnp.shape, params)
    both = compiled(lambda params: [networks.as_apply(m)(params, x, NOISE) for m in (module, perturbed)])
    plain, other = both(params)
    assert np.abs(plain - other).max() > 1e-3

    def mute(params, *stages):
        """Without the output of those stages' attention."""
        return {
            name: {**block, "to_out.0": jax.tree.map(np.zeros_like, block["to_out.0"])}
            if "attentions" in name and name.startswith(stages)
            else block
            for name, block in params.items()
        }

    plain, other = both(mute(params, "mid_block", "up_blocks.0"))
    np.testing.assert_allclose(plain, other, rtol=1e-5, atol=1e-5)
    plain, other = both(mute(params, "mid_block", "down_blocks.1"))  # leaves up_blocks.0
    assert np.abs(plain - other).max() > 1e-3


def test_identity_attention_of_a_stage_without_attention_is_refused():
    x = np.zeros((2, 8, 8, 3), np.float32)
    for stages, shown in ((("down_blocks.0",), "down_blocks.0"), ("mid_block", "got mid_block")):
        allowed = "here down_blocks.1, mid_block, up_blocks.0; .*"
        refused(UNet(**TINY, identity_attention=stages), x, match=allowed + shown)
    refused(UNet(**SMALLEST, mid_attention=False, identity_attention=("mid_block",)), x, match="here none; got")
