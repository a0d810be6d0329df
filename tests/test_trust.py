"""A run's folder holds programs: they are executed if they are the user's own, or if the user says so."""

import json
import os
import stat
from pathlib import Path

import pytest

from jaxdiff import trust
from jaxdiff.cli import main
from jaxdiff.recipe import load_run
from jaxdiff.trust import check_own

# It tells that it has been executed, whatever becomes of it then.
PROGRAM = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def experiment(steps: int = 1):
    return 3
"""


@pytest.fixture
def run(tmp_path):
    """A run with a module of its own, pictures and checkpoints, all of them with the usual modes."""
    folder = tmp_path / "run"
    for name in ("parts", "checkpoints/10", "samples-0"):
        (folder / name).mkdir(parents=True)
    for name in ("experiment.py", "parts/deep.py", "run.json", "samples-0/0.png"):
        (folder / name).touch()
    (folder / "experiment.py").write_text(PROGRAM)
    (folder / "run.json").write_text(json.dumps({}))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_ones_own_run_is_executed(run):
    check_own(run / "experiment.py")
    for name in ("run.json", "samples-0/0.png", "checkpoints/10", "checkpoints"):
        (run / name).chmod(0o777)  # data: it is read, never executed
    (run / "samples.png").symlink_to(run / "samples-0" / "0.png")
    check_own(run / "experiment.py")
    run.parent.chmod(0o777)  # who replaces the whole folder owns what they put there
    check_own(run / "experiment.py")
    (run.parent / "link").symlink_to(run)
    check_own(run.parent / "link" / "experiment.py")


@pytest.mark.parametrize("mode", [0o002, 0o020])
@pytest.mark.parametrize("name", ["", "experiment.py", "parts", "parts/deep.py", "samples-0"])
def test_what_others_may_write_is_not(name, mode, run, monkeypatch):
    monkeypatch.setattr(trust, "_is_own_group", lambda number: False)
    path = run / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(ValueError, match=rf"{path} may be written by others \(mode .*--trust") as found:
        check_own(run / "experiment.py")
    assert f"{run / 'experiment.py'} and the modules in its folder are programs, and would be executed" in str(
        found.value
    )
    if path.is_dir():
        path.chmod(path.stat().st_mode | stat.S_ISVTX)
        check_own(run / "experiment.py")


def test_new_modules_and_links_beside_it_count(run):
    for name in ("numpy.py", "numpy.so", "parts/__pycache__/deep.pyc"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
        check_own(run / "experiment.py")
        (run / name).chmod(0o666)
        with pytest.raises(ValueError, match="may be written by others"):
            check_own(run / "experiment.py")
        (run / name).unlink()
    (run.parent / "other.py").touch()
    (run / "experiment.py").unlink()
    for name, target in (
        ("experiment.py", run.parent / "other.py"),
        ("other.py", run.parent / "other.py"),
        ("package", run.parent),
    ):
        (run / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is a link"):
            check_own(run / "experiment.py")
        (run / name).unlink()


def others(monkeypatch, path, uid):
    """Make a path look as if it belonged to another user, which only an administrator could arrange."""
    real = Path.lstat

    def lstat(self):
        found = real(self)
        return os.stat_result([*found[:4], uid, *found[5:10]]) if self == path else found

    monkeypatch.setattr(Path, "lstat", lstat)


@pytest.mark.parametrize("name", ["", "experiment.py", "parts", "parts/deep.py"])
def test_another_users_files_are_not_executed(name, run, monkeypatch):
    others(monkeypatch, run / name, 54321)
    with pytest.raises(ValueError, match=f"{run / name} belongs to user 54321, not to you"):
        check_own(run / "experiment.py")


def test_nor_are_a_users_files_by_an_administrator(run, monkeypatch):
    monkeypatch.setattr(trust.os, "geteuid", lambda: 0)
    for path in (run, *run.rglob("*")):
        others(monkeypatch, path, 0)
    check_own(run / "experiment.py")
    others(monkeypatch, run / "experiment.py", 1000)
    with pytest.raises(ValueError, match=r"experiment.py belongs to .*user 1000.*, not to you"):
        check_own(run / "experiment.py")


def test_the_group_of_one_user_alone(monkeypatch):
    from types import SimpleNamespace as Record

    user = Record(pw_name="ada", pw_gid=1000)
    monkeypatch.setattr("pwd.getpwuid", lambda number: user)
    for group, own in (
        (Record(gr_name="ada", gr_mem=[]), True),
        (Record(gr_name="ada", gr_mem=["ada"]), True),
        (Record(gr_name="ada", gr_mem=["bob"]), False),
        (Record(gr_name="users", gr_mem=[]), False),
    ):
        monkeypatch.setattr("grp.getgrgid", lambda number, group=group: group)
        assert trust._is_own_group(1000) is own
    monkeypatch.setattr("grp.getgrgid", lambda number: Record(gr_name="ada", gr_mem=[]))
    assert not trust._is_own_group(1001)


COMMANDS = {
    "sample": ["sample", "RUN"],
    "upscale": ["upscale", "RUN", "picture.png"],
    "eval": ["eval", "RUN"],
    "export": ["export", "RUN"],
    "convert": ["convert", "RUN", "--out", "OUT"],
    "encode": ["encode", "RUN", "--out", "OUT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_ask_before_they_execute(name, run, tmp_path, capsys):
    (run / "experiment.py").chmod(0o666)
    given = [{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(text, text) for text in COMMANDS[name]]
    for more, words in (([], "--trust"), (["--trust"], "must return an Experiment")):
        with pytest.raises(SystemExit) as stop:
            main([*given, *more])
        assert stop.value.code == 2 and words in capsys.readouterr().err
        assert (run / "ran").exists() == bool(more)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_the_runs_that_a_run_is_made_of_are_trusted_with_it(command, run, tmp_path, capsys):
    """And only then."""
    (run / "experiment.py").chmod(0o666)
    whole = tmp_path / "whole.py"
    whole.write_text(f"from jaxdiff.recipe import load_run\ndef experiment(): return load_run({str(run)!r})\n")
    options = {"train": ["--workdir", str(tmp_path / "new")], "plan": ["--topology", "cpu:1"]}
    for more, words in (([], "--trust"), (["--trust"], "must return an Experiment")):
        with pytest.raises(SystemExit):
            main([command, str(whole), *options[command], *more])
        assert words in capsys.readouterr().err
        assert (run / "ran").exists() == bool(more)
    (run / "ran").unlink()
    with pytest.raises(ValueError, match="--trust"):
        load_run(run)


def test_training_goes_on_trusting_them(run, tmp_path, monkeypatch, capsys):
    """With another number of steps a run's earlier experiment is built as well."""
    (run / "experiment.py").chmod(0o666)

    def train(*args, **options):
        check_own(run / "experiment.py")
        raise SystemExit(7)

    monkeypatch.setattr("jaxdiff.run.train", train)
    for more, status in (([], 2), (["--trust"], 7)):
        with pytest.raises(SystemExit) as stop:
            main(["train", "toy2d", "--workdir", str(tmp_path / "new"), *more])
        assert stop.value.code == status
    assert "--trust" in capsys.readouterr().err


def test_so_does_load_run(run):
    (run / "experiment.py").chmod(0o666)
    with pytest.raises(ValueError, match="--trust"):
        load_run(run)
    assert not (run / "ran").exists()
    with pytest.raises(ValueError, match="must return an Experiment"):
        load_run(run, trust=True)
    assert (run / "ran").exists()
