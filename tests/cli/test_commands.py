"""The command line as a person uses it: train, go on, sample; and what it says to mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.devices import one_device
from helpers.flags import xla_flags
from PIL import Image

from jaxdiff.cli import main
from jaxdiff.cli.knobs import parse_knobs
from jaxdiff.options import Encoder, File, Source

ROOT = Path(__file__).parents[2]
TOY = str(ROOT / "experiments" / "toy2d.py")
FASHION = str(ROOT / "experiments" / "fashion.py")


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture(scope="module")
def fashion_run(tmp_path_factory) -> Path:
    """A run of two steps, by a process of its own: on one device, which compiles several times faster than on eight."""
    workdir = tmp_path_factory.mktemp("fashion")
    knobs = ["--steps", "2", "--batch", "8", "--width", "8", "--preview-every", "2", "--workdir", str(workdir)]
    command = [sys.executable, "-m", "jaxdiff", "train", FASHION, *knobs]
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": xla_flags(1)}, capture_output=True)
    return workdir


@pytest.mark.slow
def test_train_leaves_a_run(fashion_run):
    assert {"checkpoints", "experiment.py", "metrics.jsonl", "run.json", "samples.png"} <= {
        path.name for path in fashion_run.iterdir()
    }
    assert Image.open(fashion_run / "samples.png").size == (10 * 30 - 2, 10 * 30 - 2)
    records = [json.loads(line) for line in (fashion_run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2] and records[0]["grad_norm"] > 0


@pytest.mark.slow
def test_sample_writes_grid_arrays_or_files(fashion_run, tmp_path, capsys):
    common = ["sample", str(fashion_run), "--steps", "2", "--num", "3"]
    main([*common, "--out", str(tmp_path / "all.npz")])
    arrays = np.load(tmp_path / "all.npz")
    assert arrays["x"].shape == (3, 28, 28, 1) and arrays["label"].tolist() == [0, 1, 2]
    with one_device():
        main([*common, "--out", str(tmp_path / "singles"), "--guidance", "1", "--solver", "dpmpp_2m"])
        main([*common, "--label", "Sneaker", "--seed", "5"])
    assert sorted(p.name for p in (tmp_path / "singles").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert capsys.readouterr().out.split()[-1] == str(fashion_run / "samples-5.png")


@pytest.mark.slow
def test_sample_mistakes(fashion_run, tmp_path, capsys):
    run = str(fashion_run)
    assert "dpmpp_2m" in fails(capsys, "sample", run, "--solver", "dpm2m")
    assert "0..9, or one of T-shirt/top, " in fails(capsys, "sample", run, "--label", "10")
    assert "from 1 to" in fails(capsys, "sample", run, "--num", "0")
    assert "by_time" in fails(capsys, "sample", run, "--grid", "by_tim")
    assert "--steps must be an integer from 1" in fails(capsys, "sample", run, "--steps", "0")
    assert ".png or .npz" in fails(capsys, "sample", run, "--out", "a.gif")
    assert "holds no run" in fails(capsys, "sample", str(tmp_path))


@pytest.mark.slow
def test_the_same_command_goes_on(tmp_path):
    knobs = ["--batch", "8", "--width", "8", "--workdir", str(tmp_path), "--steps", "3", "--preview-every", "3"]
    main(["train", TOY, *knobs])
    before = (tmp_path / "metrics.jsonl").read_text()
    main(["train", TOY, *knobs])  # finished: draws again, trains nothing
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert Image.open(tmp_path / "samples.png").size == (800, 800)


@pytest.mark.slow
def test_a_run_that_draws_its_own_picture(tmp_path, capsys):
    knobs = ["--batch", "8", "--width", "8", "--workdir", str(tmp_path), "--steps", "20", "--lr", "0.1"]
    with one_device():
        main(["train", TOY, *knobs])

    def picture(*options: str) -> bytes:
        with one_device():
            main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png"), *options])
        return np.asarray(Image.open(tmp_path / "x.png")).tobytes()

    usual = picture()
    assert picture("--seed", "0", "--solver", "heun", "--steps", "40") == usual
    for option in (["--seed", "1"], ["--solver", "ddim"], ["--steps", "2"]):
        assert picture(*option) != usual
    assert picture("--num", "3") != usual
    assert "no condition to ask for" in fails(capsys, "sample", str(tmp_path), "--label", "1")
    assert "--guidance 1" in fails(capsys, "sample", str(tmp_path), "--guidance", "2")
    assert "--out must end in .png or .npz, got" in fails(capsys, "sample", str(tmp_path), "--out", str(tmp_path / "x"))
    main(["sample", str(tmp_path), "--num", "3", "--out", str(tmp_path / "x.npz")])
    assert np.load(tmp_path / "x.npz")["x"].shape == (3, 2)


@pytest.mark.slow
def test_another_runs_folder_is_refused(tmp_path, capsys):
    knobs = ["--batch", "8", "--width", "8", "--workdir", str(tmp_path), "--steps", "1"]
    main(["train", TOY, *knobs])
    message = fails(capsys, "train", TOY, *knobs, "--lr", "0.5")
    assert "lr: 0.002 -> 0.5" in message
    assert json.loads((tmp_path / "run.json").read_text())["lr"] == 0.002
    assert "differs from" in fails(capsys, "train", FASHION, "--workdir", str(tmp_path))


def test_mistakes_leave_no_folder(tmp_path, capsys):
    workdir = tmp_path / "run"
    for args, words in (
        (["--steps", "0"], "steps"),
        (["--density", "star"], "moons"),
        (["--mesh", "data=3"], "number of devices"),
        (["--mesh", "rows=8"], "data=4,fsdp=2"),
        (["--seed", "one"], "seed"),
        (["--leaning-rate", "1"], "leaning-rate"),
        (["--widht", "3"], "--width"),
    ):
        assert words in fails(capsys, "train", TOY, "--workdir", str(workdir), *args)
    assert "allowed are" in fails(capsys, "train", FASHION, "--source", "mnist", "--workdir", str(workdir))
    assert not workdir.exists()


def test_unknown_command_and_file(capsys):
    assert "list, new, train, " in fails(capsys, "trian")
    assert "toy2d.py" in fails(capsys, "train", TOY.replace("toy2d", "toy3d"))


@pytest.mark.parametrize("command", [[], ["train", TOY], ["sample"], ["eval"]])
def test_help_fits_a_screen(command, capsys):
    try:
        main([*command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    assert 3 <= len(capsys.readouterr().out.splitlines()) <= 45


@pytest.mark.slow
def test_module_is_the_same_program():
    said = subprocess.run([sys.executable, "-m", "jaxdiff", "--help"], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("usage: jaxdiff COMMAND")


OWN = f"""
from dataclasses import replace
from jaxdiff import train
from jaxdiff.recipe import load

