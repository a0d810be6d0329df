"""What generators and critics minimize, and penalties of a critic's gradient.

A critic D is a network, (params, h, t[B], cond) -> logits, [B] or [B, ...], of an example or its features h. Real
examples get high logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.checks import check_function, check_number, factory
from jaxdiff.noise import normal_like
from jaxdiff.types import Batch, Params

__all__ = [
    "AdversarialLoss",
    "Generator",
    "Penalty",
    "check_penalties",
    "critic_value",
    "difference_penalty",
    "generator_value",
    "gradient_penalty",
    "hinge",
    "relativistic",
    "softplus",
]

Logits = Callable[[Any], Array]  # a tree of arrays [B, ...] -> [B] or [B, ...]


class AdversarialLoss(NamedTuple):
    """What the two players minimize: functions (logits of real, logits of generated examples) -> loss of each logit.

    Attributes:
        critic: the critic's.
        generator: the generator's.
    """

    critic: Callable[[Array, Array], Array]
    generator: Callable[[Array, Array], Array]


class Generator(Protocol):
    """A function that makes examples, e.g. a few-step student by `few_step_generator`."""

    def __call__(self, params: Params, key: Array, batch: Batch, /) -> Array:
        """Generated examples.

        Args:
            params: the generator's parameters.
            key: one key, for its noise.
            batch: "x", real examples, and the condition.

        Returns:
            examples like the batch's "x".
        """
        ...


class Penalty(Protocol):
    """A penalty of a critic's slope: `gradient_penalty`, `difference_penalty()`."""

    def __call__(self, logits: Logits, h: Any, key: Array, /) -> Array:
        """The squared norm of the critic's gradient, or an estimate.

        Args:
            logits: the critic, h -> [B] or [B, ...].
            h: what the critic is given, a tree of arrays [B, ...].
            key: one key.

        Returns:
            [B].
        """
        ...


# max(0, 1 - D(real)) + max(0, 1 + D(fake)); the generator minimizes -D(fake) (Lim and Ye 2017, arXiv:1705.02894).
hinge = AdversarialLoss(
    critic=lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
    generator=lambda real, fake: -fake,
)

# Cross-entropy, and for the generator -log sigmoid(D(fake)), which does not saturate (Goodfellow et al. 2014, sec. 3).
softplus = AdversarialLoss(
    critic=lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
    generator=lambda real, fake: jax.nn.softplus(-fake),
)

# Of pairs of a real and a generated example (Jolicoeur-Martineau 2018, arXiv:1807.00734; Huang et al. 2024, R3GAN).
relativistic = AdversarialLoss(
    critic=lambda real, fake: jax.nn.softplus(fake - real),
    generator=lambda real, fake: jax.nn.softplus(real - fake),
)


def gradient_penalty(logits: Logits, h: Any, key: Array) -> Array:
    """|grad_h D|^2, D being the mean of an example's logits (Mescheder et al. 2018, arXiv:1801.04406)."""
    grads = jax.grad(lambda h: jnp.sum(_mean(logits(h))))(h)
    squares = [jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
    return jnp.sum(jnp.stack(squares), axis=0)


@factory
def difference_penalty(std: float = 0.1) -> Penalty:
    """(D(h + std n) - D(h))^2 / std^2 with normal n: |grad_h D|^2 without a derivative, up to O(std^2).

    The approximate R1 of Lin et al. 2025 (arXiv:2501.08316), divided by std^2 here.

    Args:
        std: standard deviation of the perturbation, in units of h.

    Raises:
        ValueError: std is not positive.
    """
    check_number("std", std, low=1e-12)

    def penalty(logits: Logits, h: Any, key: Array) -> Array:
        keys = jax.random.split(key, len(jax.tree.leaves(h)))
        keys = jax.tree.unflatten(jax.tree.structure(h), list(keys))
        near = jax.tree.map(lambda leaf, k: leaf + std * normal_like(k, leaf), h, keys)
        return jnp.square((_mean(logits(near)) - _mean(logits(h))) / std)

    return penalty


def critic_value(
    logits: Logits, real: Any, fake: Any, key: Array, *, loss: AdversarialLoss, r1: float, r2: float, penalty: Penalty
) -> tuple[Array, dict[str, Array]]:
    """The critic's loss with its penalties, r1 / 2 |grad D(real)|^2 + r2 / 2 |grad D(fake)|^2.

    Args:
        logits: the critic, h -> [B] or [B, ...].
        real, fake: trees of arrays [B, ...].
        key: one key.
        loss, r1, r2, penalty: as for `gan`.

    Returns:
        (loss of each example [B], metrics: "real" and "fake", the mean logits).
    """
    on_real, on_fake = logits(real), logits(fake)
    value = _mean(loss.critic(on_real, on_fake))
    for i, (weight, h) in enumerate(((r1, real), (r2, fake))):
        if weight != 0:
            value = value + weight / 2 * penalty(logits, h, jax.random.fold_in(key, i))
    return value, {"real": jnp.mean(on_real), "fake": jnp.mean(on_fake)}


def generator_value(logits: Logits, real: Any, fake: Any, *, loss: AdversarialLoss) -> Array:
    """The generator's loss of each example, [B]; arguments as for `critic_value`."""
    return _mean(loss.generator(logits(real), logits(fake)))


def check_penalties(loss: Any, r1: float, r2: float, penalty: Penalty = gradient_penalty) -> None:
    """Raise ValueError unless `loss` is an AdversarialLoss, `penalty` a function, and its weights are not negative."""
    if not isinstance(loss, AdversarialLoss):
        raise ValueError(f"loss must be an AdversarialLoss: hinge, softplus or relativistic; got {loss!r:.80}")
    check_number("r1", r1, low=0.0)
    check_number("r2", r2, low=0.0)
    check_function("penalty", penalty, "(logits, h, key) -> [B]")


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=range(1, x.ndim))
