"""The experiments that come with jaxdiff: listed, copied, and trained where there is nothing but the wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers.flags import xla_flags

from jaxdiff.cli import main
from jaxdiff.script import shipped

ROOT = Path(__file__).parents[2]


def test_list_names_each_with_a_sentence(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(shipped())
    assert all(len(line.split(maxsplit=1)[1]) > 20 and "\n" not in line for line in lines)
    assert "Clothes from Fashion-MNIST in minutes on two cores" in lines[sorted(shipped()).index("fashion")]


def test_new_copies_one_that_trains(tmp_path, capsys):
    mine = tmp_path / "deep" / "mine.py"
    main(["new", str(mine), "--from", "toy2d"])
    assert mine.read_text() == shipped()["toy2d"].read_text() and capsys.readouterr().out == f"{mine}\n"
    main(["new", str(tmp_path / "other.py"), "--from", str(mine)])
    for args, words in (
        ([str(mine)], "exists already"),
        (["mine.txt"], "ends in .py"),
        ([str(tmp_path / "x.py"), "--from", "fashoin"], "did you mean 'fashion'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["new", *args])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "other.py"]


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"jaxdiff {version('jaxdiff')}\n"


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(tmp_path):
    """What pip installs, and nothing of this checkout: the wheel's files come first on the path."""
    source, empty, site = (tmp_path / name for name in ("source", "empty", "site"))
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("jaxdiff", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    experiments = {f"jaxdiff/experiments/{path.name}" for path in shipped().values()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxdiff").rglob("*.py")}
    assert {str(path.relative_to(site)) for path in site.rglob("*.py")} == experiments | modules
    assert (site / "jaxdiff" / "data" / "fashion_mnist.npz").is_file() and (site / "jaxdiff" / "py.typed").is_file()

    empty.mkdir()
    knobs = ["--steps", "2", "--preview-every", "2", "--width", "8", "--batch", "8"]
    command = [sys.executable, "-m", "jaxdiff", "train", "toy2d", *knobs]
    environ = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": xla_flags(1)}
    subprocess.run(command, cwd=empty, env=environ, check=True, capture_output=True)
    run = empty / "runs" / "toy2d"
    assert (run / "samples.png").is_file()
    assert (run / "experiment.py").read_bytes() == (site / "jaxdiff" / "experiments" / "toy2d.py").read_bytes()
