"""The doors: what each says of a wrong argument, by name."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.solvers import SOLVERS

import jaxdiff as jd
from jaxdiff import (
    conditions,
    guidance,
    inverse,
    losses,
    media,
    models,
    networks,
    parameterize,
    solvers,
    times,
    weights,
)
from jaxdiff.checks import check_function, concrete, factory
from jaxdiff.experiment import Experiment, Model, Sampling, Training

FLOW, KEY = jd.processes.Flow(), jax.random.key(0)
LEVELS, X = jd.grids.by_time(FLOW, 3), np.ones((4, 2), np.float32)
THREE = jax.random.split(KEY, 3)
TRAINING = Training(lambda *_: 0.0, None, None, lambda *_: iter(()), batch=1, steps=1)
SAMPLING = Sampling(lambda n: jd.grids.by_time(FLOW, n), solvers.ddim(), steps=3)
MASK = inverse.operators.mask(jnp.ones(2))


def apply(params, x, noise, cond):
    return x


def denoise(x, level):
    return x


def sample(denoise=denoise, solver=None, levels=LEVELS, x=X, key=KEY):
    return jd.sample(denoise, solvers.ddim() if solver is None else solver, levels, x, key)


def loss(apply=apply, process=FLOW, prediction=parameterize.velocity, x=X, **options):
    return losses.denoising_loss(apply, process, prediction, **options)(None, KEY, {"x": x})


def model(process=FLOW, prediction=parameterize.velocity):
    return Model(lambda key: {}, apply, process, prediction)


def red_diff(denoise=denoise, process=FLOW, **options):
    return inverse.red_diff(denoise, process, MASK, X, std=1.0, times=times.uniform(), **options)


def of_library():
    return models.of(networks.MLP(), FLOW, parameterize.velocity, shape=(2,), condition=conditions.none())


WRONG = {
    "t for a network of hundreds": (
        lambda: loss(apply=networks.as_apply(networks.MLP())),
        r"expects times in the hundreds, and Flow's lie in \[0, 1\]: .* given it by time_scaled\(velocity, 1\)",
    ),
    "t for an adapted network": (
        lambda: loss(apply=networks.lora.adapted(of_library().apply)),
        "pass the model.prediction of",
    ),
    "t for a few-step network": (
        lambda: jd.distill.shortcut(of_library().apply, FLOW, parameterize.velocity, steps=8),
        "pass the model.prediction of",
    ),
    "t for a consistency model": (
        lambda: jd.distill.continuous_consistency(of_library().apply, FLOW, parameterize.velocity, sigma_data=0.5),
        "pass the model.prediction of",
    ),
    "another prediction than the model's": (lambda: loss(apply=of_library().apply), "pass the model.prediction of"),
    "another prediction than the encoded model's": (
        lambda: loss(apply=conditions.none().encoded(of_library().apply)),
        "pass the model.prediction of",
    ),
    "an uncalled solver": (lambda: sample(solver=solvers.heun), r"solver must be a Solver, got heun: call heun\(\)"),
    "a solver's name": (lambda: sample(solver="ddim"), "solver must be a Solver, got 'ddim'"),
    "an uncalled solver to restart": (lambda: solvers.restart(solvers.heun), r"got heun: call heun\(\)"),
    "an uncalled predictor": (lambda: solvers.predictor_corrector(solvers.ddim), r"got ddim: call ddim\(\)"),
    "an uncalled solver with momentum": (
        lambda: guidance.apg_momentum(solvers.heun, denoise, 2.0),
        r"got heun: call heun\(\)",
    ),
    "an uncalled solver to tune for": (
        lambda: jd.tune.by_gradient(denoise, solvers.heun, LEVELS, X, KEY, process=FLOW),
        r"got heun: call heun\(\)",
    ),
    "a solver that makes no solver in an experiment": (
        lambda: jd.experiment.Sampling(lambda n: LEVELS, guidance.apg_momentum, 4),
        r"sampling.solver is apg_momentum, which is a factory: call apg_momentum\(\)",
    ),
    "two outputs wanted of a denoiser with one": (
        # A batch of two would be unpacked along its examples, in silence.
        lambda: sample(solver=solvers.ddpm("learned"), x=X[:2]),
        r"needs a network that returns \(F, frac\), got one output",
    ),
    "two outputs wanted for a bound": (
        lambda: jd.likelihood.variational_term(denoise, jd.processes.Discrete.linear(), X[:2], X[:2], jnp.array(3)),
        r"needs a network that returns \(F, frac\), got one output",
    ),
    "two outputs wanted for a loss": (
        lambda: losses.hybrid_loss(apply, jd.processes.Discrete.linear(), parameterize.eps)(None, KEY, {"x": X}),
        r"needs a network that returns \(F, frac\), got one output",
    ),
    "a process for levels": (lambda: sample(levels=FLOW), "levels must be a grid, a Level .* got Flow"),
    "a process for a prior's levels": (lambda: jd.noise.prior(FLOW, KEY, (4, 2)), "levels must be a grid, .* got Flow"),
    "one level for a grid": (lambda: jd.noise.prior(FLOW(0.5), KEY, (4, 2)), r"have shape \[N \+ 1\]"),
    "an apply for a denoiser": (lambda: sample(apply), r"denoise must be .* got apply, which takes .*jd\.denoiser\("),
    "an apply that is guided": (lambda: guidance.cfg(apply, denoise, 2.0), r"cond must be a function \(x, level\)"),
    "an apply's likelihood": (lambda: jd.likelihood.log_likelihood(apply, LEVELS, X), "denoise must be a function"),
    "integers": (
        lambda: sample(x=np.ones((4, 2), np.int32)),
        "x must be .* floating-point .* got int32.*data.to_float",
    ),
    "bytes": (lambda: loss(x=np.ones((4, 2), np.uint8)), 'the batch\'s "x" must be .* got uint8.*data.to_float'),
    "integers that are denoised": (
        lambda: jd.denoiser(apply, None, parameterize.eps)(jnp.ones((4, 2), jnp.int32), FLOW(0.5)),
        "got int32",
    ),
    "three keys for four in a prior": (lambda: jd.noise.prior(LEVELS, THREE, (4, 2)), "got 3 keys for 4 examples"),
    "an uncalled weight": (lambda: loss(weight=weights.min_snr), r"weight is min_snr, .* a factory: call min_snr\(\)"),
    "a number for a weight": (lambda: loss(weight=5.0), r"weight must be a function \(level\) -> \[B\], got 5.0"),
    "uncalled times": (lambda: loss(times=times.uniform), r"times is uniform, which is a factory: call uniform\(\)"),
    "an uncalled prediction": (
        lambda: loss(prediction=parameterize.edm),
        r"prediction is edm, .* a factory: call edm\(\)",
    ),
    "a prediction's name": (lambda: loss(prediction="velocity"), r"prediction must be a function .* got 'velocity'"),
    "a denoiser of a name": (lambda: jd.denoiser(apply, None, "eps"), "prediction must be a function .* got 'eps'"),
    "a prediction of one's own that is not called": (
        lambda: loss(prediction=lambda sigma: parameterize.eps),
        "a prediction is a function .* returns eps",
    ),
    "process and apply the other way round": (
        lambda: loss(FLOW, apply),
        "process must be a function .* got apply, which takes",
    ),
    "a class for a process": (
        lambda: jd.grids.by_time(jd.processes.Flow, 3),
        r"process is the class Flow: call Flow\(\)",
    ),
    "a class that is trained": (lambda: loss(process=jd.processes.VP), r"process is the class VP: call VP\(\)"),
    "a process without its inverse": (
        lambda: jd.grids.karras(lambda t: FLOW(t), 3, sigma_min=0.1, sigma_max=1.0),
        "has no method `time`",
    ),
    "a process without its SDE": (lambda: weights.likelihood(lambda t: FLOW(t)), "has no method `sde`"),
    "a process without its inverse in a likelihood": (
        lambda: jd.likelihood.log_likelihood(denoise, FLOW(np.array([0.9, 0.1])), X, process=lambda t: FLOW(t)),
        "has no method `time`",
    ),
    "an uncalled prediction in another one": (
        lambda: parameterize.time_scaled(parameterize.edm),
        r"prediction is edm, .* a factory: call edm\(\)",
    ),
    "a part of a grid by Python's index": (
        lambda: sample(levels=LEVELS[:-1]),
        r"levels must be a grid, .* got tuple of float32\[4\], float32\[4\]; a part of a grid is levels.at\(slice",
    ),
    "one number for each example": (
        lambda: sample(denoise=lambda x, level: x[:, :1]),
        r"denoise must return x0_hat of the shape of x, \(4, 2\), got \(4, 1\)",
    ),
    "a share of noise in words": (
        lambda: solvers.ddim("1"),
        r"eta must be a finite number in \[0, 1\], got '1'",
    ),
    "a batch that is an array in jit": (
        lambda: jax.jit(lambda x: losses.denoising_loss(apply, FLOW, parameterize.velocity)(None, KEY, x))(X),
        r'a batch is a dict with the data under "x", got float32\[4, 2\]',
    ),
    "a class in a model": (lambda: model(process=jd.processes.Flow), r"process is the class Flow: call Flow\(\)"),
    "an uncalled prediction in a model": (
        lambda: model(prediction=parameterize.edm),
        r"prediction is edm, .* a factory: call edm\(\)",
    ),
    "an uncalled medium": (
        lambda: Experiment(model(), TRAINING, SAMPLING, conditions.none(), media.points, 0),
        r"medium must be a Medium, got .*points.*, which makes one: call points\(\.\.\.\)",
    ),
    "uncalled noise": (
        lambda: solvers.ddim(1.0, noise_sampler=jd.noise.brownian),
        r"noise_sampler is brownian, which is a factory: call brownian\(\)",
    ),
    "uncalled noise of a restoration": (
        lambda: inverse.ddrm(MASK, X, 0.1, noise_sampler=jd.noise.brownian),
        "noise_sampler is brownian, which is a factory",
    ),
    "an uncalled gradient": (
        lambda: solvers.ddpm(gradient=guidance.classifier_gradient),
        r"gradient is classifier_gradient, which is a factory: call classifier_gradient\(\)",
    ),
    "another gradient": (lambda: solvers.ddpm(gradient=lambda x: x), r"gradient must be a function \(x, level\)"),
    "a share of noise in numpy": (
        lambda: solvers.ddim(np.float32(1.5)),
        r"eta must be a finite number in \[0, 1\], got 1.5",
    ),
    "two outputs where DDIM takes x0_hat": (
        lambda: sample(lambda x, level: (x, x)),
        r"<Solver ddim.* takes x0_hat, and denoise returns \(x0_hat, frac\).*drop_variance",
    ),
    "two outputs where Heun takes x0_hat": (
        lambda: sample(lambda x, level: (x, x), solvers.heun()),
        r"<Solver heun.* takes x0_hat, and denoise returns \(x0_hat, frac\).*drop_variance",
    ),
    "no denoiser to optimize by": (lambda: red_diff(None), "denoise must be a function .* got None"),
    "a class to optimize by": (lambda: red_diff(process=jd.processes.VP), r"process is the class VP: call VP\(\)"),
    "an uncalled weight to optimize by": (
        lambda: red_diff(weight=weights.min_snr),
        "weight is min_snr, which is a fac",
    ),
    "a scale in words": (lambda: guidance.cfg(denoise, denoise, "3"), "scale must be a finite number, got '3'"),
    "a level outside": (lambda: LEVELS.at(4), "a grid of 4 levels has no level 4"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_is_called_by_its_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_three_keys_for_four_examples_are_refused_by_every_solver(solver):
    with pytest.raises(ValueError, match="one key per example: got 3 keys for 4 examples"):
        sample((lambda x, cur, nxt: x) if solver.next_level else denoise, solver=solver, key=THREE)


def test_right_arguments_pass():
    assert sample(jax.jit(denoise)).shape == sample(functools.partial(denoise)).shape == (4, 2)
    assert np.isfinite(loss(lambda p, x, noise, cond=None, *, key=None: x, weight=weights.min_snr())[0])
    check_function("maximum", max, "(a, b) -> c")  # a builtin does not tell what it takes


def test_plain_numbers_are_scalings():
    """A prediction of one's own, F = eps of a process with alpha = 1, in plain numbers where it can be."""
    process = jd.processes.EDM()

    def own(level):
        return parameterize.Scalings(1, -level.sigma, 1.0, level.t)

    for level in (process(0.5), process(np.linspace(0.2, 0.8, 4))):
        for use in (
            lambda prediction, level=level: jd.denoiser(apply, None, prediction)(X, level),
            lambda prediction, level=level: parameterize.target(prediction, X, 2 * X, level),
            lambda prediction, level=level: guidance.rescale(lambda cond: cond, denoise, 0.5, prediction)(X, level),
            lambda prediction: losses.denoising_loss(apply, process, prediction, weight=weights.simple)(
                None, KEY, {"x": X}
            )[0],
        ):
            np.testing.assert_allclose(use(own), use(parameterize.eps), rtol=1e-6)
    assert not np.array_equal(jd.denoiser(apply, None, own)(X, process(0.5)), X)


