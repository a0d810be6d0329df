"""Reward and preference losses: the tilted law of a Gaussian, and the optimum of a Bradley-Terry preference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import distill, parameterize

MEAN, STD = 0.7, 0.5
PROCESS = jd.processes.VP()
STEPS = 40
# Without the step to clean data, whose noise is 0.
LEVELS = jd.grids.karras(PROCESS, STEPS + 1, sigma_min=0.02, sigma_max=200.0).at(slice(None, -1))
B_OF_REWARD, KL = 0.8, 1.6


def denoised(x, level):
    gain = STD**2 * level.alpha / (level.alpha**2 * STD**2 + level.sigma**2)
    return MEAN + gain * (x - level.alpha * MEAN)


def apply(params, x, noise, cond):
    """The exact denoiser, moved by a number at each level."""
    level = PROCESS(noise).expand_to(x)
    index = jnp.argmin(jnp.abs(LEVELS.t[None, :-1].astype(noise.dtype) - noise[:, None]), axis=1)
    return denoised(x, level) + params[index][:, None]


REFERENCE = distill.teacher(apply, parameterize.x0)


def best(levels=LEVELS):
    """The numbers at the optimum, and the samples' shift, by the linear maps of DDPM's steps."""
    a, s = np.asarray(levels.alpha, float), np.asarray(levels.sigma, float)
    gain = STD**2 * a / (a**2 * STD**2 + s**2)
    ratio = (a[:-1] * s[1:] / (a[1:] * s[:-1])) ** 2
    kept, moved = a[:-1] / a[1:] * (s[1:] / s[:-1]) ** 2, a[1:] * (1 - ratio)
    std = s[1:] * np.sqrt(1 - ratio)
    maps = kept + moved * gain[:-1]
    after = np.append(np.cumprod(maps[::-1])[::-1][1:], 1.0)  # of the steps that follow
    return std**2 * after / moved * B_OF_REWARD / KL, np.sum(std**2 * after**2) * B_OF_REWARD / KL


def loss_of(last=STEPS, kl=KL):
    return distill.reward_loss(
        apply, LEVELS, parameterize.x0, lambda x0, cond: B_OF_REWARD * x0[:, 0], solver=jd.solvers.ddpm(), last=last,
        reference=REFERENCE, kl=kl,
    )  # fmt: skip


def inputs(params):
    frozen = {"teacher": jnp.zeros(STEPS)}
    return params, distill.Context(jnp.int32(0), None, frozen)


@pytest.mark.usefixtures("x64")
def test_a_linear_reward_of_a_gaussian_moves_its_mean_by_the_variance():
    """p_ref exp(b x / kl): at the optimum the gradient is 0 whatever is drawn, and the samples move by C b / kl."""
    batch, key = {"x": jnp.zeros((3, 1))}, jax.random.key(0)
    params, shift = best()
    many = jd.grids.karras(PROCESS, 4000, sigma_min=0.002, sigma_max=200.0).at(slice(None, -1))
    np.testing.assert_allclose(best(many)[1], STD**2 * B_OF_REWARD / KL, rtol=5e-3)

    @jax.jit
    def gradient(params, key):
        return jax.grad(lambda p: loss_of()(inputs(p), key, batch)[0])(params)

    for seed in range(2):
        np.testing.assert_allclose(gradient(jnp.asarray(params), jax.random.key(seed)), 0, atol=1e-7)
    assert np.abs(gradient(jnp.zeros(STEPS), key)).max() > 1e-3
    rewards = [float(loss_of()(inputs(jnp.asarray(p)), key, batch)[1]["reward"]) for p in (params, 0 * params)]
    np.testing.assert_allclose(rewards[0] - rewards[1], B_OF_REWARD * shift, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_gradient_goes_through_the_last_steps_only():
    batch, key, zero = {"x": jnp.zeros((3, 1))}, jax.random.key(0), jnp.zeros(STEPS)
    gradient = lambda loss: jax.grad(lambda p: loss(inputs(p), key, batch)[0])(zero)  # noqa: E731
    grads = {last: gradient(loss_of(last, 0.0)) for last in (5, STEPS)}
    np.testing.assert_array_equal(grads[5][:-5], 0)
    # Of a linear reward the gradient does not depend on what is drawn.
    np.testing.assert_allclose(grads[5][-5:], grads[STEPS][-5:], rtol=1e-9)
    assert np.abs(grads[STEPS]).min() > 0


@pytest.mark.usefixtures("x64")
def test_the_samples_are_those_of_all_steps_with_any_history():
    batch, key, params = {"x": jnp.zeros((3, 1))}, jax.random.key(0), jnp.linspace(0.1, 0.3, STEPS)
    reward = lambda x0, cond: x0[:, 0]  # noqa: E731
    loss = lambda last: distill.reward_loss(  # noqa: E731
        apply, LEVELS, parameterize.x0, reward, solver=jd.solvers.dpmpp_2m(), last=last
    )
    rewards = [float(loss(last)(inputs(params), key, batch)[1]["reward"]) for last in (STEPS, 5, 1)]
    np.testing.assert_allclose(rewards[1:], rewards[0], rtol=1e-12)


def test_the_error_where_its_weight_is_zero():
    """At the last time of a table without signal the weight by the error of eps is 0."""
    table = jd.processes.Discrete.linear(20).zero_terminal_snr()
    network = lambda params, x, noise, cond: params * x  # noqa: E731
    loss = distill.preference_loss(
        network, table, parameterize.v, reference=distill.teacher(network, parameterize.v), beta=1.0,
        times=lambda key, batch: (jnp.full(batch, 20), jnp.ones(batch)),
    )  # fmt: skip
    context = distill.Context(jnp.int32(0), None, {"teacher": jnp.float32(0.5)})
    batch = {name: jnp.full((2, 3), value) for name, value in (("x", 1.0), ("rejected", -1.0), ("eps", 0.5))}
    value, metrics = loss((jnp.float32(0.5), context), jax.random.key(0), batch)
    np.testing.assert_allclose([value, metrics["mse"]], [np.log(2), (1 + 0.5 * 0.5) ** 2], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_preference_of_bradley_and_terry_is_best_met_by_its_own_reward():
    """Pairs are preferred with the probability that the network itself gives: there the mean gradient is 0."""
    a, b, eps = np.random.default_rng(0).normal(size=(3, 1, 2))
    t, beta, params = 0.4, 3.0, np.array([0.2, -0.3])
    level = PROCESS(jnp.array([t])).expand_to(a)

    def network(params, x, noise, cond):
        return denoised(x, PROCESS(noise).expand_to(x)) + params[0] + params[1] * x

    def gain(x0, params):
        """The error's decrease, in numpy."""
        alpha, sigma = (float(field[0, 0]) for field in (level.alpha, level.sigma))
        x = alpha * x0 + sigma * eps
        plain = MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        errors = [np.mean((d - x0) ** 2) for d in (plain, plain + params[0] + params[1] * x)]
        return (alpha / sigma) ** 2 * (errors[0] - errors[1])

    loss = distill.preference_loss(
        network, PROCESS, parameterize.x0, reference=distill.teacher(network, parameterize.x0), beta=beta,
        times=lambda key, batch: (jnp.full(batch, t), jnp.ones(batch)),
    )  # fmt: skip

    def of_pair(params, won, lost):
        context = distill.Context(jnp.int32(0), None, {"teacher": jnp.zeros(2)})
        batch = {"x": jnp.asarray(won), "rejected": jnp.asarray(lost), "eps": jnp.asarray(eps)}
        return loss((params, context), jax.random.key(0), batch)

    margin = beta / 2 * (gain(a, params) - gain(b, params))
    value, metrics = of_pair(jnp.asarray(params), a, b)
    np.testing.assert_allclose(value, np.log1p(np.exp(-margin)), rtol=1e-9)
    assert float(metrics["accuracy"]) == (margin > 0)
    np.testing.assert_allclose(of_pair(jnp.zeros(2), a, b)[0], np.log(2), rtol=1e-12)
    share = 1 / (1 + np.exp(-margin))
    mean = lambda p: share * of_pair(p, a, b)[0] + (1 - share) * of_pair(p, b, a)[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(mean)(jnp.asarray(params)), 0, atol=1e-9)
    assert np.abs(jax.grad(mean)(jnp.zeros(2))).max() > 1e-3
    with pytest.raises(ValueError, match='the other example of each pair as "rejected"'):
        loss((params, distill.Context(jnp.int32(0), None, {})), jax.random.key(0), {"x": jnp.asarray(a)})


