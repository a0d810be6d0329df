"""Faults within one training process: bad numbers, a failing disk, data, preview or log, a clock that jumps."""

import errno
import json
import time

import jax
import numpy as np
import pytest
from helpers import toy

from jaxdiff import train
from jaxdiff.faults import NotFinite
from jaxdiff.train import keeper, loop

FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """A checkpointer as `fit` needs it, whose saves fail while it is told to."""

    def __init__(self, folder, bad=lambda step: False):
        self.folder, self.bad, self.states, self.tried, self.failed = folder, bad, {}, [], None

    def save(self, state):
        step = int(state.step)
        assert step > max(self.states, default=0)  # a newer one, or none has been saved
        self.tried.append(step)
        self.failed = FULL if self.bad(step) else None
        if self.failed is None:
            self.states[step] = jax.tree.map(np.array, state)

    def failure(self):
        failed, self.failed = self.failed, None
        return failed

    def wait(self):
        if self.failed is not None:
            raise self.failed

    def room(self, state):
        return (2, 2)

    def steps(self):
        return sorted(self.states)


def fit(batches, disk, steps=12, **arguments):
    mesh, state, step = toy.new()
    return train.fit(step, state, batches, steps=steps, mesh=mesh, checkpointer=disk, **arguments)


def poisoned(*numbers, start=0):
    for number, batch in enumerate(toy.batches(start=start), start):
        yield jax.tree.map(lambda x: np.full_like(x, np.nan), batch) if number in numbers else batch


def finite(state):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def test_bad_batches_are_left_out_and_training_goes_on(disk, capfd):
    """Also on resume: the run that met them goes on to the very state of the run that did not stop."""
    records = []
    bad = (2, 3, 7)
    straight = fit(poisoned(*bad), disk, save_every=6, log=records.append)
    assert [record["skipped"] for record in records] == [int(k in bad) for k in range(12)]
    assert (int(straight.step), int(straight.skipped)) == (12, 3) and finite(straight)
    assert "loss is nan at step 3: its update was skipped (1 so far)" in capfd.readouterr().err
    mesh, like, step = toy.new()
    half = jax.device_put(disk.states[6], jax.tree.map(lambda x: x.sharding, like))
    resumed = train.fit(step, half, poisoned(*bad, start=6), steps=12, mesh=mesh)
    assert toy.same(resumed, straight)


@pytest.mark.parametrize("where", ["one", "mixed"])
def test_too_many_in_a_row_end_the_run_with_its_last_good_state_saved(tmp_path, where):
    mesh, state, step = toy.new(where)
    disk = Disk(tmp_path)
    words = r"loss is nan at step 7: the updates of 3 consecutive batches.*those of step 4.*smaller"
    with pytest.raises(NotFinite, match=words):
        train.fit(step, state, poisoned(2, *range(4, 99)), steps=50, mesh=mesh, checkpointer=disk, max_skipped=3)
    (saved,) = disk.steps()
    assert 7 <= saved <= 7 + loop.MOST_QUEUED and finite(disk.states[saved])
    assert int(disk.states[saved].skipped) == saved - 4 + 1


def test_a_huge_learning_rate_saves_nothing_that_is_not_finite(disk):
    mesh, state, _ = toy.new(optimizer=toy.SGD)
    before = jax.tree.map(np.array, state.params)
    optimizer = train.adamw(1e39)
    state = train.init_state(toy.init, optimizer, jax.random.key(0), mesh)
    step = train.make_step(toy.plain_loss, optimizer, key=jax.random.key(0), ema=train.ema.constant(0.9))
    with pytest.raises(NotFinite, match=r"the update is not finite.* at step 4: the updates of 4 .*those of step 0"):
        train.fit(step, state, toy.batches(), steps=9, mesh=mesh, checkpointer=disk, save_every=1, max_skipped=4)
    assert disk.steps() and all(finite(state) for state in disk.states.values())
    assert toy.same(disk.states[max(disk.steps())].params, before)


def test_a_full_disk_is_said_and_tried_again(disk, capfd, monkeypatch):
    monkeypatch.setattr(keeper, "PAUSE", 1e6)
    disk.bad = lambda step: step in (3, 6)
    state = fit(toy.batches(), disk, save_every=3)
    assert disk.tried == [3, 6, 9, 12] and toy.same(disk.states[12], state)
    said = capfd.readouterr().err
    assert said.count("a checkpoint was not saved: [Errno 28] No space left on device; training continues") == 2
    assert "after 2e+06 s" in said  # the pause grows


