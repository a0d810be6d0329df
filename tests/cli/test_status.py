"""`jaxdiff status`: numbers that a person can check, of runs that train, have ended, are damaged or are none."""

import json
import os
import time

import pytest

from jaxdiff.cli import main
from jaxdiff.cli.status import status

LOSSES = dict.fromkeys(("start", "compile", "data", "checkpoint", "preview"), 0.0)


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    """250 of 1,000 steps in two processes: 150 in 100 s, of which 50 are done again, then 150 in 50 s."""
    (tmp_path / "run.json").write_text("{}")
    for step, age in ((100, 500), (200, 60)):
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    for name in ("7.writing", "quarantine-50", ".8"):
        (tmp_path / "checkpoints" / name).mkdir()
    metrics = [{"step": i, "loss": 1.0 * i, "images_per_s": 40.0, "skipped": 0} for i in range(1, 251)]
    metrics[-2] |= {"loss": None, "skipped": 1}
    write(tmp_path / "metrics.jsonl", metrics)
    common = {"time": 0.0, "steps": 1000}
    first = {"began": 1.0, "from": 0, "step": 150, "skipped": 0, **common}
    second = {"began": 2.0, "from": 100, "step": 250, "skipped": 1, **common}
    seconds = {**LOSSES, "training": 90.0, "start": 6.0, "compile": 4.0}, {**LOSSES, "training": 40.0, "data": 10.0}
    write(tmp_path / "events.jsonl", [{**first, "seconds": seconds[0]}, {**second, "seconds": seconds[1]}])
    for name in ("metrics.jsonl", "events.jsonl"):
        os.utime(tmp_path / name, (time.time() - 200,) * 2)
    return tmp_path


def test_the_numbers_of_a_run(run):
    found = status(run)
    assert (found["step"], found["steps"], found["skipped"], found["starts"]) == (250, 1000, 1, 2)
    # Of the last hundred, 151 to 250, without the one that was not finite.
    assert found["loss"] == 250 and found["mean_loss"] == pytest.approx((sum(range(151, 251)) - 249) / 99)
    assert found["steps_per_s"] == 150 / 50 and found["seconds_left"] == 750 / 3 and found["images_per_s"] == 40
    assert found["checkpoints"] == [100, 200] and found["quarantined"] == 1
    assert 60 <= found["checkpoint_seconds"] < 100 and 200 <= found["seconds_silent"] < 240
    # 50 of the first process's 150 steps are done again: 30 of its 90 s.
    assert found["lost_steps"] == 50 and found["seconds"]["lost"] == 30 and found["seconds"]["training"] == 100
    assert found["goodput"] == pytest.approx(100 / 150) and sum(found["seconds"].values()) == 150


def test_a_person_and_a_program_read_the_same(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    main(["status", str(run)])
    said = capsys.readouterr().out
    for words in (
        "250 of 1,000 (25%), the last line 3.", "100, 200, the newest",
        "3 steps/s with saves and previews, 40 images/s in the last 100 steps, 4.2 min left",
        "1 update was skipped", "67% of 2.5 min in 2 starts", "start 4%", "lost 20% (50 steps done again)",
        "1 set aside as damaged",
    ):  # fmt: skip
        assert words in said, words
    main(["status", str(run), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["lost_steps"] == 50
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_damaged_and_missing_files(run, capsys):
    (run / "events.jsonl").write_bytes(b'\xff\n{"step": 3}\n{"step": 1, "seconds": [1]}\nnull\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 251, "lo')
    found = status(run)
    assert found["step"] == 250 and found["damaged_lines"] == 5 and found["goodput"] is None
    for name in ("events.jsonl", "metrics.jsonl"):
        (run / name).unlink()
    assert status(run)["step"] == 200
    main(["status", str(run)])  # and with nothing but checkpoints
    assert "100, 200" in capsys.readouterr().out


def test_what_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["status", str(tmp_path)])
    assert stop.value.code == 2 and "holds no run" in capsys.readouterr().err
