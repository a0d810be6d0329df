"""The log of a run: lines that are whole, a history that no failure takes away, and a file that stops nobody."""

import errno
import json
import os

import pytest

from jaxdiff import storage, train
from jaxdiff.train import log
from jaxdiff.train.log import read_lines


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lost_steps_and_damaged_lines_are_left_out(tmp_path, capfd):
    path = tmp_path / "run" / "metrics.jsonl"
    first = train.jsonl_logger(path)
    for step in range(1, 6):
        first({"step": step, "loss": 1 / step, "grad_norm": float("nan")})
    damage = b'\xff\xfe\x00\n{"step": null}\n[1]\n{"loss": 2}\n\n{"step": "3"}\n{"step": true}\n' + b"[" * 9999 + b"\n"
    path.write_bytes(damage + path.read_bytes() + b'{"step": 2, "loss": 9}\n{"step": 6, "lo')
    log = train.jsonl_logger(path, start=3)
    assert "9 damaged lines are left out" in capfd.readouterr().err
    log({"step": 4, "loss": 0.5})
    assert [record["step"] for record in lines(path)] == [1, 2, 3, 4]
    assert [record["loss"] for record in lines(path)] == [1, 9, 1 / 3, 0.5]  # of a step that is there twice the later
    assert "NaN" not in path.read_text() and lines(path)[0]["grad_norm"] is None
    assert [path.name for path in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_whole_file_is_not_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train.jsonl_logger(path)({"step": 1})
    before = path.stat().st_ino
    train.jsonl_logger(path, start=1)({"step": 2})
    assert path.stat().st_ino == before and len(lines(path)) == 2


def test_a_rewrite_that_fails_takes_no_line_away(tmp_path, monkeypatch, capfd):
    path = tmp_path / "metrics.jsonl"
    first = train.jsonl_logger(path)
    for step in (1, 2, 3):
        first({"step": step})

    def full(where):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    log = train.jsonl_logger(path, start=1)
    log({"step": 2, "loss": 1.0})
    assert [record["step"] for record in lines(path)] == [1, 2, 3, 2]
    assert capfd.readouterr().err.count("No space left on device; training continues") == 1
    monkeypatch.undo()
    train.jsonl_logger(path, start=2)
    assert lines(path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_a_folder_or_a_file_in_its_place_is_said_once(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "metrics.jsonl", tmp_path / "file" / "metrics.jsonl"):
        log = train.jsonl_logger(path, start=1)
        for step in (2, 3):
            log({"step": step})
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "lacks lines" in said and "training continues" in said


def test_a_disk_that_is_full_for_a_while_leaves_a_gap_and_no_half_line(tmp_path, monkeypatch, capfd):
    path = tmp_path / "metrics.jsonl"
    log_ = train.jsonl_logger(path)
    real = os.write
    left = iter((10**6, 7, 0, 10**6, 10**6))

    def write(handle, data):
        room = next(left)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:room])

    monkeypatch.setattr(log.os, "write", write)
    for step in range(1, 6):
        log_({"step": step})
    monkeypatch.undo()
    assert capfd.readouterr().err.count("lacks lines") == 1
    records, damaged = read_lines(path)
    assert [record["step"] for record in records] == [1, 4, 5] and damaged == 1


@pytest.mark.parametrize("tail", [1, 40, 100, 10**6, None])
def test_the_end_of_a_file_is_read_in_whole_lines(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path, tail) == ([], 0)
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(100)))
    records, damaged = read_lines(path, tail)
    assert damaged == 0 and records == [{"step": step} for step in range(100 - len(records), 100)]
    assert len(records) == {1: 0, 40: 3, 100: 7}.get(tail, 100)
