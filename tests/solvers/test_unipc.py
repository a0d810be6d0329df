"""UniPC against its paper's linear systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import rational

import jaxdiff as jd
from jaxdiff.levels import Level

pytestmark = pytest.mark.usefixtures("x64")
START = np.random.default_rng(0).normal(size=(5, 2))


def coefficients(r, h, variant, simple):
    """B(h) and a of sum_m a_m r_m^(n - 1) B(h) = h^n n! phi_(n+1)(h), all for data prediction, where h counts down."""
    hh = -h
    B = hh if variant == "bh1" else np.expm1(hh)
    if simple:
        return B, np.array([0.5])
    phi, b = np.expm1(hh) / hh - 1, []
    for n in range(1, len(r) + 1):
        b.append(phi * np.prod(np.arange(1, n + 1)) / B)
        phi = phi / hh - 1 / np.prod(np.arange(1, n + 2))
    return B, np.linalg.solve(np.vander(r, increasing=True).T, b)


def transcribed(levels, x, p, variant, corrector):
    """Zhao et al. 2023, multistep, with 1/2 for UniC-1 and UniP-2."""
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)
    lam = np.log(alpha / sigma)
    m, begin = [], None
    for i in range(len(lam) - 1):
        new = rational(x, Level(np.nan, alpha[i], sigma[i]))
        if i and corrector:
            h, order = lam[i] - lam[i - 1], min(p, i)
            r = np.array([(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, order)] + [1])
            B, a = coefficients(r, h, variant, order == 1)
            D = [(m[i - 1 - k] - m[i - 1]) / r[k - 1] for k in range(1, order)] + [new - m[i - 1]]
            x = sigma[i] / sigma[i - 1] * begin - alpha[i] * np.expm1(-h) * m[i - 1]
            x = x - alpha[i] * B * sum(a * b for a, b in zip(a, D, strict=True))
        m.append(new)
        begin, h, order = x, lam[i + 1] - lam[i], min(p, i + 1)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * new
        if order > 1:
            r = np.array([(lam[i - k] - lam[i]) / h for k in range(1, order)])
            B, a = coefficients(r, h, variant, order == 2)
            D = [(m[i - k] - new) / r[k - 1] for k in range(1, order)]
            x = x - alpha[i + 1] * B * sum(a * b for a, b in zip(a, D, strict=True))
    return x


def run(solver, levels, x=START):
    return jax.jit(lambda x: jd.sample(rational, solver, levels, x, jax.random.key(0)))(jnp.asarray(x))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "corrector"), [(1, True), (2, True), (2, False), (3, True), (4, True)])
def test_is_the_papers_algorithm_on_an_uneven_grid(order, corrector, variant):
    levels = jd.processes.VP()(np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.1, 0.05]))
    out = run(jd.solvers.unipc(order, variant, corrector=corrector), levels)
    np.testing.assert_allclose(out, transcribed(levels, START, order, variant, corrector), rtol=1e-8)


@pytest.mark.slow
def test_order_2_without_corrector_is_2m_and_order_1_ddim():
    levels = jd.processes.VP()(np.array([0.9, 0.7, 0.6, 0.35, 0.2, 0.0]))
    pairs = (
        (jd.solvers.unipc(2, corrector=False), jd.solvers.dpmpp_2m()),
        (
            jd.solvers.unipc(1, corrector=False),
            jd.solvers.ddim(),
        ),
    )
    for ours, other in pairs:
        np.testing.assert_allclose(run(ours, levels), run(other, levels), rtol=1e-12)


def test_the_steps_from_pure_noise_and_to_clean_data_are_of_order_1_for_both_variants():
    levels = jd.grids.by_time(jd.processes.Flow(), 2)
    for variant in ("bh1", "bh2"):
        np.testing.assert_allclose(
            run(jd.solvers.unipc(3, variant), levels), run(jd.solvers.ddim(), levels), rtol=1e-12
        )


def test_x_changed_between_steps_is_heard():
    """As inpainting does: the corrector adds to the x it is given."""
    levels, solver = jd.processes.VP()(np.array([0.9, 0.7, 0.6, 0.35])), jd.solvers.unipc(3)
    x = jnp.asarray(START)
    level = lambda i: jax.tree.map(lambda field: field[i], levels)  # noqa: E731
    calm = lambda x, level: jnp.ones_like(x)  # noqa: E731

    @jax.jit
    def two_steps(x, change):
        _, state = solver.step(calm, jax.random.key(0), x, solver.init(x), level(0), level(1))
        return solver.step(calm, jax.random.key(0), x + change, state, level(1), level(2))[0]

    ends = [two_steps(x, change) for change in (0.0, 1.0)]
    np.testing.assert_allclose(ends[1] - ends[0], jnp.full_like(x, level(2).sigma / level(1).sigma), rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "of at least 1, got 0"),
        ((2.0,), r"integer of at least 1, got 2\.0"),
        ((2, "bh3"), "bh1 or bh2, got 'bh3'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jd.solvers.unipc(*arguments)
