"""Consistency trajectory models on Gaussian data, whose jumps and denoiser are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.few_step import BASIS, M, V, context, denoise, fixed, flow_map, moment, named, nodes, student

import jaxdiff as jd
from jaxdiff import distill
from jaxdiff.parameterize import edm, velocity
from jaxdiff.solvers.base import Solver, init_empty

KEY, ZERO = jax.random.key(0), np.zeros(BASIS)
FLOW = jd.processes.Flow()
CASES = {"flow": (FLOW, named(velocity), 1.0), "edm": (jd.processes.EDM(), named(edm(0.5)), 4.0)}
T, S = np.array([0.8, 0.8, 0.5, 0.9]), np.array([0.2, 0.8, 0.0, 0.1])
EXACT = Solver(init_empty, lambda denoise, key, x, state, cur, nxt: (flow_map(x, cur, nxt), state))


def trajectory(case, pairs=None, **options):
    process, prediction, scale = CASES[case]
    pairs = fixed(scale * T, scale * S) if pairs is None else pairs
    options = {"distance": distill.squared} | options
    return distill.trajectory(student(process, prediction), process, prediction, pairs=pairs, **options)


def run(loss, p=ZERO, ema=ZERO):
    return jax.jit(jax.value_and_grad(lambda p, ema: loss((p, context(ema=ema)), KEY, nodes(4)), has_aux=True))(p, ema)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_at_the_exact_jumps_the_gradient_is_zero(case):
    process, prediction, scale = CASES[case]
    loss = trajectory(case, solver=EXACT, dsm_weight=0.5)
    (value, metrics), grad = run(loss)
    np.testing.assert_allclose(grad, 0, atol=1e-9)
    np.testing.assert_allclose(metrics["consistency"], 0, atol=1e-20)
    # Score matching's floor: the scatter of x_0, V sigma^2 / V_t, over out^2.
    level = process(jnp.asarray(scale * T))
    floor = np.mean(V * level.sigma**2 / moment(level) / prediction(level).out ** 2)
    np.testing.assert_allclose(metrics["dsm"], floor, rtol=1e-9)
    np.testing.assert_allclose(value, 0.5 * floor, rtol=1e-9)
    (_, metrics), grad = run(loss, ZERO + 0.1)
    assert metrics["consistency"] > 1e-3 and np.all(np.abs(grad) > 1e-3)
    assert run(loss, ema=ZERO + 0.1)[0][1]["consistency"] > 1e-3  # the average is the target
    with pytest.raises(ValueError, match=r"distill.context\(ema=True\)"):
        loss((ZERO, context()), KEY, nodes(4))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_comparison_is_at_the_data():
    """The gradient passes through the average's second jump: its slope scales the difference of the first jumps."""
    t, s = T[:1], S[:1]
    loss = trajectory("flow", fixed(t, s), solver=EXACT, dsm_weight=0.0)
    p = ZERO + np.array([0.1, 0, 0, 0, 0, 0])
    value = jax.jit(lambda p: loss((p, context(ema=ZERO)), KEY, nodes(1))[0])(p)
    # F + 0.1 ends at x_s - (t - s) 0.1; the flow from s to 0 scales by sqrt(V / V_s).
    slope = np.sqrt(V / ((1 - s) ** 2 * V + s**2))
    np.testing.assert_allclose(value, (0.1 * (t - s) * slope)[0] ** 2, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_solver_follows_the_teacher_or_the_averages_own_denoiser():
    own = trajectory("flow", dsm_weight=0.0)
    taught = trajectory("flow", dsm_weight=0.0, teacher=lambda context, cond: partial(denoise, m=M + context.frozen))
    values = jax.jit(
        lambda shift: [loss((ZERO + 0.01, context(ema=ZERO, frozen=shift)), KEY, nodes(4))[0] for loss in (own, taught)]
    )
    np.testing.assert_allclose(*values(0.0), rtol=1e-9)
    alone, moved = values(0.5)
    assert alone == values(0.0)[0] and moved > 2 * alone
    # Heun's error of one step is O(h^3): the consistency at the exact jumps, its square, falls by 64 with h.
    errors = []
    for h in (0.2, 0.1):
        loss = trajectory("flow", fixed([0.6] * 4, [0.6 - h] * 4), dsm_weight=0.0)
        errors.append(run(loss)[0][0])
    assert 5.4 < np.log2(errors[0] / errors[1]) < 6.6


def test_mistakes():
    with pytest.raises(ValueError, match=r"must follow its probability flow .* got <Solver ddpm"):
        trajectory("flow", solver=jd.solvers.ddpm())
    with pytest.raises(ValueError, match=r"call ddim\(\)"):
        trajectory("flow", solver=jd.solvers.ddim)
    with pytest.raises(ValueError, match="dsm_weight must be"):
        trajectory("flow", dsm_weight=-1.0)
