"""guidance_distillation: exact guided targets of a mixture and its components; networks that start as their teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import CLUSTERS, Mixture
from scipy import stats

import jaxdiff as jd
from jaxdiff import distill, networks, parameterize

KEY = jax.random.key(0)
FLOW = jd.processes.Flow()
NULL = {"label": jnp.array([3])}


def as_network(denoise):
    """The network whose velocity is that of (params, x, level, cond) -> x0_hat."""

    def apply(params, x, noise, cond, *, key=None):
        level = FLOW(noise)
        s = parameterize.scalings(parameterize.velocity, level, x)
        x0 = denoise(params, x, level, cond) + (0 if key is None else 1)
        return (x0 - s.skip * x) / s.out

    return apply


def by_label(x, level, label):
    """The denoiser of an example's component of the mixture, and of the whole mixture for the null label."""
    alone = Mixture(np.ones((len(x), 1)), *(jnp.asarray(field)[label % 3][:, None] for field in CLUSTERS[1:]))
    component = jax.vmap(lambda mixture, x, level: mixture.denoise(x[None], level)[0])(alone, x, level)
    return jnp.where((label == 3)[:, None], CLUSTERS.denoise(x, level), component)


def exact(params, x, level, cond):
    """The teacher: a component by its label, or the mixture."""
    assert cond.keys() == {"label"}
    return params * by_label(x, level, cond["label"])


def student(params, x, level, cond):
    """The mixture's estimate and the difference times the scale; two numbers change it."""
    uncond = CLUSTERS.denoise(x, level)
    guided = uncond + cond["guidance"][:, None] * (by_label(x, level, cond["label"]) - uncond)
    return guided + params[0] + params[1] * x


TEACHER = distill.teacher(as_network(exact), parameterize.velocity)


def make(**options):
    options = {"teacher": TEACHER, "null_cond": NULL, "max_scale": 5.0} | options
    return distill.guidance_distillation(as_network(student), FLOW, parameterize.velocity, **options)


@pytest.mark.usefixtures("x64")
def test_the_exact_student_is_the_minimum():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(CLUSTERS.draw(rng, 32)), "label": jnp.asarray(rng.integers(0, 3, 32))}
    value = jax.jit(
        jax.value_and_grad(
            lambda p, frozen: make()((p, distill.Context(jnp.int32(0), None, {"teacher": frozen})), KEY, batch)[0]
        )
    )
    zero = jnp.zeros(2)
    least, grad = value(zero, 1.0)
    assert least < 1e-20 and np.abs(grad).max() < 1e-10
    (up, at_up), (down, at_down) = (value(jnp.array([d, 0.0]), 1.0) for d in (0.1, -0.1))
    assert min(up, down) > 1e-3 and at_up[0] > 0 > at_down[0]
    other, at_other = value(zero, 0.9)  # the teacher moves the target
    assert other > 1e-3 and np.abs(at_other).max() > 1e-3
    # Guidance that is shifted by 0.1 is learned by the student that is.
    shifted = make(guide=lambda *three: lambda x, level: jd.guidance.cfg(*three)(x, level) + 0.1)
    inputs = jnp.array([0.1, 0.0]), distill.Context(jnp.int32(0), None, {"teacher": 1.0})
    assert shifted(inputs, KEY, batch)[0] < 1e-20


def test_scales_are_uniform_from_no_guidance_on_and_dropout_is_the_students():
    seen = {}

    def record(params, x, level, cond):
        seen.update(cond)
        return jnp.zeros_like(x)

    batch = {"x": jnp.zeros((4000, 1)), "label": jnp.zeros(4000, jnp.int32)}
    context = distill.Context(jnp.int32(0), None, {"teacher": None})
    nothing = lambda context, cond: lambda x, level: jnp.zeros_like(x)  # noqa: E731
    weight = lambda level: jnp.full_like(level.sigma, 2)  # noqa: E731

    @jax.jit
    def run():
        options = {"teacher": nothing, "null_cond": NULL, "max_scale": 5.0, "weight": weight}
        make = lambda **more: distill.guidance_distillation(  # noqa: E731
            as_network(record), FLOW, parameterize.velocity, **options, **more
        )
        return [make(dropout=dropout)((None, context), KEY, batch) for dropout in (False, True)], dict(seen)

    results, given = run()
    for (value, metrics), expected in zip(results, (0, 1), strict=True):
        np.testing.assert_allclose([value, metrics["mse"]], [2 * expected, expected], atol=1e-5)
    assert given.keys() == {"label", "guidance"}
    assert stats.kstest(np.asarray(given["guidance"], np.float64), stats.uniform(1, 4).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_a_largest_scale_of_1_is_the_teacher_alone():
    batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])}
    loss = distill.guidance_distillation(
        as_network(lambda params, x, level, cond: by_label(x, level, cond["label"])), FLOW, parameterize.velocity,
        teacher=TEACHER, null_cond=NULL, max_scale=1.0,
    )  # fmt: skip
    context = distill.Context(jnp.int32(0), None, {"teacher": jnp.float32(1.0)})
    eager, compiled = loss((None, context), KEY, batch)[0], jax.jit(loss)((None, context), KEY, batch)[0]
    assert eager < 1e-8 and compiled < 1e-8
    changed = context._replace(frozen={"teacher": jnp.float32(0.9)})
    eager, compiled = loss((None, changed), KEY, batch)[0], jax.jit(loss)((None, changed), KEY, batch)[0]
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


