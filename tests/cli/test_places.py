"""Where something will be written is tried first, and left as it was."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from jaxdiff.cli import main, places
from jaxdiff.cli.places import try_file, try_folder


def listing(folder: Path) -> list[tuple[str, float]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")] if path != folder)


def test_good_places_stay_as_they_are(tmp_path):
    (tmp_path / "old.png").write_text("old")
    before = listing(tmp_path)
    try_file(tmp_path / "old.png", "--out")
    try_file(tmp_path / "new" / "deep" / "a.png", "--out")
    try_folder(tmp_path, "--out")
    try_folder(tmp_path / "new" / "deep", "--out")
    assert listing(tmp_path) == before and (tmp_path / "old.png").read_text() == "old"


def test_bad_places(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to("pipe")
    for check, path, words in (
        (try_folder, Path("gs://bucket/run"), "got gs://bucket/run: mount the bucket"),
        (try_file, Path("s3://bucket/a.png"), "got s3://bucket/a.png"),
        (try_folder, tmp_path / "file", "is a file"),
        (try_folder, tmp_path / "file" / "deep" / "run", "file is a file"),
        (try_file, tmp_path / "file" / "a.png", "file is a file"),
        (try_file, tmp_path, "must be a file, and .* is a folder"),
        (try_file, tmp_path / "stdout", "must be a file, and .*stdout is a device or pipe"),
        (try_file, Path("/dev/null"), "must be a file, and /dev/null is a device or pipe"),
    ):
        with pytest.raises(ValueError, match=words):
            check(path, "--out")

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/tmpname")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    for check in (try_file, try_folder):
        with pytest.raises(OSError, match="Read-only file system") as found:
            check(tmp_path / "a.png", "--out")
        assert found.value.filename == str(tmp_path / "a.png")


# Nothing of these is there to be worked with: the place is looked at before.
COMMANDS = {
    "train": ["train", "toy2d", "--workdir", "FILE/run"],
    "plan": ["plan", "toy2d", "--topology", "nonsense", "--json", "FILE/plan.json"],
    "sample": ["sample", "RUN", "--out", "FILE/a.png"],
    "sample, folder": ["sample", "RUN", "--out", "FILE/pictures"],
    "upscale": ["upscale", "RUN", "picture.png", "--out", "FILE/a.png"],
    "vary": ["vary", "RUN", "picture.png", "--out", "FILE/a.png"],
    "edit": ["edit", "RUN", "picture.png", "--prompt", "a cat", "--out", "FILE/a.png"],
    "imagine": ["imagine", "RUN", "a cat", "--out", "FILE/pictures"],
    "encode": ["encode", "RUN", "--out", "FILE"],
    "encode, prompts": ["encode", "RUN", "--out", "WITH", "--prompt", "a {}"],
    "convert": ["convert", "RUN", "--out", "FILE/model"],
    "export": ["export", "RUN", "--out", "FILE/a.jaxdiff"],
    "new": ["new", "FILE/mine.py"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_tries_it_before_the_work(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    Path("WITH").mkdir()
    Path("WITH/prompts").touch()
    with pytest.raises(SystemExit) as stop:
        main(COMMANDS[name])
    assert stop.value.code == 2
    assert "cannot be written: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["FILE", "WITH", "prompts"]


@pytest.mark.parametrize(
    "args",
    [["sample"], ["eval"], ["export"], ["vary", "FILE", "a.png"], ["upscale", "RUN", "a.png", "--then"]],
    ids=lambda args: args[0],
)
def test_a_run_is_looked_for_before_the_place_in_it(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    with pytest.raises(SystemExit) as stop:
        main(args if "FILE" in args else [*args, "FILE"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("jaxdiff: FILE holds no run: ")
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_a_runs_measures_are_a_file(tmp_path, capsys):
    (tmp_path / "experiment.py").touch()
    (tmp_path / "eval.json").mkdir()
    with pytest.raises(SystemExit):
        main(["eval", str(tmp_path)])
    assert "a run's must be a file" in capsys.readouterr().err


def test_prompts_that_are_there_are_kept(tmp_path, capsys):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "classes.npz").touch()
    with pytest.raises(SystemExit):
        main(["encode", "RUN", "--out", str(tmp_path), "--prompt", "a {}"])
    assert "already has prompts" in capsys.readouterr().err
    assert places.try_folder(tmp_path / "prompts", "--out") is None


def test_a_file_that_may_not_be_changed(tmp_path, monkeypatch):
    """Said by opening it, since permissions mean nothing to an administrator, whom these tests may run as."""
    (tmp_path / "old.png").touch()

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    try_file(tmp_path / "new.png", "--out")
    with pytest.raises(PermissionError):
        try_file(tmp_path / "old.png", "--out")
