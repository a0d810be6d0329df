"""What few-step losses see of a run, their teachers, and the distances of their targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import distill, networks, train
from jaxdiff.distill.base import Context, check_boundary, split_inputs
from jaxdiff.parameterize import Scalings

FLOW, V = jd.processes.Flow(), jd.parameterize.velocity
A = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
B = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 2)), jnp.float32)


def apply(params, x, noise, cond):
    return params * x + cond["label"][:, None].astype(x.dtype) * noise[:, None]


def test_a_context_counts_the_updates_that_were_made():
    params = {"w": jnp.ones(2)}
    state = train.new_state(params, train.adamw(1e-3), ema=train.ema.constant(0.5))
    state = state._replace(step=jnp.int32(7), skipped=jnp.int32(2))
    plain, averaged = (distill.context(ema=ema)(state, {"teacher": 3.0}) for ema in (False, True))
    assert int(plain.step) == 5 and plain.ema is None and plain.frozen == {"teacher": 3.0}
    np.testing.assert_array_equal(averaged.ema["w"], state.ema["w"])


def test_a_teacher_is_the_denoiser_of_its_parameters():
    x, label = A[:, 0], jnp.array([1, 2, 3])
    level = FLOW(jnp.asarray([0.2, 0.5, 0.9]))
    context = Context(jnp.int32(0), 5.0, {"teacher": 2.0})
    scale, null = 3.0, jnp.zeros(1, jnp.int32)
    plain = distill.teacher(apply, V)(context, {"label": label})(x, level)
    t = np.asarray(level.t)[:, None]
    f = lambda w, label: np.asarray(x) - t * (w * np.asarray(x) + np.asarray(label, np.float32)[:, None] * t)  # noqa: E731  # x_0
    np.testing.assert_allclose(plain, f(2.0, label), rtol=1e-5)
    average = distill.teacher(apply, V, params=lambda context: context.ema)(context, {"label": label})(x, level)
    np.testing.assert_allclose(average, f(5.0, label), rtol=1e-5)
    guide = lambda cond, uncond: jd.guidance.cfg(cond, uncond, scale)  # noqa: E731
    guided = distill.teacher(apply, V, guide=guide, null_cond={"label": null})(context, {"label": label})(x, level)
    np.testing.assert_allclose(guided, f(2.0, 0 * label) * (1 - scale) + scale * f(2.0, label), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["consistency", "mean_flow", "progressive"])
def test_a_teacher_of_data_of_another_shape_is_refused(name):
    """Of points of 3 numbers, where x are of 2."""
    network, levels = networks.MLP(width=4, num_blocks=0), jd.grids.by_time(FLOW, 4)
    params = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), jnp.zeros((1, 3))))
    teacher = distill.teacher(networks.as_apply(network), V)
    student = lambda params, x, noise, cond: params * x  # noqa: E731
    loss = {
        "consistency": lambda: distill.consistency(
            student, FLOW, V, pairs=distill.grid_pairs(FLOW, levels), teacher=teacher
        ),
        "mean_flow": lambda: distill.mean_flow(student, FLOW, V, teacher=teacher),
        "progressive": lambda: distill.progressive(student, levels, V, stages=1, stage_updates=1, teacher=teacher),
    }[name]()

    def of(params):
        inputs = jnp.float32(1), Context(jnp.int32(0), jnp.float32(1), {"teacher": params})
        return loss(inputs, jax.random.key(0), {"x": jnp.ones((4, 2))})

    with pytest.raises(ValueError, match=r"are not for x of shape \(4, 2\): .* \(2, 4\), but .* has shape \(3, 4\)"):
        jax.eval_shape(of, params)


def test_distances():
    d = np.asarray(A - B, np.float64)
    square = (d**2).sum((1, 2))
    np.testing.assert_allclose(distill.squared(A, B), square / 8, rtol=1e-5)
    np.testing.assert_allclose(distill.norm(A, B), np.sqrt(square), rtol=1e-5)
    c = 0.00054 * np.sqrt(8)
    np.testing.assert_allclose(distill.pseudo_huber()(A, B), np.sqrt(square + c**2) - c, rtol=1e-5)
    np.testing.assert_allclose(distill.pseudo_huber(2.0)(A, B), np.sqrt(square + 4) - 2, rtol=1e-5)
    np.testing.assert_allclose(distill.adaptive(1.0, 0.0)(A, B), np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(distill.adaptive(0.5, 0.1)(A, B), square / np.sqrt(square + 0.1), rtol=1e-5)
    # The weight of an adaptive distance takes no gradient: with p = 1 that is 2 d / (|d|^2 + c).
    grad = jax.grad(lambda a: distill.adaptive(1.0, 0.1)(a, B).sum())(A)
    np.testing.assert_allclose(grad, 2 * d / (square + 0.1)[:, None, None], rtol=1e-4)
    unit = lambda h: np.asarray(h, np.float64) / np.linalg.norm(h, axis=-1, keepdims=True)  # noqa: E731
    want = ((unit(A) - unit(B)) ** 2).sum(-1).mean(1) + ((unit(A[:, 0]) - unit(B[:, 0])) ** 2).sum(-1)
    got = distill.perceptual(lambda x: {"places": x, "first": x[:, 0]})(A, B)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for distance in (distill.norm, distill.pseudo_huber(), distill.adaptive(), distill.adaptive(1.0, 0.0)):
        assert np.all(distance(A, A) == 0)
        grad = jax.jit(jax.grad(lambda a, distance=distance: distance(a, A).sum()))
        assert np.all(np.isfinite(grad(A)))  # where both agree


def test_mistakes():
    with pytest.raises(ValueError, match=r"given=distill\.context\(\)"):
        split_inputs({"w": A})
    with pytest.raises(ValueError, match="needs null_cond"):
        distill.teacher(apply, V, guide=lambda c, u: c)
    with pytest.raises(ValueError, match=r"does not meet f\(x, 0\) = x, since skip = 0 and out = 1"):
        check_boundary(FLOW, jd.parameterize.x0)
    for prediction in (V, jd.parameterize.v, jd.parameterize.eps, jd.parameterize.edm(0.5)):
        check_boundary(FLOW, prediction)
    with pytest.raises(ValueError, match="skip = 1 and out = 1"):
        check_boundary(FLOW, lambda level: Scalings(jnp.ones(()), jnp.ones(()), jnp.ones(()), level.t))
    guided = distill.teacher(apply, V, guide=lambda c, u: c, null_cond={"text": A[:1]})
    for make, frozen, words in (
        (distill.teacher(apply, V), None, r'frozen=\{"teacher": params\} in train'),
        (guided, {"teacher": A}, "null_cond must have the condition's entries, label, got text"),
        (lambda context, cond: lambda x, level: x[..., :1], None, r"of the shape of x, \(4, 2\), got \(4, 1\)"),
    ):
        loss = distill.mean_flow(lambda p, x, noise, cond: p * x, FLOW, jd.parameterize.velocity, teacher=make)
        given = jnp.float32(1), Context(jnp.int32(0), None, frozen)
        with pytest.raises(ValueError, match=words):
            loss(given, jax.random.key(0), {"x": jnp.ones((4, 2)), "label": jnp.zeros(4, int)})
    with pytest.raises(ValueError, match=r"p must be a finite number in \[0, 1\]"):
        distill.adaptive(2.0)
    with pytest.raises(ValueError, match=r"features must be a function \(x\) -> features"):
        distill.perceptual(3)