@pytest.mark.slow
def test_progressive_goes_on_from_the_student_with_random_scales():
    levels = jd.grids.by_time(FLOW, 2)
    apply = lambda params, x, noise, cond: params * cond["guidance"][:, None] * x  # noqa: E731
    plain = distill.progressive(apply, levels, parameterize.x0, stages=1, stage_updates=5)
    loss = distill.random_guidance(plain, 4.0)
    context = distill.Context(jnp.int32(0), None, None)
    batch = {"x": jnp.ones((6, 2))}
    value = jax.jit(lambda p, ema: loss((p, context._replace(ema=ema)), KEY, batch)[0])
    low, high = value(jnp.float32(0.3), jnp.float32(0.5)), value(jnp.float32(0.3), jnp.float32(0.6))
    assert 0 < low < high  # the student is below its teacher
    assert value(jnp.float32(0.0), jnp.float32(0.0)) == 0


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (networks.MLP(width=8, num_blocks=1, num_classes=3), (2, 2)),
        *(
            pytest.param(module, (2, 4, 4, 1), marks=pytest.mark.slow)
            for module in (
                networks.DiT(width=8, layers=1, num_heads=2, num_classes=3, per_block_embeddings=True),
                networks.UNet(widths=(8,), num_blocks=1, groups=4, num_classes=3),
            )
        ),
    ],
    ids=lambda value: getattr(value, "name", None) or type(value).__name__,
)
def test_a_student_starts_as_its_teacher_and_learns_the_scale(module, shape):
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal(shape).astype(np.float32), np.array([20.0, 700.0], np.float32)
    label = {"label": np.array([0, 2])}
    told_scale = module.clone(guidance_dim=4)
    cond = label | {"guidance": np.array([1.0, 3.0], np.float32)}

    def draw(a):
        return (0.3 * rng.standard_normal(a.shape)).astype(np.float32)

    shapes = jax.eval_shape(lambda key: networks.init(module, key, x, label), KEY)
    params = jax.tree.map(draw, shapes)
    init = lambda: networks.init(told_scale, KEY, x, cond)  # noqa: E731
    (added,) = jax.eval_shape(init).keys() - params.keys()
    new = jax.jit(lambda: init()[added])()  # of all parameters this one alone is compiled
    assert not np.any(new["kernel"])
    apply, same = networks.as_apply(told_scale), params | {added: new}
    moved = params | {added: {"kernel": draw(new["kernel"])}}

    x, noise, label = (np.repeat(a[:1], 2, axis=0) for a in (x, noise, label["label"]))
    cond = {"label": label, "guidance": np.array([1.5, 4.0], np.float32)}  # two examples that differ in the scale

    def squares(params):
        y = apply(params, x, noise, cond)
        return jnp.sum(y**2), y

    @jax.jit
    def run(same, moved):
        (_, start), grads = jax.value_and_grad(squares, has_aux=True)(same)
        teacher = networks.as_apply(module)(params, x, noise, {"label": label})
        return start, teacher, grads[added]["kernel"], apply(moved, x, noise, cond)

    start, teacher, gradient, scales = run(same, moved)
    np.testing.assert_allclose(start, teacher, rtol=1e-4, atol=1e-4)
    assert np.abs(gradient).max() > 1e-4 and np.abs(scales[0] - scales[1]).max() > 1e-3
    with pytest.raises(ValueError, match="'guidance', which is missing"):
        jax.eval_shape(networks.as_apply(told_scale), same, x, noise, {"label": label})


def test_mistakes():
    with pytest.raises(ValueError, match=r"max_scale must be a finite number in \[1, inf\], got 0.5"):
        make(max_scale=0.5)
    with pytest.raises(ValueError, match="null_cond"):
        make(null_cond={})
    with pytest.raises(ValueError, match="teacher must be a function"):
        make(teacher={"w": 1})
    with pytest.raises(ValueError, match='the batch has an entry "guidance"'):
        make()((jnp.zeros(2), None), KEY, {"x": jnp.ones((2, 2)), "guidance": jnp.ones(2)})