def test_after_a_pause_a_failed_save_is_tried_before_the_next_one_is_due(disk, monkeypatch):
    monkeypatch.setattr(keeper, "PAUSE", 0.0)
    disk.bad = lambda step: step in (3, 4)
    fit(toy.batches(), disk, steps=8, save_every=3)
    assert disk.tried == [3, 4, 5, 6, 8]


def test_the_last_save_must_not_fail(disk):
    disk.bad = lambda step: step > 6
    with pytest.raises(OSError, match="No space left"):
        fit(toy.batches(), disk, save_every=3)
    assert disk.steps() == [3, 6]


def test_little_space_is_said_before_the_first_step(disk, capfd, monkeypatch):
    seen = []

    def room(state):
        seen.append(int(state.step))
        return (3e9, 1e9)

    fit(toy.batches(), disk, steps=1)
    assert "GB" not in capfd.readouterr().err
    monkeypatch.setattr(disk, "room", room)
    fit(toy.batches(), disk, steps=2)
    said = capfd.readouterr().err
    assert "has 1.00 GB left, and checkpoints will need 3.00 GB" in said and seen == [0]
    monkeypatch.setattr(disk, "room", lambda state: (_ for _ in ()).throw(FULL))
    fit(toy.batches(), disk, steps=3)
    assert "free space" in capfd.readouterr().err


@pytest.mark.parametrize("part", ["batches", "preview", "snapshot"])
def test_what_raises_leaves_the_state_saved(disk, part, capfd):
    """Four steps since the last checkpoint, which need not be done again."""

    def fail(*_):
        raise KeyError("of the experiment")

    def batches():
        yield from (batch for batch, _ in zip(toy.batches(), range(9 if part == "batches" else 99), strict=False))
        fail()

    looks = {} if part == "batches" else {part: fail, f"{part}_every": 9}
    states = []
    with pytest.raises(KeyError, match="of the experiment"):
        fit(batches(), disk, save_every=5, log=lambda record: states.append(record["step"]), **looks)
    assert disk.steps() == [5, 9] and finite(disk.states[9])
    assert "saved step 9 before this failure ends the run" in capfd.readouterr().err
    straight = fit(toy.batches(), None, steps=9)
    assert toy.same(disk.states[9], straight)


def test_a_failure_and_a_full_disk_name_both(disk, capfd):
    disk.bad = lambda step: True

    def fail(state):
        raise KeyError("of the experiment")

    with pytest.raises(KeyError):
        fit(toy.batches(), disk, preview=fail, preview_every=4)
    assert "the steps since the last checkpoint are lost: [Errno 28]" in capfd.readouterr().err


@pytest.mark.parametrize("part", ["preview", "snapshot"])
def test_a_picture_that_the_disk_refuses_is_said(disk, part, capfd):
    def refused(state):
        raise FULL

    assert int(fit(toy.batches(), disk, steps=4, **{part: refused, f"{part}_every": 2}).step) == 4
    assert capfd.readouterr().err.count(f"{part} of step") == 2


def test_a_dead_tracker_is_said_once_and_changes_nothing(disk, capfd):
    def dead(record):
        raise ConnectionError("no tracker")

    state = fit(toy.batches(), disk, log=dead)
    assert toy.same(state, fit(toy.batches(), None))
    assert capfd.readouterr().err.count("the log fails: ConnectionError: no tracker; training continues") == 1


def test_a_clock_that_jumps_changes_nothing(disk, monkeypatch):
    """Years forward and back at every look: the watchdog, the bar and the goodput run by another one."""
    expected = fit(toy.batches(), None)
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    events, records = [], []
    goodput = train.Goodput()
    goodput.write = events.append
    state = fit(toy.batches(), disk, log=records.append, hang_timeout=60.0, goodput=goodput)
    assert toy.same(state, expected)
    assert all(record["images_per_s"] > 0 for record in records[1:])
    assert all(0 <= value < 60 for event in events for value in event["seconds"].values())
    assert json.loads(json.dumps(events)) == events
