"""Adversarial distillation on Gaussians: the teacher's pull to the mean, the best critic, what the critic is given."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nodes import hermite

import jaxdiff as jd
from jaxdiff import distill, parameterize

KEY = jax.random.key(0)
FLOW = jd.processes.Flow()
M, V = 0.7, 0.25  # the data
MU, K = 0.2, 0.8  # the generator, mu + k z
CONTEXT = distill.Context(jnp.zeros((), jnp.int32), None, None)
ADVERSARIAL = importlib.import_module("jaxdiff.distill.adversarial")


def itself(params, context, cond):
    return lambda x, level: x


def given(params, key, batch):
    """A student whose parameters are its examples."""
    return params


def teacher(context, cond):
    def denoise(x, level):
        level = level.expand_to(x)
        gain = level.alpha * V / (level.alpha**2 * V + level.sigma**2)
        return M + gain * (x - level.alpha * M)

    return denoise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("process", "t"), [(FLOW, 0.6), (jd.processes.Cosine(), 0.3)], ids=["flow", "cosine"])
def test_distillation_alone_draws_every_example_to_the_mean(process, t, monkeypatch):
    (eps,), w = hermite(3)
    monkeypatch.setattr(ADVERSARIAL, "normal_like", lambda key, x: jnp.asarray(eps)[:, None])
    times = lambda key, batch: (jnp.full((batch,), t), jnp.asarray(3 * w))  # noqa: E731
    options = {"features": itself, "critic": lambda params, h, t, cond: 0 * h[:, 0], "times": times}
    level = process(jnp.asarray(t))
    alpha, sigma = float(level.alpha), float(level.sigma)
    for weight, c in ((lambda level: jnp.ones_like(level.t), 1.0), (None, alpha)):
        losses = distill.adversarial_diffusion(given, teacher, process, **options, distillation=2.0, weight=weight)

        @jax.jit
        def gradient(x, loss=losses["student"]):
            batch = {"x": jnp.full((3, 1), 5.0)}  # a teacher of the real example would draw elsewhere
            of = lambda x: loss(({"student": jnp.full((3, 1), x), "critic": ()}, CONTEXT), KEY, batch)  # noqa: E731
            return jax.grad(of, has_aux=True)(x)

        for x in (-1.0, M, 1.9):
            want = 2 * c * 2 * sigma**2 / (alpha**2 * V + sigma**2) * (x - M)
            got, metrics = gradient(x)
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
            assert float(metrics["adversarial"]) == 0.0 < float(metrics["distillation"])


@pytest.mark.usefixtures("x64")
def test_hinge_and_r1_on_features():
    """D = 2 a - 3 b of features (a, b) = (x^2, x / 2): |grad D|^2 is 13 wherever it is taken."""
    features = lambda params, context, cond: lambda x, level: {"a": x**2, "b": x / 2}  # noqa: E731
    critic = lambda params, h, t, cond: params[0] * h["a"][:, 0] + params[1] * h["b"][:, 0]  # noqa: E731
    real, fake = np.array([[0.3], [1.2]]), np.array([[-0.4], [0.9]])
    params = {"student": jnp.asarray(fake), "critic": jnp.asarray([2.0, -3.0])}
    D = lambda x: 2 * x[:, 0] ** 2 - 1.5 * x[:, 0]  # noqa: E731

    @jax.jit
    def values(params, x):
        losses = distill.adversarial_diffusion(
            given, teacher, FLOW,
            features=features, critic=critic, times=jd.times.uniform(), r1=0.4, distillation=0.0,
        )  # fmt: skip
        student = lambda x: losses["student"]((params | {"student": x}, CONTEXT), KEY, {"x": real})[0]  # noqa: E731
        of = lambda params: losses["critic"]((params, CONTEXT), KEY, {"x": x})[0]  # noqa: E731
        return *jax.value_and_grad(of)(params), jax.grad(student)(params["student"])

    value, grads, student = values(params, jnp.asarray(real))
    hinge = np.mean(np.maximum(0, 1 - D(real)) + np.maximum(0, 1 + D(fake)))
    np.testing.assert_allclose(value, hinge + 0.2 * 13, rtol=1e-12)
    assert np.all(np.asarray(grads["critic"]) != 0) and not np.any(grads["student"])
    np.testing.assert_allclose(student, -(4 * fake - 1.5) / 2, rtol=1e-12)  # through the features


@pytest.mark.usefixtures("x64")
def test_the_best_critic_of_noised_examples(monkeypatch):
    """log p - log q: no gradient, and the loss is 2 log 2 less twice the Jensen-Shannon divergence."""
    t = 0.5
    (z, eps), w = hermite(40, axes=2)
    monkeypatch.setattr(ADVERSARIAL, "normal_like", lambda key, x: jnp.asarray(eps)[:, None])
    alpha = sigma = 0.5
    variance = lambda var: alpha**2 * var + sigma**2  # noqa: E731

    def log_density(x, mean, var):
        return -((x - alpha * mean) ** 2) / variance(var) / 2 - jnp.log(2 * np.pi * variance(var)) / 2

    def critic(params, x, t, cond):
        a, b, c, (mu, k) = params
        return log_density(x, M, V) - log_density(x, mu, k**2) + a + b * x + c * x**2

    times = lambda key, batch: (jnp.full((batch,), t), jnp.asarray(w * batch))  # noqa: E731
    adversary = distill.Adversary(itself, critic, FLOW, times, r1=0.0)
    generate = lambda params, key, batch: params[0] + params[1] * batch["z"]  # noqa: E731
    loss = distill.latent_adversarial_diffusion(generate, adversary)["critic"]

    @jax.jit
    def both(student):
        batch = {"x": jnp.asarray(M + V**0.5 * z)[:, None], "z": jnp.asarray(z)[:, None]}
        of = lambda extra: loss(({"student": student, "critic": (*extra, student)}, CONTEXT), KEY, batch)[0]  # noqa: E731
        return jax.value_and_grad(of)((jnp.zeros(()),) * 3)

    grid = np.linspace(-6, 6, 20001)
    for mu, k in ((MU, K), (M, V**0.5)):
        value, grads = both((jnp.asarray(mu), jnp.asarray(k)))
        p, q = (np.exp(log_density(grid, m, v)) for m, v in ((M, V), (mu, k**2)))
        divergence = np.sum(p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))) * (grid[1] - grid[0])
        np.testing.assert_allclose(value, 2 * np.log(2) - divergence, rtol=1e-6)
        np.testing.assert_allclose(grads, 0, atol=1e-6)
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-12)  # at p = q


def test_real_and_generated_examples_have_equal_times_and_independent_noise():
    times = jd.times.uniform(0.1, 0.9)
    both = lambda params, x, t, cond: params * t * x[:, 0]  # noqa: E731
    adversary = distill.Adversary(itself, both, FLOW, times, loss=distill.AdversarialLoss(
        critic=lambda real, fake: real * fake, generator=lambda real, fake: real - fake
    ), r1=0.0)  # fmt: skip
    losses = distill.latent_adversarial_diffusion(given, adversary)
    zero, n = jnp.zeros((20_000, 1)), 20_000

    @jax.jit
    def moments(fake):
        seen = ({"student": fake, "critic": jnp.ones(())}, CONTEXT)
        return losses["critic"](seen, KEY, {"x": zero})[0], losses["student"](seen, KEY, {"x": zero + 1})[0]

    product, _ = moments(zero)
    assert abs(float(product)) < 5 * 0.5 / np.sqrt(n)  # independent noise of mean 0; with equal noise it is 0.16
    _, difference = moments(zero + 1)
    assert abs(float(difference)) < 5 * 0.7 / np.sqrt(n)  # the same alpha


def test_features_of_a_network_are_taken_at_the_scale_of_its_prediction():
    calls = {}

    def apply(params, x, noise, cond):
        calls.update(params=params, x=x, noise=noise, cond=cond)
        return {"inner": x}

    level = jd.processes.EDM()(jnp.asarray([2.0, 0.5]))
    features = distill.network_features(apply, parameterize.edm(0.5))
    context = CONTEXT._replace(frozen={"teacher": "weights"})
    features({}, context, {"label": 1})(jnp.ones((2, 3)), level)
    assert calls["params"] == "weights" and calls["cond"] == {"label": 1}
    scale = 1 / np.sqrt(np.array([2.0, 0.5]) ** 2 + 0.25)
    np.testing.assert_allclose(calls["x"], np.broadcast_to(scale[:, None], (2, 3)), rtol=1e-6)
    np.testing.assert_allclose(calls["noise"], np.log([2.0, 0.5]) / 4, rtol=1e-6)
    fake = distill.network_features(apply, parameterize.edm(0.5), params=lambda params, context: params["fake"])
    fake({"fake": "its own"}, context, {})(jnp.ones((2, 3)), level)
    assert calls["params"] == "its own"


def test_mistakes():
    with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
        distill.few_step_generator(lambda p, x, n, c: x, parameterize.eps, jd.grids.by_time(FLOW, 2))
    critic = lambda params, h, t, cond: h[:, 0]  # noqa: E731
    options = {"features": itself, "critic": critic, "times": jd.times.uniform()}
    with pytest.raises(ValueError, match="distillation must be a finite number"):
        distill.adversarial_diffusion(given, teacher, FLOW, **options, distillation=-1.0)
    with pytest.raises(ValueError, match=r"features must be a function \(params, context, cond\) -> inner"):
        distill.adversarial_diffusion(given, teacher, FLOW, **options | {"features": lambda x: x})
    with pytest.raises(ValueError, match="r2 must be a finite number"):
        distill.latent_adversarial_diffusion(given, distill.Adversary(itself, critic, FLOW, options["times"], r2=-1))
    with pytest.raises(ValueError, match="are an Adversary"):
        distill.latent_adversarial_diffusion(given, critic)
    with pytest.raises(ValueError, match="weight is min_snr, which is a factory"):
        distill.adversarial_diffusion(given, teacher, FLOW, **options, weight=jd.weights.min_snr)
    adversary = distill.Adversary(itself, critic, FLOW, options["times"])
    with pytest.raises(ValueError, match="penalty is difference_penalty, which is a factory"):
        distill.latent_adversarial_diffusion(given, adversary._replace(penalty=distill.difference_penalty))
    for losses in (
        distill.adversarial_diffusion(given, teacher, FLOW, **options),
        distill.latent_adversarial_diffusion(given, adversary),
    ):
        for loss in losses.values():
            with pytest.raises(ValueError, match=r"given \(params, Context\)"):
                loss({"student": (), "critic": ()}, KEY, {"x": jnp.ones((2, 1))})
