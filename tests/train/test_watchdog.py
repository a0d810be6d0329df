"""A watchdog ends a process that has come to a halt, and no other."""

import threading
import time

import jax
import pytest

from jaxdiff.train import watchdog


@pytest.fixture
def ended(monkeypatch):
    """Statuses with which the process would have ended."""
    statuses = []
    monkeypatch.setattr(watchdog.os, "_exit", statuses.append)
    return statuses


def stuck_here(ended):
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)


def test_ends_with_75_and_shows_where_each_thread_is(ended, capfd):
    with watchdog.Watchdog(0.1):
        stuck_here(ended)
    assert ended[0] == 75
    shown = capfd.readouterr().err
    assert "process 0 has made no progress for 0.1 s, and ends with status 75" in shown
    assert "in stuck_here" in shown


def test_beats_keep_it_quiet_and_may_buy_more_time(ended):
    with watchdog.Watchdog(0.2) as dog:
        for _ in range(6):
            time.sleep(0.05)
            dog.beat()
        dog.beat(10)
        time.sleep(0.3)
        (thread,) = (each for each in threading.enumerate() if each.name == "watchdog")
    thread.join(5)
    assert ended == [] and not thread.is_alive()  # after the block nobody is watched


def test_nothing_is_watched_without_seconds(ended):
    with watchdog.Watchdog(None) as dog:
        dog.beat()
    assert ended == []


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_seconds_must_be_positive(seconds):
    with pytest.raises(ValueError, match="must be positive"):
        watchdog.Watchdog(seconds)


def test_one_process_that_fails_is_let_go(ended):
    with pytest.raises(KeyError), watchdog.Watchdog(0.05):
        raise KeyError
    time.sleep(0.2)
    assert ended == []


def test_one_of_many_that_fails_is_still_watched(ended, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(KeyError), watchdog.Watchdog(0.05):
        raise KeyError
    stuck_here(ended)
    assert ended[0] == 75
