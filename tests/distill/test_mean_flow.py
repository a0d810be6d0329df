"""MeanFlow on Gaussian data, whose mean velocity is known: its identity, its floor, its minimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.few_step import BASIS, M, V, both_ends, context, denoise, fixed, named, nodes, student

import jaxdiff as jd
from jaxdiff import distill
from jaxdiff.levels import Level

FLOW, VELOCITY = jd.processes.Flow(), named(jd.parameterize.velocity)
KEY, ZERO = jax.random.key(0), np.zeros(BASIS)
T, S = np.array([0.8, 0.8, 0.5, 0.9, 1.0]), np.array([0.2, 0.8, 0.5, 0.0, 0.3])
APPLY = student(FLOW, VELOCITY)


def u(x, t, s):
    cur, nxt = Level(t, 1 - t, t), Level(s, 1 - s, s)
    return (x - both_ends(x, cur, nxt)) / t


def values(p, shift=0.0):
    """Value and gradient of MeanFlow, of its improved form, and with a teacher of shifted data."""
    given = context(frozen=shift)
    teacher = lambda context, cond: partial(denoise, m=M + context.frozen)  # noqa: E731
    out = {}
    for name, options in {"plain": {}, "improved": {"improved": True}, "taught": {"teacher": teacher}}.items():
        loss = distill.mean_flow(APPLY, FLOW, VELOCITY, pairs=fixed(T, S), distance=distill.squared, **options)
        out[name] = jax.value_and_grad(lambda p, loss=loss: loss((p, given), KEY, nodes(5))[0])(p)
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_identity_and_at_the_minimum_the_floor():
    x, t, s = jnp.float64(1.3), jnp.float64(0.8), jnp.float64(0.2)

    @jax.jit
    def run(p, shift):
        v = u(x, t, t)
        return (v, *jax.jvp(lambda x, t: u(x, t, s), (x, t), (v, jnp.ones(())))), values(p, shift)

    (v, mean, slope), at = run(ZERO, 0.0)
    assert abs(mean - 0.160912954) < 1e-9
    assert abs(mean - (v - (t - s) * slope)) < 1e-12
    # The error is v's scatter around its mean; along the conditional v it is scaled by 1 - (t - s) du/dx.
    variance = lambda t: (1 - t) ** 2 * V + t**2  # noqa: E731
    np.testing.assert_allclose(at["plain"][0], np.mean(V * variance(S) / variance(T) ** 2), rtol=1e-10)
    np.testing.assert_allclose(at["improved"][0], np.mean(V / variance(T)), rtol=1e-10)
    np.testing.assert_allclose(at["taught"][0], 0, atol=1e-20)
    for _, grad in at.values():
        np.testing.assert_allclose(grad, 0, atol=1e-10)
    assert all(np.all(np.abs(grad) > 1e-3) for _, grad in run(ZERO + 0.1, 0.0)[1].values())
    moved = run(ZERO, 0.5)[1]
    assert moved["taught"][0] > 1e-3 and moved["plain"][0] == at["plain"][0]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_derivative_passes_through_the_noise_input():
    """u of a network that is told 1000 t is the same function."""

    def apply(params, x, noise, cond):
        return APPLY(params, x, noise / 1000, {"next_noise": cond["next_noise"] / 1000})

    scaled = jd.parameterize.time_scaled(jd.parameterize.velocity)
    losses = [
        distill.mean_flow(*network, pairs=fixed(T, S), distance=distill.squared)
        for network in ((apply, FLOW, scaled), (APPLY, FLOW, VELOCITY))
    ]
    ours, theirs = jax.jit(lambda p: [loss((p, context()), KEY, nodes(5))[0] for loss in losses])(ZERO + 0.1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [distill.mean_flow, distill.eulerian])
def test_a_difference_comes_to_the_derivative_and_does_not_see_a_ripple(make):
    """Its error falls with the square; a ripple of the noise input, the steeper the faster, is all that jvp sees."""

    def rippled(params, x, noise, cond):
        return APPLY(params, x, noise, cond) + 1e-3 * jnp.sin(1e3 * noise)[:, None]

    def loss(network, difference):
        given = {"pairs": fixed(T[:4], S[:4]), "distance": distill.squared, "difference": difference}
        of = make(network, FLOW, VELOCITY, **given)
        return jax.grad(lambda p: of((p, context()), KEY, nodes(4))[0])(ZERO + 0.1)

    steps = (None, 0.05, 0.025)
    smooth, rough = jax.jit(lambda: [[loss(n, h) for h in steps] for n in (APPLY, rippled)])()
    off, half = (np.abs(np.asarray(g) - np.asarray(smooth[0])).max() for g in smooth[1:])
    assert 1.8 < np.log2(off / half) < 2.2
    apart = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(smooth, rough, strict=True)]
    assert apart[0] > 0.1 and max(apart[1:]) < 0.03
    with pytest.raises(ValueError, match="difference must be"):
        make(APPLY, FLOW, VELOCITY, pairs=fixed(T, S), difference=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("difference", [None, 0.05])
@pytest.mark.parametrize("make", [distill.mean_flow, distill.eulerian])
def test_the_derivative_of_the_same_network_in_more_digits(make, difference):
    """The loss has the value and gradient of the coarse network, and the slope of its exact form."""

    def coarse(params, x, noise, cond):
        return APPLY(params, x, noise, cond) + jnp.sin(1e4 * noise)[:, None] * 1e-5

    def both(apply, **options):
        given = {"pairs": fixed(T[:4], S[:4]), "distance": distill.squared, "difference": difference, **options}
        loss = make(apply, FLOW, VELOCITY, **given)
        return jax.value_and_grad(lambda p: loss((p, context()), KEY, nodes(4))[0])

    losses = both(APPLY), both(coarse, jvp_apply=APPLY), both(APPLY, jvp_apply=APPLY), both(APPLY, jvp_apply=coarse)
    exact, mixed, same, rough = jax.jit(lambda p: [loss(p) for loss in losses])(ZERO + 0.1)
    for got, rtol in ((mixed, 1e-3), (same, 1e-12)):
        np.testing.assert_allclose(got[0], exact[0], rtol=rtol)
        np.testing.assert_allclose(got[1], exact[1], rtol=rtol, atol=1e-4 if got is mixed else 1e-12)
    assert mixed[0] != exact[0]
    assert difference or abs(rough[0] - exact[0]) > 1e-3
    with pytest.raises(ValueError, match="jvp_apply must be a function"):
        both(APPLY, jvp_apply=3)


@pytest.mark.slow
def test_sorted_pairs():
    pairs = distill.sorted_pairs(jd.times.logit_normal(-0.4, 1.0), 0.75)
    t, s, weight = jax.jit(lambda key: pairs(key, 4096, jnp.int32(0)))(KEY)
    assert np.all((s > 0) & (s <= t) & (t < 1)) and np.all(weight == 1)
    assert abs(np.mean(s == t) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4096)
    # The larger of two normal numbers: mean -0.4 + 1 / sqrt(pi).
    logit = lambda a: np.log(a / (1 - a))  # noqa: E731
    assert abs(np.mean(logit(np.float64(t))) - (-0.4 + np.pi**-0.5)) < 4 * 0.83 / 64
    apart = s < t
    assert abs(np.mean(logit(np.float64(s[apart]))) - (-0.4 - np.pi**-0.5)) < 4 * 0.83 / np.sqrt(np.sum(apart))
    product = lambda key, batch: (jax.random.uniform(key, (batch,)), jnp.full((batch,), 3.0))  # noqa: E731
    np.testing.assert_array_equal(distill.sorted_pairs(product, 0.0)(KEY, 3, jnp.int32(0))[2], 9)
    with pytest.raises(ValueError, match="equal must be a finite number in"):
        distill.sorted_pairs(jd.times.uniform(), 1.5)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [(jd.processes.Cosine(), VELOCITY), (FLOW, jd.parameterize.v), (FLOW, jd.parameterize.x0)],
)
def test_other_processes_and_predictions_are_refused(process, prediction):
    with pytest.raises(ValueError, match=r"for processes.Flow\(\) and the prediction velocity, got"):
        distill.mean_flow(APPLY, process, prediction)