def test_a_factory_names_what_it_makes():
    names = {
        solvers.heun(): "<Solver heun(): order=2, nfe=2>",
        solvers.ddim(1.0): "<Solver ddim(1.0): order=1, nfe=1, stochastic>",
        solvers.dpmpp_2m(): "<Solver dpmpp_2m(): order=2, nfe=1>",
        solvers.rk4(process=jd.processes.VP()): "<Solver rk4(process=VP): order=4, nfe=4>",
        solvers.Solver(lambda x: (), lambda *args: args[2:4]): "<Solver test_a_factory_names_what_it_makes.<lambda>: ",
        parameterize.edm(0.25): "<function edm(0.25) at",
        parameterize.time_scaled(parameterize.velocity): "<function time_scaled(velocity) at",
        parameterize.zero_based(parameterize.eps): "<function zero_based(eps) at",
        weights.min_snr(3.0): "<function min_snr(3.0) at",
        weights.likelihood(FLOW): "<function likelihood(Flow) at",
        times.logit_normal(mean=jnp.float32(1)): "<function logit_normal(mean=float32[]) at",
    }
    for made, name in names.items():
        assert repr(made).startswith(name)


def test_every_factory_of_solvers_weights_and_times_is_marked():
    for name, solver in SOLVERS.items():
        assert repr(solver).startswith(f"<Solver {name}")
    for room, plain in ((weights, {"simple", "snr_plus_one"}), (times, set())):
        assert {name for name in room.__all__ if not hasattr(getattr(room, name), "is_factory")} == plain


