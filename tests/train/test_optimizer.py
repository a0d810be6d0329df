import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.train import adamw, projected


def moves(optimizer, gradients, start=1.0):
    """Return the parameter after each of some gradients; optax itself needs the standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        params, path = jnp.full((2,), start), []
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jnp.full((2,), gradient), state, params)
            params = optax.apply_updates(params, updates)
            path.append(float(params[0]))
    return np.array(path)


def test_constant_gradient_moves_by_the_learning_rate():
    """With a constant gradient Adam's m / sqrt(v) is 1."""
    np.testing.assert_allclose(moves(adamw(0.1, clip=None), [0.5] * 3), [0.9, 0.8, 0.7], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0, 0.05, 0.1, 0.075, 0.05, 0.025, 0]),
        ("cosine", [0, 0.05, *(0.05 * (1 + np.cos(np.pi * np.arange(5) / 4)))]),
    ],
)
def test_warmup_and_schedule(schedule, rates):
    path = moves(adamw(0.1, warmup=2, steps=6, schedule=schedule, clip=None), [0.5] * 7)
    np.testing.assert_allclose(-np.diff(path, prepend=1.0), rates, atol=1e-6)


def test_clipping_by_the_global_norm():
    """A gradient of norm 50 becomes one of norm 1; Adam sees the ratio to the small one that follows."""
    big, small = 50 / np.sqrt(2), 0.1 / np.sqrt(2)
    clipped = moves(adamw(0.1, clip=1.0), [big, small])
    unclipped = moves(adamw(0.1, clip=None), [1 / np.sqrt(2), small])
    np.testing.assert_allclose(clipped, unclipped, rtol=1e-5)


def test_weight_decay_is_decoupled():
    np.testing.assert_allclose(moves(adamw(0.1, weight_decay=0.5), [0.0]), [1 - 0.1 * 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"schedule": "step"}, {"schedule": "cosine"}, {"schedule": "linear", "warmup": 5, "steps": 5}],
)
def test_refused(arguments):
    with pytest.raises(ValueError, match="schedule"):
        adamw(0.1, **arguments)


def test_projected_updates_end_where_the_projection_of_the_others_does():
    circle = lambda x: x / jnp.linalg.norm(x)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        optimizer, x = projected(optax.sgd(0.5), circle), jnp.array([0.6, 0.8])
        updates, _ = optimizer.update(jnp.array([-1.0, 1.0]), optimizer.init(x), x)
    np.testing.assert_allclose(x + updates, np.array([1.1, 0.3]) / np.hypot(1.1, 0.3), rtol=1e-6)
