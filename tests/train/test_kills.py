"""kill -9 in the middle of saves and deletions, and disks that are full for a while: processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.flags import xla_flags

PROGRAMS = Path(__file__).parents[1] / "helpers" / "processes"


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """What kills.py tells of its processes; they are started once for all tests."""
    command = [sys.executable, str(PROGRAMS / "kills.py"), str(tmp_path_factory.mktemp("lives"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, start_new_session=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(life):
    """The next start finds whole steps only, chooses the newest, removes what is left, and goes on to the same end."""
    named = [name for name in life["before"] if name.isdecimal()]
    assert life["next"] == 0
    assert life["names"] == named == [str(step) for step in life["steps"]]
    assert "2" in named and all(life["good"]) and life["latest"] == max(map(int, named)) and life["chosen"]
    assert life["end"] and {"2", "3"} <= set(life["after"]) <= {"1", "2", "3"}


@pytest.mark.slow
def test_killed_at_each_phase_of_a_save_and_of_a_deletion(lives):
    whole = lives["whole"]
    assert whole["status"] == 0 and whole["before"] == ["2", "3"]
    check(whole)
    phases, left = set(), {"saving": 0, "named": 0, "deleting": 0}
    for life in lives["events"]:
        assert life["status"] == -signal.SIGKILL
        check(life)
        phases.update(life["said"])
        hidden = [name for name in life["before"] if not name.isdecimal()]
        assert len(hidden) <= 1
        left["saving"] += life["latest"] == 2
        left["named"] += life["before"] == ["1", "2", "3"]
        left["deleting"] += hidden == [".deleting-1"]
    assert len(phases) >= 20 and {"os.rename .saving", "os.rename 1", "fsync folder"} <= phases
    assert left["saving"] >= 12 and left["named"] >= 1 and left["deleting"] >= 6
    print(f"{len(lives['events'])} kills, {len(phases)} phases, {left}")


@pytest.mark.slow
def test_a_step_is_on_disk_before_it_has_its_name(lives):
    """Also if the machine stops, and not this process alone: files, then their folders, then the name."""
    said = lives["whole"]["said"]
    named = said.index("os.rename .saving")
    synced = [label.removeprefix("fsync .saving") for label in said[:named] if label.startswith("fsync .saving")]
    assert "/.manifest" in synced and synced[-1] == ""  # the folder with the manifest's name in it
    assert len([label for label in synced if label.startswith("/state")]) >= lives["whole"]["files"]
    assert "fsync folder" in said[named : said.index("os.rename 1")]  # and the old one goes when the new one has come
    assert not any(label.startswith("fsync .saving") for label in said[named:])


@pytest.mark.slow
def test_killed_at_any_time_of_a_save(lives):
    """Within what TensorStore writes, too, of which Python sees nothing."""
    for life in lives["timed"]:
        assert life["status"] in (0, -signal.SIGKILL)
        check(life)
    assert sum(life["status"] != 0 for life in lives["timed"]) == 6  # of at most 40: some end before their time


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(lives):
    *killed, last = lives["several"]
    assert len(killed) >= 3 and all(status == -signal.SIGKILL for status, _ in killed)
    starts = [said[0] for _, said in lives["several"]]
    assert starts == sorted(starts) and len(set(starts)) >= 3
    assert last == [0, [starts[-1], True]]


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while(lives):
    status, (first, kept, again, still, end) = lives["full"]
    assert status == 0
    for step, (kind, said, code) in ((3, first), (4, again)):
        assert kind == "OSError" and said.startswith("[Errno 27]") and f"checkpoints/{step}" in said and code == 5
        assert len(said) < 300
    assert kept == still == [[1, 2], True] and end


@contextlib.contextmanager
def cluster(count, *arguments):
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = opened.getsockname()[1]
    command = [sys.executable, str(PROGRAMS / "two.py"), str(port), str(count)]
    environ = os.environ | {"XLA_FLAGS": xla_flags(4 // count), "JAX_PLATFORMS": "cpu"}
    started = []
    try:
        for rank in range(count):
            started.append(subprocess.Popen([*command, str(rank), *arguments], env=environ, text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def ended(started):
    done = [(*process.communicate(timeout=120), process.returncode) for process in started]
    return [status for *_, status in done], [json.loads(said or "null") for said, *_ in done], [e for _, e, _ in done]


@pytest.mark.slow
def test_two_processes_save_fail_and_choose_together(tmp_path):
    """The second one's disk is full for one save; then the newest step is damaged."""
    with cluster(2, str(tmp_path), "full") as started:
        statuses, said, errors = ended(started)
    assert statuses == [0, 0], errors
    for mine in said:
        assert mine["first"] is None and mine["failed"][0] == "OSError" and "File too large" in mine["failed"][1]
        assert mine["after"] == [1] and mine["last"] == [1, 3] and mine["good"] and mine["fallback"] == 1
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "quarantine-3"]
    assert "set aside as quarantine-3" in errors[0] and "set aside" not in errors[1]
    assert "(process 1)" in said[0]["failed"][1]


@pytest.mark.slow
def test_one_of_two_is_killed_while_it_saves(tmp_path):
    with cluster(2, str(tmp_path), "kill") as started:
        statuses, _, errors = ended(started)
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None), errors
    assert [name for name in os.listdir(tmp_path / "checkpoints") if name.isdecimal()] == ["1"]
    with cluster(1, str(tmp_path), "after") as started:  # on one process what two have saved
        statuses, (mine,), errors = ended(started)
    assert statuses == [0] and mine["latest"] == 1 and mine["good"], errors
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]