def test_a_name_costs_no_second_program():
    traced = []

    @jax.jit
    def run(x, eta):
        traced.append(eta)
        return jd.sample(denoise, solvers.ddim(eta), LEVELS, x, KEY)

    run(X, 0.0), run(X, 1.0)
    assert len(traced) == 1


def test_concrete_leaves_what_is_traced_alone():
    add = concrete(factory(lambda a, b: functools.partial(lambda: a + b)).__wrapped__)
    assert float(add(1.0, 2.0)()) == 3.0
    assert float(jax.grad(lambda a: concrete(jnp.multiply)(a, 3.0))(1.0)) == 3.0


def test_the_package_shows_its_rooms():
    table = (Path(__file__).parents[1] / "README.md").read_text().split("| room |")[1].split("| experiment |")[0]
    rooms = {name for cell in re.findall(r"^\| (`[^|]+) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert len(rooms) > 40
    assert rooms <= set(dir(jd)) and "import_module" not in dir(jd) and "ModuleType" not in dir(jd)
    assert all(hasattr(jd, name) for name in dir(jd))


def test_a_model_of_a_library_network_is_given_the_time_it_was_made_for():
    model, level = of_library(), FLOW(jnp.float32(0.25))
    assert model.prediction(level).noise == 250 and model.prediction(level)[:3] == parameterize.velocity(level)[:3]
    losses.denoising_loss(conditions.none().encoded(model.apply), FLOW, model.prediction)
