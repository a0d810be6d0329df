"""Distribution matching on a Gaussian, where the gradient of the KL divergence is known; the game of its players."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from helpers.nodes import hermite

import jaxdiff as jd
from jaxdiff import distill, parameterize, train
from jaxdiff.levels import Level

KEY = jax.random.key(0)
M, V = 0.7, 0.25  # the data
MU, K = -0.3, 0.8  # the generator, mu + k z
CONTEXT = distill.Context(jnp.zeros((), jnp.int32), None, None)
CASES = {"flow": (jd.processes.Flow(), 0.6), "edm": (jd.processes.EDM(), 1.5), "cosine": (jd.processes.Cosine(), 0.4)}


def denoise(x, level, mean, var):
    """E[x_0 | x_t] of N(mean, var)."""
    level = level.expand_to(x)
    gain = level.alpha * var / (level.alpha**2 * var + level.sigma**2)
    return mean + gain * (x - level.alpha * mean)


def teacher(context, cond):
    return lambda x, level: denoise(x, level, M, V)


def network(process):
    """The exact denoiser of N(mu, k^2), as a network that predicts x_0."""
    return lambda params, x, t, cond: denoise(x, process(t), params[0], params[1] ** 2)


def affine(params, key, batch):
    z = batch["eps"] if "eps" in batch else jax.random.normal(key, batch["x"].shape, batch["x"].dtype)
    return params[0] + params[1] * z


def noise_is(patch, eps):
    """Replace the noise that the losses draw."""
    for module in ("distill.distribution_matching", "distill.adversarial", "losses"):
        patch.setattr(importlib.import_module(f"jaxdiff.{module}"), "normal_like", lambda key, x: eps)


def quadrature(patch, t, n=12):
    """A batch and times such that a mean over the batch is the expectation over z and the noise of x_t."""
    (z, eps), w = hermite(n, axes=2)
    noise_is(patch, jnp.asarray(eps)[:, None])
    times = lambda key, batch: (jnp.full((batch,), t), jnp.asarray(w * batch))  # noqa: E731
    return {"x": jnp.zeros((len(w), 1)), "eps": jnp.asarray(z)[:, None]}, times


def gradient(loss, params, batch, player="student"):
    own = lambda part: loss(({**params, player: part}, CONTEXT), KEY, batch)[0]  # noqa: E731
    return [float(g) for g in jax.jit(jax.grad(own))(params[player])]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_kl_divergence_and_of_the_best_critic(case, monkeypatch):
    process, t = CASES[case]
    batch, times = quadrature(monkeypatch, t)
    losses = distill.distribution_matching(
        affine, teacher, process,
        apply=network(process), prediction=parameterize.x0, times=times, weight=jd.weights.simple,
    )  # fmt: skip
    alpha, sigma = (float(field) for field in process(jnp.asarray(t))[1:])
    variance = lambda var: alpha**2 * var + sigma**2  # noqa: E731
    for mu, k in ((MU, K), (M, V**0.5)):
        params = {"student": (jnp.asarray(mu), jnp.asarray(k)), "fake": (mu, k)}
        kl = [alpha**2 * (mu - M) / variance(V), alpha**2 * k * (1 / variance(V) - 1 / variance(k**2))]
        got = gradient(losses["student"], params, batch)
        np.testing.assert_allclose(got, kl, rtol=1e-10, atol=1e-12)

        def log_ratio(params, x, t, cond, mu=mu, k=k):
            return (x[:, 0] - alpha * mu) ** 2 / variance(k**2) / 2 - (x[:, 0] - alpha * M) ** 2 / variance(V) / 2

        itself = lambda params, context, cond: lambda x, level: x  # noqa: E731
        adversary = distill.Adversary(itself, log_ratio, process, times, loss=distill.hinge)
        critic = distill.latent_adversarial_diffusion(affine, adversary)["student"]
        np.testing.assert_allclose(gradient(critic, params | {"critic": ()}, batch), kl, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_an_example_by_the_papers_weight(monkeypatch):
    """Also: jit equals eager, and no gradient passes through the two denoisers, nor into the fake network."""
    process, t = jd.processes.Flow(), np.array([0.3, 0.8])
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 2, 3, 2))
    noise_is(monkeypatch, jnp.asarray(eps))
    times = lambda key, batch: (jnp.asarray(t), jnp.ones(2))  # noqa: E731
    options = {"apply": network(process), "prediction": parameterize.x0, "times": times}
    loss = distill.distribution_matching(lambda params, key, batch: params, teacher, process, **options)["student"]
    params = {"student": jnp.asarray(x), "fake": (jnp.asarray(MU), jnp.asarray(K))}
    of = lambda params: loss((params, CONTEXT), KEY, {"x": jnp.zeros_like(x)})  # noqa: E731
    grads, metrics = jax.jit(jax.grad(of, has_aux=True))(params)

    alpha, sigma = (a[:, None, None] for a in (1 - t, t))
    x_t = alpha * x + sigma * eps
    fake, real = (m + alpha * v / (alpha**2 * v + sigma**2) * (x_t - alpha * m) for m, v in ((MU, K**2), (M, V)))
    want = alpha * (fake - real) / np.mean(np.abs(x - real), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(grads["student"] * x.size, want, rtol=1e-10)
    np.testing.assert_allclose(metrics["matching"], np.sqrt(np.mean(want**2)), rtol=1e-10)
    assert not any(map(float, grads["fake"]))
    np.testing.assert_allclose(jax.jit(of)(params)[0], of(params)[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_fake_network_learns_the_students_examples(monkeypatch):
    process, t = CASES["flow"]
    batch, times = quadrature(monkeypatch, t)
    loss = distill.distribution_matching(
        affine, teacher, process, apply=network(process), prediction=parameterize.x0, times=times
    )["fake"]
    student = (jnp.asarray(MU), jnp.asarray(K))
    params = {"student": student, "fake": student}
    np.testing.assert_allclose(gradient(loss, params, batch, "fake"), 0, atol=1e-12)
    var = K**2 * t**2 / ((1 - t) ** 2 * K**2 + t**2)  # of x_0 given x_t: the floor of the loss
    np.testing.assert_allclose(loss((params, CONTEXT), KEY, batch)[0], var, rtol=1e-10)
    params["fake"] = (jnp.asarray(M), jnp.asarray(V**0.5))
    assert np.min(np.abs(gradient(loss, params, batch, "fake"))) > 1e-2
    np.testing.assert_array_equal(gradient(loss, params, batch, "student"), 0)


STEPS = 1200
START = {"student": np.float32([MU, K]), "fake": np.float32([MU, K]), "critic": np.zeros(2, np.float32)}


def game(steps_per_call):
    """DMD2 with its critic, a quadratic function of the noised example: (step, first state)."""
    process, times = jd.processes.Flow(), jd.times.stratified(0.05, 0.95)
    itself = lambda params, context, cond: lambda x, level: x  # noqa: E731
    critic = lambda params, x, t, cond: params[0] * x[:, 0] + params[1] * x[:, 0] ** 2  # noqa: E731
    losses = distill.distribution_matching(
        affine, teacher, process, apply=network(process), prediction=parameterize.x0, times=times,
        adversary=distill.Adversary(itself, critic, process, times),
    )  # fmt: skip
    rates = {"student": 0.03, "fake": 0.1, "critic": 0.01}
    decays = {"student": 0.0, "fake": 0.0, "critic": 10.0}  # without it student and critic circle about the equilibrium
    played = train.players(
        {
            name: train.Player(loss, optax.adamw(rates[name], b1=0.5, weight_decay=decays[name]))
            for name, loss in losses.items()
        },
        distill.alternate({("fake", "critic"): 5, "student": 1}),
        distill.context(),
    )
    options = {"ema": train.ema.constant(0.95), "averaged": lambda params: {"student": params["student"]}}
    step = train.make_step(
        played.loss, played.optimizer, key=KEY, given=played.given, steps_per_call=steps_per_call, **options
    )
    state = train.state_from_params(jax.tree.map(jnp.array, START), played.optimizer, toy.mesh("one"), **options)
    return step, state


@pytest.mark.slow
def test_idle_players_stay_as_they_are_and_turns_compile_once():
    step, state = game(1)
    states, data = [jax.tree.map(np.array, state)], np.random.default_rng(0).normal(size=(12, 8, 1))
    for x in data.astype(np.float32):
        state, _ = step(state, {"x": x})
        states.append(jax.tree.map(np.array, state))
    for made, (old, new) in enumerate(itertools.pairwise(states)):
        for name in START:
            part = lambda state, name=name: (state.params[name], state.opt.inner[name])  # noqa: E731
            assert toy.same(part(old), part(new)) == ((name == "student") != (made % 6 == 5))
    assert step.cache_size() == 1


@pytest.mark.slow
def test_the_game_reaches_the_data():
    """In the median of five games: one in some is thrown off, which one rounding decides."""
    ends, (step, _) = [], game(STEPS)
    for seed in range(5):
        _, state = game(STEPS)
        x = M + V**0.5 * np.random.default_rng(seed).normal(size=(STEPS, 128, 1))
        state, _ = step(state, {"x": x.astype(np.float32)})
        ends.append(state.ema["student"])
    np.testing.assert_allclose(np.median(ends, axis=0), [M, V**0.5], atol=0.05)


def test_the_middle_of_a_grid():
    levels = jd.grids.karras(jd.processes.EDM(), 50, sigma_min=0.002, sigma_max=80.0)
    levels = jd.Level(*(np.asarray(field) for field in levels))
    t, weight = jax.jit(lambda: distill.grid_times(levels)(KEY, 4000))()
    assert set(np.unique(np.asarray(t))) == set(np.asarray(levels.t[1:49])) and set(np.asarray(weight)) == {1.0}
    with pytest.raises(ValueError, match=r"no level lies between the shares low = 0\.5 and high = 0\.5"):
        distill.grid_times(levels, 0.5, 0.5)


def test_what_a_few_step_student_is_given():
    """A network that returns its input: x_0 predicted is x_t."""
    levels = Level(*(jnp.asarray(a) for a in ([0.9, 0.5, 0.2, 0.0], [0.1, 0.5, 0.8, 1.0], [0.9, 0.5, 0.2, 0.0])))
    same = lambda params, x, noise, cond: x * cond["scale"][:, None]  # noqa: E731
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 64, 3)).astype(np.float32)
    batch = {"x": jnp.asarray(x0), "eps": jnp.asarray(eps), "scale": jnp.full(64, 2.0)}
    out = jax.jit(distill.few_step_generator(same, parameterize.x0, levels))((), KEY, batch)
    choices = np.stack([0.9 * eps, 0.5 * x0 + 0.5 * eps, 0.8 * x0 + 0.2 * eps])
    errors = np.max(np.abs(np.asarray(out) - 2 * choices), axis=2)
    assert np.all(np.min(errors, axis=0) < 1e-5) and set(np.argmin(errors, axis=0)) == {0, 1, 2}
    once = jax.jit(distill.few_step_generator(same, parameterize.x0, levels.at(np.array([0, 3]))))((), KEY, batch)
    np.testing.assert_allclose(once, 2 * choices[0], rtol=1e-6)


def test_mistakes():
    process = jd.processes.Flow()
    options = {"apply": network(process), "prediction": parameterize.x0, "times": jd.times.uniform()}
    with pytest.raises(ValueError, match=r"teacher must be a function \(context, cond\) -> denoiser"):
        distill.distribution_matching(affine, lambda x: x, process, **options)
    with pytest.raises(ValueError, match="weight is min_snr, which is a factory"):
        distill.distribution_matching(affine, teacher, process, **options, weight=jd.weights.min_snr)
    fake = distill.distribution_matching(affine, teacher, process, **options)["fake"]
    with pytest.raises(ValueError, match=r"given \(params, Context\)"):
        fake({"student": (), "fake": ()}, KEY, {"x": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match="are an Adversary"):
        distill.distribution_matching(affine, teacher, process, **options, adversary=lambda x: x)
    with pytest.raises(ValueError, match="levels must be a grid"):
        distill.few_step_generator(network(process), parameterize.x0, 0.9)
