"""Signals: raised where there is nothing to keep, remembered where there is, and never in a child."""

import hashlib
import os
import signal
import threading
import time

import pytest

from jaxdiff import signals
from jaxdiff.signals import Signals, Stopped

BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def ended(monkeypatch):
    """Statuses with which the process would have ended."""
    statuses = []
    monkeypatch.setattr(signals.os, "_exit", statuses.append)
    return statuses


def until(true):
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


@pytest.mark.parametrize("number", BOTH)
def test_a_command_with_nothing_to_keep_ends(number):
    before = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(Stopped) as stop, Signals(ends=True) as found:
        signal.raise_signal(number)
    assert stop.value.code == 75 and stop.value.signal == found.received == signal.Signals(number).name
    assert [signal.getsignal(each) for each in BOTH] == before
    assert until(lambda: "signals" not in {thread.name for thread in threading.enumerate()})


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_to_be_kept_waits_and_long_waits_are_cut_short(ends):
    with Signals(ends=ends) as found:
        found.unsaved(True)
        with found.raising():
            pass
        signal.raise_signal(signal.SIGTERM)  # in a step, say
        assert found.received == "SIGTERM"
        with pytest.raises(Stopped), found.raising():
            raise AssertionError("one that came before")
    with Signals(ends=ends) as found:
        found.unsaved(True)
        with pytest.raises(Stopped), found.raising():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), found.raising():
            raise RuntimeError("a worker that got the signal, too")
    with Signals(ends=ends) as found, pytest.raises(RuntimeError), found.raising():
        raise RuntimeError("of another kind")


def test_a_library_raises_nothing_until_the_second_interrupt():
    with Signals() as found:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert found.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_command_that_does_not_come_back_ends_after_a_while(ended, monkeypatch, capfd):
    monkeypatch.setattr(signals, "GRACE", 0.05)
    with pytest.raises(Stopped), Signals(ends=True):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            assert until(lambda: ended)  # what hangs while it closes
    assert ended == [75] and "nothing to save, and nothing was lost" in capfd.readouterr().err


def test_a_command_within_native_code_ends_after_a_while(ended, monkeypatch):
    """Where no handler can run: in a compiler, or waiting for the devices."""
    monkeypatch.setattr(signals, "GRACE", 0.05)
    with pytest.raises(Stopped), Signals(ends=True):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # about a second
    assert ended == [75]


def test_what_is_unsaved_is_not_ended_by_time(ended, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.02)
    with Signals(ends=True) as found:
        found.unsaved(True)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert ended == []


def test_a_second_signal_while_saving(ended, capfd):
    """A scheduler's goes on saving, a person's gives it up; each is said."""
    with Signals(ends=True) as found:
        found.unsaved(True)
        found.doing = "saving step 7"
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)
        said = []
        assert until(lambda: said.append(capfd.readouterr().err) or "waiting for its end" in "".join(said))
        assert "saving step 7: waiting for its end" in "".join(said) and ended == []
        signal.raise_signal(signal.SIGINT)
        assert until(lambda: ended)
    assert ended == [75] and "saving step 7 is aborted; earlier saves are intact" in capfd.readouterr().err


def test_an_interrupt_of_one_of_many_is_a_sigterm():
    """Which JAX's own handler then tells all of them."""
    seen = []
    with Signals(ends=True) as found:
        found.many()
        signal.signal(signal.SIGTERM, lambda *_: seen.append("JAX"))
        signal.raise_signal(signal.SIGINT)
        assert until(lambda: seen) == ["JAX"] and found.received == "SIGINT"
        with found.raising():
            pass  # a preview needs all of them


def test_a_forked_child_is_on_its_own():
    """A signal to a process that loads data is none to its parent."""
    with Signals(ends=True) as found:
        child = os.fork()
        if child == 0:
            time.sleep(10)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.05)
        assert found.received is None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_elsewhere_than_in_the_main_thread_nothing_is_handled():
    kept = []

    def run():
        with Signals(ends=True):
            kept.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert kept == [signal.getsignal(signal.SIGTERM)]