def test_mistakes():
    for options, words in (
        ({"last": 0}, "last must lie between 1 and the grid's 40 steps, got 0"),
        ({"reference": None}, "a KL penalty needs a reference"),
        ({"solver": jd.solvers.heun()}, "a solver of one evaluation a step"),
        ({"kl": -1.0}, "kl must be"),
    ):
        options = {"solver": jd.solvers.ddpm(), "last": 1, "reference": REFERENCE, "kl": 1.0} | options
        with pytest.raises(ValueError, match=words):
            distill.reward_loss(apply, LEVELS, parameterize.x0, lambda x0, cond: x0[:, 0], **options)
    to_clean = jd.grids.karras(PROCESS, 4, sigma_min=0.02, sigma_max=200.0)
    with pytest.raises(ValueError, match="the step to sigma = 0 is not penalized"):
        distill.reward_loss(
            apply, to_clean, parameterize.x0, lambda x0, cond: x0[:, 0], solver=jd.solvers.ddpm(), last=1, kl=1.0,
            reference=REFERENCE,
        )  # fmt: skip
    loss = distill.reward_loss(
        apply, LEVELS, parameterize.x0, lambda x0, cond: x0[:, 0], solver=jd.solvers.plms(), last=1, kl=1.0,
        reference=REFERENCE,
    )  # fmt: skip
    with pytest.raises(ValueError, match="elsewhere than at a step's start"):
        loss(inputs(jnp.zeros(STEPS)), jax.random.key(0), {"x": jnp.zeros((3, 1))})
