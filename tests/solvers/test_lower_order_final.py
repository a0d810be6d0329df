"""Multistep solvers whose last steps are of a lower order, on request."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, rational

import jaxdiff as jd
from jaxdiff import solvers
from jaxdiff.solvers.base import steps_left

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 2))


def path(denoise, factory, levels, x=X):
    """x after each step, of a solver that is made for levels that are traced."""

    def run(levels, x):
        return jd.sample_path(denoise, factory(lower_order_final=levels), levels, x, KEY)[1]

    return jax.jit(run)(levels, jnp.asarray(x))


def config(kind, **fields):
    return jd.interop.scheduler({"_class_name": kind, **fields})


@pytest.mark.parametrize(
    ("ours", "kind", "fields"),
    [
        (partial(solvers.unipc, 3), "UniPCMultistepScheduler", {"solver_order": 3}),
        pytest.param(
            partial(solvers.unipc, 2, "bh1"), "UniPCMultistepScheduler", {"solver_type": "bh1"}, marks=pytest.mark.slow
        ),
        pytest.param(
            partial(solvers.deis, 3), "DEISMultistepScheduler", {"solver_order": 3}, marks=pytest.mark.slow
        ),
        pytest.param(solvers.dpmpp_2m, "DPMSolverMultistepScheduler", {}, marks=pytest.mark.slow),
        pytest.param(
            partial(solvers.dpmpp_2m_sde, 1.0), "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_it_is_what_the_schedulers_do(ours, kind, fields):
    """Less than 15 steps of the lists that end at the table's first level."""
    made = config(kind, final_sigmas_type="sigma_min", **fields)
    levels = made.sampling.grid(8)
    want = jax.jit(lambda x: jd.sample_path(rational, made.sampling.solver(8), levels, x, KEY)[1])(jnp.asarray(X))
    np.testing.assert_allclose(path(rational, ours, levels), want, rtol=1e-9)


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (solvers.lms, partial(solvers.lms, 2)),
        pytest.param(solvers.er_sde, partial(solvers.er_sde, 2), marks=pytest.mark.slow),
        pytest.param(solvers.ipndm, partial(solvers.ipndm, 2), marks=pytest.mark.slow),
        pytest.param(partial(solvers.deis, 3), solvers.deis, marks=pytest.mark.slow),
        pytest.param(solvers.dpmpp_3m_sde, partial(solvers.dpmpp_2m_sde, variant="heun"), marks=pytest.mark.slow),
        pytest.param(solvers.dpmpp_3m, partial(solvers.dpmpp_2m_sde, 0.0, variant="heun"), marks=pytest.mark.slow),
        pytest.param(
            partial(solvers.sa_solver, 4, 0), partial(solvers.sa_solver, 2, 0), marks=pytest.mark.slow
        ),
        pytest.param(partial(solvers.sa_solver, 4, 5), partial(solvers.sa_solver, 2, 3), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_of_four_steps_the_orders_are_1_2_2_1(high, low):
    """And so the same for every order from 2 on."""
    levels = config("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min").sampling.grid(4)
    np.testing.assert_allclose(path(rational, high, levels), path(rational, low, levels), rtol=1e-12)


@pytest.mark.parametrize(
    "factory",
    [
        solvers.plms,
        *(
            pytest.param(factory, marks=pytest.mark.slow)
            for factory in (solvers.lms, solvers.pndm, partial(solvers.er_sde, log_scale=jnp.zeros_like))
        ),
    ],
)
def test_the_last_step_is_of_order_1(factory):
    """And the one before it is not."""
    levels = config("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min").sampling.grid(6)
    earlier, before, after = path(rational, factory, levels)[-3:]
    last, other = (
        solvers.ddim().step(rational, KEY, x, (), levels.at(i), levels.at(i + 1))[0]
        for x, i in ((before, 5), (earlier, 4))
    )
    np.testing.assert_allclose(after, last, rtol=1e-9)
    assert not np.allclose(before, other, rtol=1e-3)


def test_a_grid_may_repeat_its_last_level():
    """As where the number of steps is traced: the steps that are left are those that are taken."""
    process = jd.processes.VP()
    short, long = (jd.grids.by_time(process, 5, end=0.001, max_steps=most) for most in (None, 9))
    assert [int(steps_left(long, long.at(i))) for i in range(7)] == [5, 4, 3, 2, 1, 0, 0]
    draw = jax.jit(lambda grid: jd.sample(rational, solvers.dpmpp_2m(lower_order_final=grid), grid, X, KEY, stop=5))
    np.testing.assert_allclose(draw(long), draw(short), rtol=1e-6)


def test_true_is_no_grid():
    of = "dpmpp_2m dpmpp_3m dpmpp_2m_sde dpmpp_3m_sde unipc sa_solver deis lms ipndm plms pndm er_sde"
    for factory in (getattr(solvers, name) for name in of.split()):
        with pytest.raises(ValueError, match=r"must be the grid that is passed to sample, or None .*, got True"):
            factory(lower_order_final=True)


@pytest.mark.parametrize("factory", [partial(solvers.unipc, 2), pytest.param(solvers.dpmpp_3m, marks=pytest.mark.slow)])
def test_it_helps_where_a_large_step_ends_short_of_clean_data(factory):
    """Linear betas in equal times: the last of 20 steps is the longest in lam, and polynomials in x_0 overshoot."""
    levels = config("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min").sampling.grid(20)
    first, last = (levels.at(i) for i in (0, -1))
    x = jnp.asarray(BLOB.draw(np.random.default_rng(0), 64, first))
    exact = BLOB.flow(x, first, last)
    kept = jax.jit(lambda x: jd.sample(BLOB.denoise, factory(), levels, x, KEY))(x)
    error = lambda x: float(jnp.sqrt(jnp.mean((x - exact) ** 2)))  # noqa: E731
    assert error(path(BLOB.denoise, factory, levels, x)[-1]) < 0.3 * error(kept)
