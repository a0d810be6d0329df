"""A folder has one writer: whoever comes second is refused, and a dead one stands in nobody's way."""

import contextlib
import errno
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxdiff import train
from jaxdiff.cli import convert, main
from jaxdiff.train import lock
from jaxdiff.train.lock import FILE, Lock, hold

TINY = str(Path(__file__).parents[1] / "helpers" / "processes" / "tiny.py")


@contextlib.contextmanager
def children(count, function):
    """Forked processes that only use the file system; each sends a byte, by its pipe, for what it comes to."""
    pids, pipes = [], []
    try:
        for number in range(count):
            ours, theirs = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    os.close(ours)
                    function(number, lambda byte, to=theirs: os.write(to, byte))
                finally:
                    os._exit(0)
            os.close(theirs)
            pids.append(pid)
            pipes.append(ours)
        yield pids, pipes
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for pipe in pipes:
            os.close(pipe)


def try_and_keep(folder, send):
    try:
        with Lock(folder):
            send(b"+")
            time.sleep(60)
    except ValueError:
        send(b"-")


def test_the_second_is_refused_and_told_by_whom(tmp_path):
    run = tmp_path / "run"
    with Lock(run, what="encoding"):
        note = json.loads((run / FILE).read_text())
        for other in (Lock, hold):
            with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()} on .+, encoding for \d s"):
                other(run).__enter__()
        (run / "metrics.jsonl").touch()
        assert json.loads((run / FILE).read_text()) == note  # it has left no trace
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
    for again in (Lock, hold):
        with again(run):
            assert (run / FILE).is_file()
    with pytest.raises(KeyError), Lock(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()  # a failure before anything is written leaves no folder


def test_the_age_is_told():
    holder = {"pid": 7, "host": "far", "what": "training", "since": time.time() - 3 * 3600}
    assert lock._described(holder) == "process 7 on far, training for 3 hours"
    assert lock._described(holder | {"since": time.time() + 50}) == "process 7 on far, training for 0 s"
    assert lock._described({"machine": None}) == "another process"


@pytest.mark.slow
def test_of_many_at_once_one_has_it(tmp_path):
    """Also where all of them find what a killed one has left."""
    for _ in range(4):
        with children(6, lambda number, send: try_and_keep(tmp_path, send)) as (_, pipes):
            assert sorted(os.read(pipe, 1) for pipe in pipes) == [b"+", *[b"-"] * 5]
        assert (tmp_path / FILE).exists()  # the winner was killed
    with Lock(tmp_path):
        pass


def test_a_folder_may_vanish_while_it_is_made(tmp_path, monkeypatch):
    """pathlib's mkdir raises FileExistsError where another process removes the folder that it has just met."""
    mkdir, calls = Path.mkdir, []

    def meets(path, *args, **options):
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(path)
        mkdir(path, *args, **options)

    monkeypatch.setattr(lock.Path, "mkdir", meets)
    with Lock(tmp_path / "run"):
        assert len(calls) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        Lock(tmp_path / "file").__enter__()


def test_it_passes_on_as_they_end(tmp_path):
    """Each takes it as soon as it is free: between a release and the next owner there is no gap for two."""
    path = tmp_path / "count"

    def work(number, send):
        done = 0
        while done < 25:
            try:
                with Lock(tmp_path / "run"):
                    before = path.read_bytes() if path.exists() else b""
                    path.write_bytes(before + b"x")
            except ValueError:
                continue
            done += 1
        send(b".")

    with children(3, work) as (_, pipes):
        assert [os.read(pipe, 1) for pipe in pipes] == [b"."] * 3
    assert path.stat().st_size == 75


def test_a_killed_holder_leaves_it_free_even_if_its_own_children_live(tmp_path):
    def parent(number, send):
        with Lock(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            send(child.to_bytes(8, "little"))
            time.sleep(60)

    with children(1, parent) as ((pid,), (pipe,)):
        grandchild = int.from_bytes(os.read(pipe, 8), "little")
        try:
            with pytest.raises(ValueError, match=f"process {pid} on"):
                Lock(tmp_path).__enter__()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.kill(grandchild, 0)
            with Lock(tmp_path):
                pass
        finally:
            os.kill(grandchild, signal.SIGKILL)


@pytest.fixture
def two_machines(monkeypatch):
    """A file system without locks, a shorter time, and a way to be on another machine."""

    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 0.6)

    def be(name):
        monkeypatch.setattr(lock, "_machine", lambda: name)

    be("a")
    return be


def test_another_machines_lock_is_taken_over_when_it_is_silent(tmp_path, two_machines, monkeypatch, capsys):
    ends = []
    first = Lock(tmp_path)
    with first:
        two_machines("b")
        with pytest.raises(ValueError, match="is in use by process"):
            Lock(tmp_path).__enter__()
        # It is stopped for long, its clock is of another century, and then it goes on.
        first._over.set()
        os.utime(tmp_path / FILE, (5e9, 5e9))
        with Lock(tmp_path) as second:
            assert "watching for 0.6 s whether that lives" in capsys.readouterr().err
            monkeypatch.setattr(lock.os, "_exit", lambda status: (ends.append(status), first._over.set()))
            first._over.clear()
            first._live()
            assert ends == [2] and "is in use by process" in capsys.readouterr().err
            assert second._holds() and not first._holds()
    two_machines("b")
    with Lock(tmp_path):
        pass


def test_one_that_ends_while_it_is_watched_is_followed(tmp_path, two_machines):
    first = Lock(tmp_path).__enter__()
    first._over.set()  # silent
    two_machines("b")
    real, calls = lock.time.sleep, []

    def sleep(seconds):
        real(0.01)
        calls.append(seconds)
        if len(calls) == 2:
            first.__exit__()

    lock.time.sleep = sleep
    try:
        with Lock(tmp_path) as second:
            assert second._holds() and json.loads((tmp_path / FILE).read_text())["machine"] == "b"
    finally:
        lock.time.sleep = real
    assert not (tmp_path / FILE).exists()


@pytest.mark.slow
def test_of_two_that_take_over_at_once_one_stays(tmp_path, two_machines):
    first = Lock(tmp_path).__enter__()
    first._over.set()

    def take(number, send):
        two_machines(f"host{number}")
        try_and_keep(tmp_path, send)

    with children(3, take) as (pids, pipes):
        said = [os.read(pipe, 1) for pipe in pipes]  # some may take it, and then see that they were not the last
        assert said.count(b"+") >= 1
        time.sleep(0.8)
        living = [pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        assert [json.loads((tmp_path / FILE).read_text())["pid"]] == living


def test_a_full_disk_hides_the_name_not_the_lock(tmp_path, monkeypatch):
    def full(handle, data, offset):
        os.write(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "pwrite", full)
    with Lock(tmp_path) as held:
        monkeypatch.undo()
        assert held._holds() and (tmp_path / FILE).read_text() == ""
        with pytest.raises(ValueError, match="is in use by another process"):
            Lock(tmp_path).__enter__()


def test_a_folder_that_is_being_converted_into_is_in_use(tmp_path, monkeypatch):
    written = []
    export = {"model": lambda params, out: written.append((params, (out / FILE).is_file()))}
    run = SimpleNamespace(model=SimpleNamespace(export=export))
    monkeypatch.setattr(convert, "load_run", lambda workdir, trust: run)
    monkeypatch.setattr(convert.train, "load_params", lambda workdir, which: which)
    with Lock(tmp_path / "out"), pytest.raises(ValueError, match="out is in use by process"):
        convert.command(tmp_path, tmp_path / "out")
    assert not written
    convert.command(tmp_path, tmp_path / "out")
    assert written == [("ema", True)]


def test_a_second_trainer_changes_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    train.write_knobs(run, {"steps": 3})
    (run / "run.json").unlink()
    partial = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 7}\n')
    with Lock(run), pytest.raises(SystemExit) as stop:
        main(["train", TINY, "--workdir", str(run)])
    assert stop.value.code == 2 and f"is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert partial.is_dir() and (run / "metrics.jsonl").read_text() == '{"step": 7}\n'
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "metrics.jsonl"]
