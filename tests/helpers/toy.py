"""A small regression that trains in milliseconds, for every test of this room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import sharding, train

WIDTH, HIDDEN = 8, 512  # WIDTH * HIDDEN is just enough elements to be sharded over "fsdp"
ADAMW = train.adamw(1e-3, warmup_steps=3, steps=100, schedule="cosine")
SGD = optax.sgd(0.1)
MESHES = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "mixed": (2, 4)}


def mesh(name):
    data, fsdp = MESHES[name]
    return train.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": 0.3 * jax.random.normal(first, (WIDTH, HIDDEN)), "bias": jnp.zeros((HIDDEN,))},
        "out": {"kernel": 0.05 * jax.random.normal(second, (HIDDEN, WIDTH)), "bias": jnp.zeros((WIDTH,))},
    }


def network(params, x):
    first, second = (
        sharding.gathered_weight((name, "kernel"), params[name]["kernel"], x.dtype) for name in ("hidden", "out")
    )
    return jnp.tanh(x @ first + params["hidden"]["bias"][None]) @ second + params["out"]["bias"][None]


def plain_loss(params, key, batch):
    """No randomness."""
    error = network(params, batch["x"]) - jnp.sin(2.0 * batch["x"])
    value = jnp.mean(error**2)
    return value, {"rmse": jnp.sqrt(value)}


def noisy_loss(params, key, batch):
    """Denoising, with noise drawn from the step's key."""
    noise = jax.random.normal(key, batch["x"].shape)
    value = jnp.mean((network(params, batch["x"] + noise) - noise) ** 2)
    return value, {}


def batches(size=16, start=0, poison=None):
    """Batch number k depends on k only; number `poison` is not finite."""
    k = start
    while True:
        x = np.random.default_rng(k).normal(size=(size, WIDTH)).astype(np.float32)
        yield {"x": np.full_like(x, np.nan) if k == poison else x}
        k += 1


@functools.cache
def _made(where, optimizer):
    state = train.init_state(init, optimizer, jax.random.key(0), mesh(where))
    return jax.tree.map(np.array, state), jax.tree.map(lambda x: x.sharding, state)


@functools.cache
def _step(where, loss, optimizer, grad_accum_steps):
    average = train.ema.constant(0.9)
    return train.make_step(loss, optimizer, key=jax.random.key(1), ema=average, grad_accum_steps=grad_accum_steps)


def new(where="one", loss=noisy_loss, optimizer=ADAMW, grad_accum_steps=1):
    """Return (mesh, state, step); what compiles is shared by all tests, the state is not."""
    values, places = _made(where, optimizer)
    return mesh(where), jax.device_put(values, places), _step(where, loss, optimizer, grad_accum_steps)


def same(a, b):
    """Whether two trees are equal bit for bit."""
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(equal))
