"""Inside `jit`, a grid of plain numbers stays concrete: what is refused outside is refused there."""

import typing
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import Level, grids, parameterize
from jaxdiff.checks import is_traced
from jaxdiff.levels import append_clean
from jaxdiff.processes.base import time_range

VP, EDM, FLOW, TABLE = jd.processes.VP(), jd.processes.EDM(), jd.processes.Flow(), jd.processes.Discrete.linear(100)
SIGMAS = {"sigma_min": 0.1, "sigma_max": 3.0}
GRIDS = {
    "by_time": lambda: grids.by_time(FLOW, 4),
    "beta": lambda: grids.beta(VP, 4, alpha=0.5),
    "cosine": lambda: grids.cosine(VP, 4),
    "shifted": lambda: grids.shifted(FLOW, 4, 3.0),
    "by_lambda": lambda: grids.by_lambda(VP, 4, start=0.9, end=0.1),
    "by_angle": lambda: grids.by_angle(FLOW, 4, scale=0.5),
    "karras": lambda: grids.karras(EDM, 4, **SIGMAS),
    "exponential": lambda: grids.exponential(EDM, 4, **SIGMAS),
    "polyexponential": lambda: grids.polyexponential(FLOW, 4, rho=2.0, **SIGMAS),
    "from_sigmas": lambda: grids.from_sigmas(EDM, grids.AYS["deepfloyd-if"], 4),
    "ddpm": lambda: grids.ddpm(TABLE, 4),
    "respaced": lambda: grids.respaced(TABLE, "10,15"),
    "truncate": lambda: grids.truncate(grids.by_time(FLOW, 4), start=FLOW(0.6), end=FLOW(0.3)),
}
REFUSED = {  # each of their checks of values
    "by_time": [
        lambda: grids.by_time(FLOW, 4, start=0.1, end=0.9),
        lambda: grids.by_time(FLOW, np.asarray(0), max_steps=3),
    ],
    "beta": [lambda: grids.beta(VP, 4, alpha=np.float32(-1)), lambda: grids.beta(VP, 4, start=np.float32(0), end=0.5)],
    "cosine": [lambda: grids.cosine(VP, 4, sway=np.float32(2)), lambda: grids.cosine(VP, 4, start=0.1, end=0.5)],
    "shifted": [
        lambda: grids.shifted(FLOW, 4, np.float32(0)),
        lambda: grids.shifted(FLOW, 4, 3.0, start=np.float32(2)),
    ],
    "by_lambda": [
        lambda: grids.by_lambda(FLOW, 4, start=1.0, end=0.1),
        lambda: grids.by_lambda(FLOW, 4, start=0.1, end=0.9),
    ],
    "by_angle": [
        lambda: grids.by_angle(FLOW, 4, scale=np.float32(0)),
        lambda: grids.by_angle(FLOW, 4, start=0.1, end=0.9),
    ],
    "karras": [lambda: grids.karras(EDM, 4, sigma_min=np.float32(3), sigma_max=0.1)],
    "exponential": [lambda: grids.exponential(EDM, 4, sigma_min=np.float32(0), sigma_max=1.0)],
    "polyexponential": [lambda: grids.polyexponential(EDM, 4, rho=np.float32(0), **SIGMAS)],
    "from_sigmas": [lambda: grids.from_sigmas(EDM, np.asarray([1.0, 2.0]))],
    "ddpm": [lambda: grids.ddpm(TABLE, 101), lambda: grids.ddpm(TABLE, np.asarray(5), max_steps=4)],
    "respaced": [lambda: grids.respaced(TABLE, (200,))],
    "truncate": [
        lambda: grids.truncate(grids.by_time(FLOW, 4), start=FLOW(0.3), end=FLOW(0.6)),
        lambda: grids.truncate(grids.by_time(FLOW, 4, end=0.5), start=FLOW(0.2)),
    ],
}


def in_jit(make):
    """What `make` returns while it is traced, which is concrete or not."""
    seen = []
    jax.eval_shape(lambda x: (seen.append(make()), x)[1], jnp.zeros(1))
    return seen[0]


def test_every_grid_is_here():
    public = {name: getattr(grids, name) for name in grids.__all__ if callable(getattr(grids, name))}
    returns = {name: typing.get_type_hints(make)["return"] for name, make in public.items()}
    found = {name for name, kind in returns.items() if kind is Level or Level in typing.get_args(kind)}
    assert found == GRIDS.keys() == REFUSED.keys()


def each(names, slow):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in names]
    )


@each(GRIDS, slow={"beta", "truncate", "by_lambda"})
def test_a_grid_is_concrete_and_the_same(name):
    levels = in_jit(GRIDS[name])
    assert not is_traced(levels)
    jax.tree.map(np.testing.assert_array_equal, levels, GRIDS[name]())


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_grid_refuses_it_refuses_inside_jit(name):
    for make in REFUSED[name]:
        with pytest.raises(ValueError) as outside:
            make()
        with pytest.raises(ValueError) as inside:
            in_jit(make)
        assert str(inside.value) == str(outside.value)


def network(params, x, noise, cond):
    return 0.5 * x


