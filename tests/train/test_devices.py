"""A run that moves between devices: from eight to four to one and back, along other axes of the mesh each time."""

import itertools

import jax
import numpy as np
import pytest
from helpers import toy

from jaxdiff import train

EACH = 3  # steps on each mesh
MESHES = [(2, 4), (2, 2), (1, 1), (1, 8)]  # data, fsdp


def advance(state, step, mesh, count):
    """Train on; return the state and the losses."""
    losses = []
    for batch in itertools.islice(toy.batches(start=int(state.step)), count):
        state, metrics = step(state, train.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.slow
def test_values_are_kept_and_training_goes_on(tmp_path):
    """Bit for bit where it is read; in sums over other parts of a batch the last digits differ."""
    made = train.make_step(toy.noisy_loss, toy.ADAMW, key=jax.random.key(1), ema=train.ema.constant(0.9))
    places = [train.make_mesh(*sizes, devices=jax.devices()[: sizes[0] * sizes[1]]) for sizes in MESHES]
    state = train.init_state(toy.init, toy.ADAMW, jax.random.key(0), places[0])
    straight, expected = advance(
        train.init_state(toy.init, toy.ADAMW, jax.random.key(0), places[2]), made, places[2], EACH * len(places)
    )
    found, saved = [], None
    for mesh in places:
        if saved is not None:
            with train.Checkpointer(tmp_path, read_only=True) as reader:
                restored = reader.restore(train.state_shapes(toy.init, toy.ADAMW, mesh))
            assert toy.same(restored, saved)
            shards = restored.params["hidden"]["kernel"].sharding
            assert len(shards.device_set) == mesh.size and int(restored.step) == len(found)
            state = restored
        state, losses = advance(state, made, mesh, EACH)
        found += losses
        saved = jax.tree.map(np.array, state)
        with train.Checkpointer(tmp_path) as writer:
            writer.save(state)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # Adam divides by the root of a mean of squares, which for rare gradients is near 0.
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(straight.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-5)
