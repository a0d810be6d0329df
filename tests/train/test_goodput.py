"""Where time goes: a clock that a test turns, and sums that a person can do."""

import time

import pytest
from helpers import toy

from jaxdiff import train
from jaxdiff.train import goodput
from jaxdiff.train.goodput import is_complete, summary


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which pass when a test says so."""

    class Clock:
        now = 100.0

        def passes(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(goodput.time, "monotonic", lambda: made.now)
    return made


def test_what_passes_is_counted_once_under_its_name(clock):
    written = []
    counted = goodput.Goodput()
    counted.write = written.append
    clock.passes(3)
    counted.begin(40, 100)
    for what, seconds in (("compile", 5), ("checkpoint", 1), ("preview", 2), ("checkpoint", 0.5)):
        with counted.spend(what):
            clock.passes(seconds)
    clock.passes(8)
    counted.record(48, 2)
    (record,) = written
    losses = {"start": 3, "compile": 5, "data": 0, "checkpoint": 1.5, "preview": 2}
    assert record["seconds"] == {"training": 8, **losses} and is_complete(record)
    assert {name: record[name] for name in ("from", "step", "steps", "skipped")} == {
        "from": 40, "step": 48, "steps": 100, "skipped": 2,
    }  # fmt: skip
    clock.passes(goodput.PERIOD - 1)
    counted.record(50, 2)
    assert len(written) == 1
    counted.record(50, 2, now=True)
    clock.passes(goodput.PERIOD)
    counted.record(51, 2)
    assert [record["step"] for record in written] == [48, 50, 51]


@pytest.mark.parametrize(
    ("idle", "busy", "lost"),
    [(True, True, 3.0 - 2.0), (False, True, 0.0), (True, False, 3.0)],  # of 3 s, while a step of 2 s runs or none
)
def test_data_costs_the_time_in_which_no_device_works(clock, idle, busy, lost):
    counted, written = goodput.Goodput(), []
    counted.write = written.append
    counted.begin(0, 9)
    counted.took(2.5)
    counted.took(2.0)
    with counted.load(lambda: idle, busy=busy):
        clock.passes(3.0)
    counted.record(1, 0)
    assert written[0]["seconds"]["data"] == lost and written[0]["seconds"]["training"] == 3.0 - lost


def record(began, first, step, training, **losses):
    seconds = dict.fromkeys(goodput.LOSSES, 0.0) | {"training": training} | losses
    counts = {"from": first, "step": step, "steps": 99, "skipped": 0}
    return {"began": began, "time": began, **counts, "seconds": seconds}


def test_a_run_of_three_processes():
    """The second does 5 of the first one's 20 steps again, the third all 5 of the second and 5 more."""
    records = [
        record(0.0, 0, 10, 4.0, start=1.0),  # a process's last record counts
        record(0.0, 0, 20, 8.0, start=1.0, data=2.0),
        record(1.0, 15, 20, 2.0, start=3.0),
        record(2.0, 10, 40, 12.0, compile=4.0),
    ]
    found = summary(records)
    assert (found.starts, found.lost_steps) == (3, 15)
    assert found.losses == {"start": 4, "compile": 4, "data": 2, "checkpoint": 0, "preview": 0, "lost": 4 + 2}
    assert (found.total, found.training) == (32, 16) and found.goodput == 0.5
    assert summary([]).goodput == 0


def test_lines_that_are_none_of_its_own():
    good = record(0.0, 0, 1, 1.0)
    assert is_complete(good)
    for bad in ({"step": 1}, good | {"seconds": None}, good | {"began": "x"}, good | {"seconds": {"training": 1}}):
        assert not is_complete(bad)


def test_a_run_tells_where_its_time_went(tmp_path):
    """Data that takes 50 ms a step, a preview of 100 ms and a save of 70 ms; a step takes far less."""
    mesh, state, step = toy.new()

    def batches():
        for batch in toy.batches():
            time.sleep(0.05)
            yield batch

    class Slow:
        folder = tmp_path
        save = failure = staticmethod(lambda *_: None)
        room = staticmethod(lambda state: (0, 0))
        wait = staticmethod(lambda: time.sleep(0.07))

    events = []
    began = time.monotonic()
    counted = train.Goodput(began - 5.0)
    counted.write = events.append
    preview = lambda state: time.sleep(0.1)  # noqa: E731
    train.fit(step, state, batches(), steps=12, mesh=mesh, preview=preview, checkpointer=Slow(), goodput=counted)
    passed = time.monotonic() - began
    seconds = events[-1]["seconds"]
    # 5 s that had passed before, 12 x 50 ms of data, a preview and a save.
    assert events[-1]["step"] == 12 and 5.76 < sum(seconds.values()) < 5.01 + passed
    assert seconds["start"] >= 5.0 and seconds["preview"] >= 0.1 and seconds["checkpoint"] >= 0.07
    # Five loads while no device works: the first one, and after each of the steps that are waited for.
    assert 0.24 < seconds["data"] <= passed and seconds["training"] < passed - 0.41
