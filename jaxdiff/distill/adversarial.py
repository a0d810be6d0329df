"""Adversarial diffusion distillation: a few-step student against a critic on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.distill.base import Context, Teacher, check_first, check_parts, denoiser_of, split_inputs
from jaxdiff.distill.critics import (
    AdversarialLoss,
    Generator,
    Penalty,
    check_penalties,
    critic_value,
    difference_penalty,
    generator_value,
    gradient_penalty,
    hinge,
    softplus,
)
from jaxdiff.distill.distances import squared
from jaxdiff.levels import Level, check_grid, clean_level, q_sample
from jaxdiff.losses import split_batch
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import denoiser, noise_input, scalings
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.types import Apply, Batch, Cond, Loss, Metrics, Params, Prediction, TimeSampler, Weight

__all__ = [
    "Adversary",
    "Features",
    "adversarial_diffusion",
    "few_step_generator",
    "latent_adversarial_diffusion",
    "network_features",
]


class Features(Protocol):
    """What a critic is given of an example, e.g. a frozen network's inner layers."""

    def __call__(self, params: Params, context: Context, cond: Cond, /) -> Callable[[Array, Level], Any]:
        """A function (x, level) -> tree of arrays [B, ...], of a batch with this condition.

        Args:
            params: the parameters of all players.
            context: the context; frozen arrays are in context.frozen.
            cond: the condition.
        """
        ...


class Adversary(NamedTuple):
    """A critic of noised examples, see `latent_adversarial_diffusion`.

    Attributes:
        features: e.g. `network_features(...)`, those of the teacher.
        critic: (params["critic"], features, t [B], cond) -> logits, [B] or [B, ...].
        process: the process of the noise.
        times: distribution of its times t.
        loss: what the two players minimize: `softplus`, `hinge` or `relativistic`.
        r1, r2: weights of |grad D|^2 / 2 at real and at generated examples, noised, with respect to these.
        penalty: `gradient_penalty`, or `difference_penalty()`, without second derivatives.
    """

    features: Features
    critic: Apply
    process: Process
    times: TimeSampler
    loss: AdversarialLoss = softplus
    r1: float = 2.0
    r2: float = 0.0
    penalty: Penalty = difference_penalty(0.1)


@factory
def network_features(
    apply: Apply,
    prediction: Prediction,
    *,
    params: Callable[[Params, Context], Params] = lambda params, context: context.frozen["teacher"],
) -> Features:
    """The inner layers of a diffusion network.

    Args:
        apply: (params, x, noise [B], cond) -> tree of arrays, as `networks.as_features` makes it.
        prediction: the network's prediction, for the scale of its input and its noise input.
        params: (parameters of all players, context) -> the network's, by default the frozen teacher's; `lambda params,
            context: params["fake"]` are those of the score network of `distribution_matching`.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> features")
    check_function("prediction", prediction, "(level) -> Scalings")

    def features(players: Params, context: Context, cond: Cond) -> Callable[[Array, Level], Any]:
        weights = params(players, context)

        def inner(x: Array, level: Level) -> Any:
            s = scalings(prediction, level, x)
            return apply(weights, s.inp.astype(x.dtype) * x, noise_input(s, x), cond)

        return inner

    return features


@factory
def few_step_generator(apply: Apply, prediction: Prediction, levels: Level, *, dropout: bool = False) -> Generator:
    """Examples of a few-step student, x0_hat at one of the levels of its grid (Yin et al. 2024, DMD2, sec. 4.4).

    At the first level the student is given pure noise, sigma eps, and at the others noised data, alpha x_0 + sigma eps;
    the level of each example is uniform. eps is the batch's, or drawn.

    Args:
        apply: the network, (params, x, noise [B], cond) -> F.
        prediction: the network's prediction.
        levels: the student's grid, fields [N + 1]; its last level, where it ends, is not used. N = 1 is a one-step
            student. Draw with `solvers.consistency`, which adds new noise at each level.
        dropout: whether the network takes `key=` for dropout.

    Raises:
        ValueError: `levels` is not a grid; a prediction that is undefined at pure noise, where the grid starts there.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")
    check_grid(levels)
    check_first(levels.at(0), prediction)
    steps = levels.sigma.shape[0] - 1

    def generate(params: Params, key: Array, batch: Batch) -> Array:
        eps_key, index_key, net_key = jax.random.split(key, 3)
        x0, eps, cond = split_batch(batch, eps_key)
        if steps == 1:
            index = jnp.zeros(x0.shape[:1], jnp.int32)
        else:
            index = jax.random.randint(index_key, x0.shape[:1], 0, steps)
        level = levels.at(index)
        x = q_sample(x0, eps, level._replace(alpha=jnp.where(index == 0, 0, level.alpha))).astype(x0.dtype)
        return denoiser(apply, params, prediction, cond, key=net_key if dropout else None)(x, level)

    return generate


