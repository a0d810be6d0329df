"""Networks that are given both ends of a step, and students that start as their teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import MLP, DiT, Flux, UNet, start_from

KEY = jax.random.key(0)
NOISE, LABEL = np.array([0.3, 0.7], np.float32), {"label": np.array([0, 2], np.int32)}
NEXT = {"next_noise": np.array([0.1, 0.6], np.float32)}
POINTS, PICTURES = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in ((2, 2), (2, 8, 8, 3)))
CASES = {
    "mlp": (MLP(width=8, num_blocks=1, num_classes=3), POINTS),
    "unet": (UNet((8, 8), num_blocks=1, groups=4, mid_attention=False, num_classes=3), PICTURES),
    "dit": (DiT(width=8, layers=2, num_heads=2, num_classes=3), PICTURES),
    "dit, own embeddings": (DiT(width=8, layers=2, num_heads=2, num_classes=3, per_block_embeddings=True), PICTURES),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow if name != "mlp" else ()) for name in CASES]


def noisy(params, seed=1):
    """Parameters with nothing left at zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + 0.2 * rng.normal(size=a.shape).astype(np.float32), params)


def drawn(module, x, cond, *names):
    """Parameters of which those names are as a network draws them, and the others have nothing at zero."""
    init = lambda key: networks.init(module, key, x, cond)  # noqa: E731
    shapes = jax.eval_shape(init, KEY)
    new = jax.jit(lambda key: {name: a for name, a in init(key).items() if name in names})(KEY)  # compiles these alone
    return noisy(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)) | new


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_student_starts_as_its_teacher_and_learns_where_its_step_ends(name):
    module, x = CASES[name]
    both = module.clone(next_noise=True)
    fresh = drawn(both, x, LABEL | NEXT, "next_time_embedding")
    teacher = noisy({name: a for name, a in fresh.items() if name != "next_time_embedding"})
    student = start_from(fresh, teacher)
    apply = jax.jit(networks.as_apply(both))
    want = jax.jit(networks.as_apply(module))(teacher, x, NOISE, LABEL)
    got = apply(student, x, NOISE, LABEL | NEXT)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(want).max() > 0.1
    np.testing.assert_array_equal(apply(student, x, NOISE, LABEL | {"next_noise": NEXT["next_noise"] + 3}), got)
    # Once the last layer is not zero, the output depends on the end of each example's own step.
    trained = student | {"next_time_embedding": noisy(student["next_time_embedding"])}
    other = {"next_noise": NEXT["next_noise"] + np.array([0.0, 3.0], np.float32)}
    a, b = (apply(trained, x, NOISE, LABEL | ends) for ends in (NEXT, other))
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[1] - b[1]).max() > 1e-4


@pytest.mark.parametrize("name", SLOW)
def test_the_condition_is_exactly_the_configured_one(name):
    module, x = CASES[name]
    shapes = lambda module, cond: jax.eval_shape(lambda: module.init(KEY, x, NOISE, cond))  # noqa: E731
    shapes(module.clone(next_noise=True), LABEL | NEXT)
    with pytest.raises(ValueError, match="configured for the condition 'next_noise', which is missing"):
        shapes(module.clone(next_noise=True), LABEL)
    with pytest.raises(ValueError, match="unknown condition 'next_noise'"):
        shapes(module, LABEL | NEXT)
    with pytest.raises(ValueError, match=r"next_noise must have shape \(2,\), got \(1,\)"):
        shapes(module.clone(next_noise=True), LABEL | {"next_noise": NOISE[:1]})


def tree(**more):
    """A student's parameters in miniature."""
    return {"conv": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}} | more


def test_start_from_copies_and_casts():
    new = {"next_time_embedding": {"linear_1": {"kernel": jnp.full((2, 2), 5.0)}}}
    scale = {"time_embedding.cond_proj": {"kernel": jnp.full((2, 2), 5.0)}}
    flux = {
        "time_text_embed.guidance_embedder": {n: {"kernel": jnp.full((2, 2), 5.0)} for n in ("linear_1", "linear_2")}
    }
    teacher = {"conv": {"kernel": jnp.full((2, 3), 2, jnp.bfloat16)}, "norm": {"scale": jnp.full(3, 3.0, jnp.float32)}}
    start = start_from(tree(**new, **scale, **flux), teacher)
    want = {"conv": {"kernel": np.full((2, 3), 2)}, "norm": {"scale": np.full(3, 3)}} | new | scale
    want |= {
        "time_text_embed.guidance_embedder": {
            "linear_1": {"kernel": np.full((2, 2), 5)},
            "linear_2": {"kernel": np.zeros((2, 2))},
        }
    }
    jax.tree.map(np.testing.assert_array_equal, start, want)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(start))
    # A train step may reuse the student's buffers: they are not the teacher's (a weak type would be copied anyhow).
    ours, theirs = (params["norm"]["scale"].unsafe_buffer_pointer() for params in (start, teacher))
    assert ours != theirs


@pytest.mark.parametrize(
    ("student", "teacher", "match"),
    [
        (tree(), tree(conv={"kernel": jnp.ones((2, 4))}), r"conv/kernel: \(2, 3\), the teacher's \(2, 4\)"),
        (tree(), tree(head={"bias": jnp.ones(1)}), r"head/bias \(1,\): the teacher's only"),
        (tree(head={"bias": jnp.ones(1)}), tree(), r"head/bias \(1,\): the student's only"),
        (tree(), {}, r"conv/kernel \(2, 3\): the student's only; norm/scale"),
    ],
)
def test_a_teacher_of_another_network_is_refused(student, teacher, match):
    with pytest.raises(ValueError, match=match):
        start_from(student, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "flux"])
def test_a_guidance_scale_is_without_effect_at_first(name):
    if name != "flux":
        module, x = CASES[name]
        module, cond = module.clone(guidance_dim=8), LABEL
    else:
        x = PICTURES
        sizes = {"width": 16, "layers": 1, "single_layers": 1, "num_heads": 2, "axes": (2, 2, 4)}
        module = Flux(**sizes, context_dim=4, pooled_dim=4, guidance=True)
        cond = {"tokens": np.ones((2, 3, 4), np.float32), "vector": np.ones((2, 4), np.float32)}
    scales = [{"guidance": np.array(scale, np.float32)} for scale in ([1.5, 4.0], [1.0, 9.0])]
    new = "guidance_embedding", "time_embedding.cond_proj", "time_text_embed.guidance_embedder"
    fresh = drawn(module, x, cond | scales[0], *new)
    teacher = noisy({name: a for name, a in fresh.items() if name not in new})
    apply = jax.jit(networks.as_apply(module))
    a, b = (apply(start_from(fresh, teacher), x, NOISE, cond | scale) for scale in scales)
    np.testing.assert_array_equal(a, b)
    trained = fresh | teacher | {name: noisy(fresh[name]) for name in new if name in fresh}
    c, d = (apply(trained, x, NOISE, cond | scale) for scale in scales)
    assert np.abs(c - d).max() > 1e-3  # the network looks at it
