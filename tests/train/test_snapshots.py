"""Averages of other lengths, of snapshots on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy

from jaxdiff import train

STDS = (0.05, 0.1)
DECAYS = tuple(train.ema.power(std) for std in STDS)
STEPS, EVERY = 48, 4
PATH = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 64, 128)) / STEPS, axis=0).astype(np.float32)


def tracked(std, until=STEPS):
    """The average over the path, by its definition: the weight at tau is tau^(g+1) - (tau-1)^(g+1)."""
    gamma = train.ema.power(std).gamma
    weights = np.diff(np.arange(until + 1.0) ** (gamma + 1)) / float(until) ** (gamma + 1)
    return np.tensordot(weights, PATH[:until].astype(np.float64), 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The snapshots of a walk through parameters, sharded while it was made."""
    workdir, mesh = tmp_path_factory.mktemp("run"), toy.mesh("mixed")
    make = lambda key: {"a": {"kernel": jnp.zeros((64, 128))}}  # noqa: E731
    state = train.init_state(make, toy.SGD, jax.random.key(0), mesh, ema=DECAYS)
    advance = jax.jit(lambda state, params: state._replace(
        step=state.step + 1, ema=train.ema.update_all(state.ema, params, DECAYS, state.step - state.skipped)
    ))  # fmt: skip
    with train.Snapshots(workdir) as snapshots:
        for number, values in enumerate(PATH):
            state = advance(state, {"a": {"kernel": values}})
            if number == 9:  # a batch whose update was not made
                state = state._replace(step=state.step + 1, skipped=state.skipped + 1)
            if (number + 1) % EVERY == 0:
                snapshots.save(state)
        snapshots.save(state._replace(ema=jax.tree.map(jnp.zeros_like, state.ema)))  # again: the first one stays
    assert sorted(int(p.name) for p in (workdir / "snapshots").iterdir()) == list(range(EVERY, STEPS + 1, EVERY))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("std", "step"), [(0.05, None), (0.1, STEPS), (0.1, 24)])
def test_what_was_stored_comes_back(run, std, step):
    with train.Snapshots(run, read_only=True) as snapshots:
        params, error = snapshots.reconstruct(DECAYS, std, step=step)
    assert error < 1e-6
    np.testing.assert_allclose(params["a"]["kernel"], tracked(std, step or STEPS), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("std", "step"), [(0.075, None), (0.15, None), (0.07, 36)])
def test_other_lengths_are_as_near_as_their_profiles(run, std, step):
    with train.Snapshots(run, read_only=True) as snapshots:
        params, error = snapshots.reconstruct(DECAYS, std, step=step)
    end = step or STEPS
    want, path = tracked(std, end), PATH.astype(np.float64)
    gamma = train.ema.power(std).gamma
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * end)  # of the profile that was wanted
    # Cauchy and Schwarz: no path's average differs by more than the profiles do, times the path's norm.
    bound = error * norm * np.sqrt((path**2).sum(axis=0))
    difference = np.abs(params["a"]["kernel"] - want)
    assert 0 < error < 0.2
    assert (difference <= bound + 1e-5).all()
    assert np.linalg.norm(want - tracked(0.05)) > 3 * np.linalg.norm(difference)


@pytest.mark.slow
def test_lies_on_a_mesh(run):
    mesh = toy.mesh("fsdp")
    with train.Snapshots(run, read_only=True) as snapshots:
        params, _ = snapshots.reconstruct(DECAYS, 0.075, mesh=mesh)
        alone, _ = snapshots.reconstruct(DECAYS, 0.075)
    assert params["a"]["kernel"].sharding == train.shard_params(params, mesh)["a"]["kernel"]
    assert not params["a"]["kernel"].sharding.is_fully_replicated
    assert toy.same(params, alone)


@pytest.mark.parametrize(
    ("decays", "arguments", "message"),
    [
        (DECAYS, {"std": 0.3}, "between 0 and"),
        (DECAYS, {"std": 0.1, "step": 38}, "after update 38"),
        ((DECAYS[0], train.ema.constant(0.9)), {"std": 0.1}, "power"),
    ],
)
def test_refused(run, decays, arguments, message):
    with train.Snapshots(run, read_only=True) as snapshots, pytest.raises(ValueError, match=message):
        snapshots.reconstruct(decays, **arguments)


def test_no_snapshots(tmp_path):
    with train.Snapshots(tmp_path, read_only=True) as snapshots, pytest.raises(ValueError, match=r"snapshots of \[\]"):
        snapshots.reconstruct(DECAYS, 0.1)


@pytest.mark.slow
def test_one_average_and_averages_on_the_host(tmp_path):
    mesh = toy.mesh("one")
    state = train.init_state(toy.init, toy.SGD, jax.random.key(0), mesh, ema=DECAYS[1], ema_memory="pinned_host")
    with train.Snapshots(tmp_path) as snapshots:
        snapshots.save(state._replace(step=jnp.int32(1)))
        params, error = snapshots.reconstruct(DECAYS[1], 0.1)
    assert error < 1e-6 and toy.same(params, state.params)