def likelihood(levels):
    return jd.likelihood.log_likelihood(lambda x, level: 0.5 * x, levels, jnp.zeros((1, 2)))


def sample(levels, prediction=parameterize.velocity):
    denoise = jd.denoiser(network, None, prediction)
    return jd.sample(denoise, jd.solvers.ddim(), levels, jnp.zeros((1, 2)), jax.random.key(0))


USES = {
    "the noise rises": lambda: sample(FLOW(np.linspace(0.1, 0.9, 4))),
    "eps of pure noise": lambda: sample(grids.by_time(FLOW, 4), parameterize.eps),
    "score of pure noise": lambda: sample(grids.by_angle(FLOW, 4), parameterize.score),
    "edm of pure noise": lambda: sample(grids.shifted(FLOW, 4, 2.0), parameterize.edm()),
    "eps at one level": lambda: jd.denoiser(network, None, parameterize.eps)(jnp.zeros((1, 2)), FLOW(1.0)),
    "eps at a level an example": lambda: jd.denoiser(network, None, parameterize.eps)(
        jnp.zeros((2, 2)), FLOW(np.array([0.5, 1.0]))
    ),
    "eps at a grid's level": lambda: jd.denoiser(network, None, parameterize.eps)(
        jnp.zeros((1, 2)), grids.by_time(FLOW, 4).at(0)
    ),
    "inverted to pure noise": lambda: jd.invert(lambda x, level: x, grids.by_time(FLOW, 4), jnp.zeros((1, 2))),
    "likelihood of clean data": lambda: likelihood(grids.by_time(VP, 4)),
    "likelihood of clean data that is appended": lambda: likelihood(
        append_clean(grids.by_lambda(VP, 4, start=0.9, end=0.1))
    ),
    "a table's times": lambda: TABLE(np.array([101, 0])),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_what_a_use_of_a_grid_refuses_it_refuses_inside_jit(use):
    with pytest.raises(ValueError) as outside:
        use()
    with pytest.raises(ValueError) as inside:
        in_jit(use)
    assert str(inside.value) == str(outside.value)


def test_likelihood_takes_the_grid_without_its_last_level():
    assert in_jit(lambda: likelihood(grids.by_time(VP, 4).at(slice(None, -1)))).log_prob.shape == (1,)


@dataclass(frozen=True)
class Closed:
    """Flow with its time stretched by a number that no transformation sees, since this is no pytree."""

    t_min, t_max = 0.0, 0.5
    stretch: jax.Array

    def __call__(self, t):
        return FLOW(self.stretch * t)

    def time(self, lam):
        return FLOW.time(lam) / self.stretch


@pytest.mark.slow
def test_a_process_with_traced_numbers_still_works():
    for make in (Closed, lambda stretch: jd.processes.VE(0.1, 10.0 * stretch)):
        total = lambda a, make=make: jnp.sum(grids.by_time(make(a), 3).sigma + grids.karras(make(a), 3, **SIGMAS).t)  # noqa: E731
        slope = (total(1.01) - total(0.99)) / 0.02
        np.testing.assert_allclose(jax.jit(jax.grad(total))(1.0), slope, rtol=1e-3)
        np.testing.assert_allclose(jax.vmap(total)(jnp.array([0.9, 1.0])), [total(0.9), total(1.0)], rtol=1e-6)


def ends(levels):
    return float(levels.t[0]), float(levels.t[-1])


def test_a_process_says_its_range():
    learned = jd.processes.Learned(jnp.zeros(4))
    unit = [VP, FLOW, learned, jd.processes.VE(), jd.processes.Cosine(), jd.processes.Sigmoid(), jd.processes.Laplace()]
    for process in [*unit, jd.processes.SubVP(), jd.processes.Shifted(VP, 2.0)]:
        assert time_range(process) == time_range(process, None, 0.0) == (1.0, 0.0)
        assert time_range(process, 0.9, 0.1) == (0.9, 0.1)
    assert time_range(TABLE) == (100.0, 0.0) and time_range(EDM, 80.0) == (80.0, 0.0)
    with pytest.raises(ValueError, match=r"shifted lie in \[0, 1\], got start = 100"):
        grids.shifted(TABLE, 4, 3.0)
    with pytest.raises(ValueError, match="function has no noisiest time of its own: give start"):
        grids.by_time(lambda t: FLOW(t), 4)
    with pytest.raises(ValueError, match="noisiest time of its own: give times"):
        jd.losses.denoising_loss(network, lambda t: FLOW(t), parameterize.velocity)


@each(["by_time", "beta", "cosine", "by_angle"], slow={"beta", "by_angle"})
def test_grids_take_the_range_of_the_process(name):
    grid = getattr(grids, name)
    levels = grid(TABLE, 4)
    assert ends(levels) == (100.0, 0.0) and levels.sigma[-1] == 0
    np.testing.assert_allclose(levels.sigma[0], TABLE.sigma[-1], rtol=1e-6)
    assert ends(grid(EDM, 4, start=8.0)) == (8.0, 0.0)
    for process in (EDM, jd.processes.Shifted(EDM, 2.0)):
        with pytest.raises(ValueError, match=r"has no noisiest time of its own: give start"):
            grid(process, 4)
