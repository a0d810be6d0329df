"""`jaxdiff verify RUN` finds what is wrong with a run, says from where it goes on, and needs no device."""

import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from jaxdiff import train
from jaxdiff.cli import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "run.json").write_text('{"lr": 0.1, "steps": 30}\n')
    (run / "experiment.py").write_text("def experiment(lr: float = 0.1, steps: int = 30):\n    ...\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / i}) + "\n" for i in range(1, 31)))
    average = ({"w": jnp.arange(12.0)},)
    state = train.TrainState(jnp.int32(0), {"w": jnp.arange(12.0)}, average, {}, jnp.int32(0))
    with train.Checkpointer(run, keep=3) as checkpointer, train.Snapshots(run) as snapshots:
        for step in (10, 20, 30):
            checkpointer.save(state._replace(step=jnp.int32(step)))
            snapshots.save(state._replace(step=jnp.int32(step)))
    return run


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def verified(run, capsys):
    """(status, name -> how and why, the last sentence)."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status = 0
    try:
        main(["verify", str(run)])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    lines = said.out.splitlines()
    if status == 0:
        *lines, last = lines
    else:
        (last,) = said.err.splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert len(rows) == len(lines)
    return status, rows, last


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(bytes(whole))


def test_a_good_run(run, capsys):
    status, rows, last = verified(run, capsys)
    steps = [f"{folder}/{step}" for folder in ("checkpoints", "snapshots") for step in (10, 20, 30)]
    assert status == 0 and last == "all is good; training continues from checkpoints/30"
    assert list(rows) == ["run.json", "experiment.py", "metrics.jsonl", *steps]
    assert all(row.startswith("good ") for row in rows.values())
    assert rows["metrics.jsonl"].split(maxsplit=1)[1] == "30 lines" and "2 knobs" in rows["run.json"]
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "30" / "state").rglob("*") if path.is_file())
    assert f"4 arrays, {size / 1e6:,.1f} MB" in rows["checkpoints/30"]


@pytest.mark.slow
def test_every_file_counts(run, capsys):
    """One bit of any file of any step."""
    for path in sorted(path for path in run.glob("*/*/**/*") if path.is_file())[::2]:
        whole = path.read_bytes()
        flip(path)
        status, rows, last = verified(run, capsys)
        folder, step, *_ = path.relative_to(run).parts
        (damaged,) = (name for name, row in rows.items() if row.startswith("DAMAGED"))
        assert status == 4 and damaged == f"{folder}/{step}" and f"{path.name} has changed" in rows[damaged]
        left = 20 if damaged == "checkpoints/30" else 30
        assert last == f"jaxdiff: {damaged} cannot be used; training continues from checkpoints/{left}"
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("run.json", b"[]", "must hold an object"),
        ("run.json", b'{"lr": ', "is damaged"),
        ("run.json", b"\xff\xfe", "is no JSON"),
        ("run.json", b"[" * 100_000, "is damaged: "),
        ("experiment.py", b"def experiment(:\n", "is no Python program"),
        ("experiment.py", b"a = 1\0\n", "is no Python program"),
        ("experiment.py", b"\xff\xfe", "is no Python program"),
        ("experiment.py", b"(" * 10_000, "is no Python program"),
        ("metrics.jsonl", b'{"step": 1}\n{"step": null}\n[]\n{"step": 4}\n', "lines 2, 3 of 4"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\xff\n', "line 2 of 2"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n", "line 1 of 1"),
    ],
)
def test_the_files_beside(run, capsys, name, content, why):
    (run / name).write_bytes(content)
    status, rows, last = verified(run, capsys)
    assert status == 4 and rows[name].startswith("DAMAGED") and why in rows[name]
    assert last == f"jaxdiff: {name} cannot be used; training continues from checkpoints/30"


@pytest.mark.parametrize("name", ["run.json", "experiment.py"])
def test_a_part_that_is_missing(run, capsys, name):
    (run / name).unlink()
    status, rows, _ = verified(run, capsys)
    assert status == 4 and rows[name].split() == ["DAMAGED", "is", "missing"]


def test_what_is_no_damage(run, capsys):
    """An unfinished last line, what was set aside, what a killed process left, and what nobody reads."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')
    (run / "checkpoints" / "quarantine-15").mkdir()
    (run / "checkpoints" / ".saving-40-1").mkdir()
    (run / "checkpoints" / ".deleting-5").mkdir()
    (run / "checkpoints" / "best").symlink_to("30")
    (run / "checkpoints" / "40").symlink_to("30")
    status, rows, last = verified(run, capsys)
    assert status == 0 and last.endswith("checkpoints/30")
    assert "31 lines, the last one unfinished" in rows["metrics.jsonl"]
    assert rows["checkpoints/quarantine-15"].startswith("set aside")
    for name, why in {
        ".saving-40-1": "a save that",
        ".deleting-5": "a deletion that",
        "best": "its name",
        "40": "a link",
    }.items():
        assert rows[f"checkpoints/{name}"].startswith("ignored") and why in rows[f"checkpoints/{name}"]


def test_nothing_is_left(run, capsys):
    for step in (10, 20, 30):
        flip(run / "checkpoints" / f"{step}" / "state" / "manifest.ocdbt")
    status, _, last = verified(run, capsys)
    assert status == 4 and last.endswith("there is no checkpoint to continue from")
    for step in (10, 20, 30):
        (run / "checkpoints" / f"{step}").rename(run / "checkpoints" / f"quarantine-{step}")
    status, _, last = verified(run, capsys)
    assert status == 4 and last == "jaxdiff: all that was saved cannot be used; there is no checkpoint to continue from"
    (run / "checkpoints" / "7").mkdir()
    assert "manifest.json is missing" in verified(run, capsys)[1]["checkpoints/7"]


def test_a_folder_that_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["verify", str(tmp_path)])
    assert end.value.code == 2 and "is not a run: it has neither run.json" in capsys.readouterr().err


def test_a_step_deleted_meanwhile(run, capsys, monkeypatch):
    from jaxdiff.cli import verify

    step = verify._step

    def slowly(place):
        if place == run / "checkpoints" / "10":
            shutil.rmtree(place)
        return step(place)

    monkeypatch.setattr(verify, "_step", slowly)
    found = {finding.name: finding for finding in verify.examine(run)}
    assert found["checkpoints/10"].how == "ignored" and found["checkpoints/30"].how == "good"


@pytest.mark.slow
def test_no_device_is_touched(saved):
    """On a machine whose accelerator is in use, or away: no platform of this name can be started."""
    environ = os.environ | {"JAX_PLATFORMS": "nothing"}
    command = [sys.executable, "-m", "jaxdiff", "verify", str(saved)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all is good; training continues from checkpoints/30" in done.stdout and done.stderr == ""
    assert done.stdout.count("good ") == 9