def adversarial_diffusion(
    generate: Generator,
    teacher: Teacher,
    process: Process,
    *,
    features: Features,
    critic: Apply,
    times: TimeSampler,
    loss: AdversarialLoss = hinge,
    r1: float = 2e-5,
    distillation: float = 2.5,
    weight: Weight | None = None,
) -> dict[str, Loss]:
    """Adversarial diffusion distillation (Sauer et al. 2023, ADD, arXiv:2311.17042).

    The student minimizes the adversarial loss plus distillation c(t) |x_hat - sg(teacher(x_t))|^2, a mean over the
    dimensions, where x_t is the student's own x_hat, noised.

    Args:
        generate: the student, e.g. `few_step_generator(...)`.
        teacher: e.g. `teacher(apply, prediction)`.
        process: the teacher's process.
        features: of clean examples, those of a frozen vision network: `lambda params, context, cond: lambda x, level:
            vision(context.frozen["vision"], x)`.
        critic: (params["critic"], features, t [B], cond) -> logits, [B] or [B, ...]; t is 0.
        times: distribution of the teacher's t.
        loss: what the two players minimize.
        r1: weight of |grad D|^2 / 2 at real examples, with respect to the features.
        distillation: the paper's lambda.
        weight: c(t), by level; None is alpha, the paper's exponential weighting.

    Returns:
        {"student": loss, "critic": loss}, for `train.players`; metrics of the student: "adversarial" and
        "distillation", of the critic: "real" and "fake", its mean logits.

    Raises:
        ValueError: a function with another signature, or a negative weight.
    """
    _check(generate, critic, process, times)
    check_function("teacher", teacher, "(context, cond) -> denoiser")
    check_function("features", features, "(params, context, cond) -> inner")
    check_parts(weight=weight)
    check_penalties(loss, r1, 0.0)
    check_number("distillation", distillation, low=0.0)

    def inner(
        params: Params, context: Context, x: Array, cond: Cond
    ) -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
        t = jnp.zeros(x.shape[:1], x.dtype)
        level = clean_level(Level(t, t, t))
        embed = features(params, context, cond)
        return lambda x: embed(x, level), lambda h: critic(params["critic"], h, t, cond)

    def student_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        make_key, t_key, eps_key, _ = jax.random.split(key, 4)
        real, _, cond = split_batch(batch, eps_key)
        x = generate(params["student"], make_key, batch)
        embed, logits = inner(params, context, real, cond)
        adversarial = jnp.mean(generator_value(logits, embed(real), embed(x), loss=loss))
        t, t_weight = times(t_key, x.shape[0])
        level = process(t)
        target = jax.lax.stop_gradient(
            denoiser_of(teacher, context, cond)(q_sample(x, normal_like(eps_key, x), level), level)
        )
        c = level.alpha if weight is None else weight(level)
        distilled = jnp.mean(t_weight * c * squared(x, target))
        return adversarial + distillation * distilled, {"adversarial": adversarial, "distillation": distilled}

    def critic_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        make_key, _, eps_key, penalty_key = jax.random.split(key, 4)
        real, _, cond = split_batch(batch, eps_key)
        embed, logits = inner(params, context, real, cond)
        fake = jax.lax.stop_gradient(embed(generate(params["student"], make_key, batch)))
        value, metrics = critic_value(
            logits, embed(real), fake, penalty_key, loss=loss, r1=r1, r2=0.0, penalty=gradient_penalty
        )
        return jnp.mean(value), metrics

    return {"student": student_loss, "critic": critic_loss}