def experiment(steps: int = 8, snapshots: int = 4):
    toy = load({TOY!r})(steps=steps, batch=64, width=16, lr=0.05, preview_every=0)
    training = replace(
        toy.training, ema=tuple(train.ema.power(std) for std in (0.05, 0.1)), ema_memory="pinned_host",
        snapshot_every=snapshots, steps_per_call=2, save_every=8,
    )
    return replace(toy, training=training)
"""


@pytest.mark.slow
def test_averages_of_other_lengths(tmp_path, capsys):
    """Of a run of two updates a dispatch, two averages on the host, and snapshots, which outlive a resumed run."""
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(OWN)
    main(["train", str(own), "--workdir", str(run)])
    assert sorted(int(path.name) for path in (run / "snapshots").iterdir()) == [4, 8]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 9))

    def draw(*options):
        main(["sample", str(run), "--num", "16", "--steps", "4", "--out", str(run / "x.npz"), *options])
        return np.load(run / "x.npz")["x"]

    tracked, last = draw(), draw("--params", "params")
    capsys.readouterr()
    np.testing.assert_allclose(draw("--ema", "0.05"), tracked, atol=2e-5)  # the first of the two
    assert "to within 0.00%" in capsys.readouterr().err
    other = draw("--ema", "0.1")
    assert min(np.abs(each - tracked).max() for each in (other, last)) > 2e-4
    assert "between 0 and 0.2886" in fails(capsys, "sample", str(run), "--ema", "0.5")
    assert "without --params params" in fails(capsys, "sample", str(run), "--ema", "0.1", "--params", "params")
    assert "steps_per_call=2, got 3" in fails(
        capsys, "train", str(own), "--workdir", str(tmp_path / "bad"), "--snapshots", "3"
    )


def test_files_are_remembered_by_their_whole_paths(tmp_path, monkeypatch):
    def build(directory: File, source: Source = "fashion_mnist", vae: File = "", encoder: Encoder = "own"):
        """An experiment."""

    monkeypatch.chdir(tmp_path)
    given = {"directory": "net", "source": "folder:pictures", "encoder": "clip"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    knobs, _ = parse_knobs(build, options, {}, prog="train")
    whole = {name: f"{tmp_path}/{given[name]}" for name in ("directory", "encoder")}
    assert knobs == {**whole, "source": f"folder:{tmp_path}/pictures", "vae": ""}
    knobs, _ = parse_knobs(build, ["--directory", "/net"], {}, prog="train")
    assert knobs == {"directory": "/net", "source": "fashion_mnist", "vae": "", "encoder": "own"}
