"""A generative adversarial network, trained in one step from noise to data without diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function
from jaxdiff.distill.base import split_inputs
from jaxdiff.distill.critics import (
    AdversarialLoss,
    Generator,
    Penalty,
    check_penalties,
    critic_value,
    generator_value,
    gradient_penalty,
    relativistic,
)
from jaxdiff.losses import split_batch
from jaxdiff.types import Apply, Batch, Loss, Metrics

__all__ = ["alternate", "gan"]


def gan(
    generate: Generator,
    critic: Apply,
    *,
    loss: AdversarialLoss = relativistic,
    r1: float = 1.0,
    r2: float = 1.0,
    penalty: Penalty = gradient_penalty,
) -> dict[str, Loss]:
    """The losses of a generator and a critic; by default R3GAN's (Huang et al. 2024, arXiv:2501.05441, sec. 2).

    Args:
        generate: the generator, (params, key, batch) -> x.
        critic: the critic, (params, x, t [B], cond) -> logits, [B] or [B, ...]; t is 0.
        loss: what the two minimize: `relativistic`, `softplus` or `hinge`.
        r1: weight of |grad D|^2 / 2 at real examples, the paper's gamma.
        r2: the same at generated examples.
        penalty: `gradient_penalty`, or `difference_penalty()` for a critic without second derivatives.

    Returns:
        {"generator": loss, "critic": loss}, for the players of `train.players`, whose parameters have these names; each
        loss is a function ((params, context), key, batch) -> (loss, metrics). The critic's metrics: "real" and "fake",
        its mean logits.

    Raises:
        ValueError: a function with another signature, or a negative penalty.
    """
    check_function("generate", generate, "(params, key, batch) -> x")
    check_function("critic", critic, "(params, x, t, cond) -> logits")
    check_penalties(loss, r1, r2, penalty)

    def prepare(inputs: Any, key: Array, batch: Batch) -> tuple[Any, Array, Array, Array]:
        params, _ = split_inputs(inputs, object)
        make_key, eps_key, penalty_key = jax.random.split(key, 3)
        real, _, cond = split_batch(batch, eps_key)
        t = jnp.zeros(real.shape[:1], real.dtype)
        return (
            lambda x: critic(params["critic"], x, t, cond),
            real,
            generate(params["generator"], make_key, batch),
            penalty_key,
        )

    def generator_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        logits, real, fake, _ = prepare(inputs, key, batch)
        return jnp.mean(generator_value(logits, real, fake, loss=loss)), {}

    def critic_loss(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        logits, real, fake, key = prepare(inputs, key, batch)
        fake = jax.lax.stop_gradient(fake)
        value, metrics = critic_value(logits, real, fake, key, loss=loss, r1=r1, r2=r2, penalty=penalty)
        return jnp.mean(value), metrics

    return {"generator": generator_loss, "critic": critic_loss}


def alternate(turns: Mapping[str | tuple[str, ...], int]) -> Callable[[Array], dict[str, Array]]:
    """Make the turns of `train.players`: some updates of the first players, some of the next, and so on, repeated.

    >>> turn = alternate({("fake", "critic"): 5, "student": 1})
    >>> {name: bool(on) for name, on in turn(11).items()}
    {'fake': False, 'critic': False, 'student': True}

    Args:
        turns: number of updates in a turn, by the name of the player, or of several that train together.

    Returns:
        (number of updates so far) -> for each name, whether the next update is its turn.

    Raises:
        ValueError: no players, a player in two turns, or a turn of less than 1 update.
    """
    groups = [(names,) if isinstance(names, str) else names for names in turns]
    names = [name for group in groups for name in group]
    if not names or len(set(names)) != len(names) or any(count < 1 for count in turns.values()):
        raise ValueError(f"each player has a turn of at least 1 update, got {dict(turns)}")
    ends = [sum(list(turns.values())[: i + 1]) for i in range(len(turns))]

    def turn(made: Array) -> dict[str, Array]:
        place = jnp.asarray(made) % ends[-1]
        starts = [0, *ends[:-1]]
        return {
            name: (start <= place) & (place < end)
            for group, start, end in zip(groups, starts, ends, strict=True)
            for name in group
        }

    return turn