def latent_adversarial_diffusion(generate: Generator, adversary: Adversary) -> dict[str, Loss]:
    """Latent adversarial diffusion distillation (Sauer et al. 2024, LADD, arXiv:2403.12015).

    A student against a critic on the frozen teacher's features of noised examples, real and generated, which have equal
    times and independent noise.

    Args:
        generate: the student, e.g. `few_step_generator(...)`.
        adversary: the critic, its features and the noise.

    Returns:
        {"student": loss, "critic": loss}, for `train.players`; metrics of the critic: "real" and "fake", its mean
        logits.

    Raises:
        ValueError: a function with another signature, or a negative penalty.
    """
    check_adversary(adversary)
    check_function("generate", generate, "(params, key, batch) -> x")

    def student_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, _ = split_inputs(inputs)
        make_key, key = jax.random.split(key)
        return adversarial_term(adversary, inputs, generate(params["student"], make_key, batch), key, batch), {}

    return {"student": student_loss, "critic": noised_critic_loss(generate, adversary)}


def noised_critic_loss(generate: Generator, adversary: Adversary) -> Loss:
    """The loss of the critic of noised examples."""

    def loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        params, _ = split_inputs(inputs)
        make_key, key, penalty_key = jax.random.split(key, 3)
        x = jax.lax.stop_gradient(generate(params["student"], make_key, batch))
        logits, real, fake, t_weight = _noised(adversary, inputs, x, key, batch)
        options: dict[str, Any] = {name: getattr(adversary, name) for name in ("loss", "r1", "r2", "penalty")}
        value, metrics = critic_value(logits, real, fake, penalty_key, **options)
        return jnp.mean(t_weight * value), metrics

    return loss


def adversarial_term(adversary: Adversary, inputs: Any, x: Array, key: Array, batch: Batch) -> Array:
    """The adversarial loss of generated examples x, a scalar."""
    logits, real, fake, t_weight = _noised(adversary, inputs, x, key, batch)
    return jnp.mean(t_weight * generator_value(logits, real, fake, loss=adversary.loss))


def check_adversary(adversary: Any) -> None:
    """Raise ValueError unless `adversary` is an Adversary whose fields have the right signatures."""
    if not isinstance(adversary, Adversary):
        raise ValueError(f"the critic and its features are an Adversary, got {adversary!r:.80}")
    check_process(adversary.process)
    check_function("features", adversary.features, "(params, context, cond) -> inner")
    check_function("critic", adversary.critic, "(params, h, t, cond) -> logits")
    check_function("times", adversary.times, "(key, batch) -> (t, weight)")
    check_penalties(adversary.loss, adversary.r1, adversary.r2, adversary.penalty)


def _noised(
    adversary: Adversary, inputs: Any, x: Array, key: Array, batch: Batch
) -> tuple[Callable[[Array], Array], Array, Array, Array]:
    """The critic as a function of noised examples, the noised real and generated examples, and the times' weights."""
    params, context = split_inputs(inputs)
    t_key, real_key, fake_key = jax.random.split(key, 3)
    real, _, cond = split_batch(batch, real_key)
    t, t_weight = adversary.times(t_key, x.shape[0])
    level = adversary.process(t)
    embed = adversary.features(params, context, cond)
    logits = lambda x: adversary.critic(params["critic"], embed(x, level), t.astype(x.dtype), cond)  # noqa: E731
    noised = lambda a, key: q_sample(a, normal_like(key, a), level).astype(a.dtype)  # noqa: E731
    return logits, noised(real, real_key), noised(x, fake_key), t_weight


def _check(generate: Generator, critic: Apply, process: Process, times: TimeSampler) -> None:
    check_process(process)
    check_function("generate", generate, "(params, key, batch) -> x")
    check_function("critic", critic, "(params, h, t, cond) -> logits")
    check_function("times", times, "(key, batch) -> (t, weight)")
