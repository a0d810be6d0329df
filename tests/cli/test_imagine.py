"""`jaxdiff imagine` as a person uses it, on a run and on directories of Stable Diffusion and Flux."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_classes, tiny_pipeline
from PIL import Image

from jaxdiff.cli import main
from jaxdiff.imagine import read_history

# What conftest.py has set for this process, and removed from its environment.
FLAGS = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["imagine", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def imagine(*args):
    main(["imagine", *map(str, args)])


def afresh(*commands):
    """Runs commands in a process of its own; returns what it prints."""
    code = (
        f"from jaxdiff.cli import main\nfor args in {[['imagine', *map(str, args)] for args in commands]}: main(args)"
    )
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {FLAGS}"}
    return subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True).stdout


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_mistakes_show_before_anything_is_read_or_written(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    for args, words in (
        ((), "one of them, got none"),
        (("a cat", "--vary", "2"), "one of them, got a prompt and --vary"),
        (("--remix", "a dog"), "--remix goes with --vary N"),
        (("--vary", "0"), "--vary must be an integer of at least 1"),
        (("a cat", "--strength", "0.5"), "a prompt takes no --strength"),
        (("--upscale", "2", "--num", "3"), "--upscale takes no --num"),
        (("--again", "2", "--guidance", "3"), "--again takes no --guidance"),
        (("a cat", "--size", "8", "8"), "it takes no --size"),
        (("--vary", "2"), "history.json does not exist: `jaxdiff imagine"),
        (("a cat",), "holds no run"),
    ):
        assert words in fails(capsys, run, *args, "--out", out), args
    assert not run.exists() and not out.exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    main(["train", tiny_classes.__file__, "--workdir", str(workdir)])
    return workdir


@pytest.mark.slow
def test_a_run_from_words_to_variations(run, capsys):
    out = run / "imagine"
    imagine(run, "high", "--seed", "3")
    paths = capsys.readouterr().out.split()[-5:]
    assert paths == [str(out / f"{name}.png") for name in ("1", "2", "3", "4", "1-4")]
    assert Image.open(paths[0]).size == (6, 6) and Image.open(paths[4]).size == (4 * 8 - 2, 6)
    want = np.rint(127.5 * (1 + np.clip(tiny_classes.by_hand(2, tiny_classes.noise(3, 2)), -1, 1)))
    assert np.abs(pixels(out / "2.png") - want[..., 0]).max() <= 1
    imagine(run, "--vary", 2, "--remix", "low", "--strength", "0.5", "--num", 2)
    history = read_history(out / "history.json")
    assert [p.prompt for p in history.pictures] == ["high"] * 4 + ["low"] * 2 and history.picture(6).parent == 2
    held = pixels(out / "6.png")

    # Without what was kept, in another process: from the history alone.
    text = (out / "history.json").read_text()
    for path in [*out.glob("*.png"), *out.glob("x0/*")]:
        path.unlink()
    assert "picture 6 is the one that was drawn first, bit for bit" in afresh((run, "--again", 6))
    np.testing.assert_array_equal(pixels(out / "6.png"), held)
    assert (out / "history.json").read_text() == text and not list(out.glob("x0/*"))

    # What is kept is not believed if it is another picture's.
    np.savez(out / "x0" / "6.npz", x0=np.ones(tiny_classes.SHAPE, np.float32))
    imagine(run, "--vary", 6, "--num", 1)
    imagine(run, "--again", 7)
    assert "picture 7 is the one" in capsys.readouterr().out
    # What differs from the first is said to.
    first = read_history(out / "history.json").picture(2).x0
    (out / "history.json").write_text((out / "history.json").read_text().replace(first, "0" * 32))
    imagine(run, "--again", 2)
    assert "picture 2 has not the bits" in capsys.readouterr().err


@pytest.mark.slow
def test_mistakes_leave_the_history_as_it_was(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "session"
    imagine(run, "low", "--num", 1, "--steps", 4, "--out", out)
    text = (out / "history.json").read_text()
    assert json.loads(text)["steps"] == 4
    other = tmp_path / "other"
    main(["train", tiny_classes.__file__, "--workdir", str(other), "--times", "1.1"])
    for args, words in (
        ((other, "--vary", 1), "the history is of other weights"),
        ((run, "--vary", 2), "there is no picture 2: the history has pictures 1 to 1"),
        ((run, "--vary", 1, "--strength", 0), "strength must be above 0"),
        ((run, "--vary", 1, "--strength", 1.5), "strength must be a number from 0 to 1, got 1.5"),
        ((run, "--vary", 1, "--remix", " "), "a prompt must have"),
        ((run, "--vary", 1, "--steps", 3), "the history was begun with steps 4, got 3"),
        ((run, "--vary", 1, "--remix", "lower"), "or one of low, middle, high; got lower"),
        ((run, "--upscale", 1), "makes pictures of one size"),
        ((run, "--again", 3), "there is no picture 3"),
    ):
        assert words in fails(capsys, *args, "--out", out), args

    def broken(*args):
        raise OSError(28, "No space left on device", "1-4.png")

    monkeypatch.setattr("jaxdiff.media.files._write", broken)
    with pytest.raises(SystemExit) as stop:
        imagine(run, "--vary", 1, "--out", out)
    assert stop.value.code == 5
    assert (out / "history.json").read_text() == text and not list(out.glob(".*"))


@pytest.mark.slow
def test_directories_of_stable_diffusion_and_flux(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sd = tiny_pipeline.write(tmp_path / "sd")
    common = ["--steps", 2, "--size", 8, 12]
    imagine(sd, "a cat", *common)
    imagine(sd, "--vary", 2, "--num", 1, "--strength", 0.5)
    imagine(sd, "--upscale", 5, "--strength", 0.5)
    assert Image.open("imagine/1-4.png").size == (4 * 14 - 2, 8) and Image.open("imagine/6.png").size == (24, 16)
    history = read_history("imagine/history.json")
    assert (history.size, history.steps, history.guidance) == ((8, 12), 2, 7.5) and history.picture(6).scale == 2
    first = pixels("imagine/6.png")
    # The enlarged picture is the smaller one's, mostly: by half of the steps.
    small = pixels("imagine/5.png")

    flux = tiny_pipeline.write_flux(tmp_path / "flux")
    imagine(flux, "a cat", *common, "--out", "flux-imagine", "--num", 2)
    imagine(flux, "--vary", 2, "--remix", "a dog", "--num", 1, "--out", "flux-imagine")
    assert read_history("flux-imagine/history.json").guidance == 3.5
    for folder in ("imagine", "flux-imagine"):
        for path in Path(folder, "x0").iterdir():
            path.unlink()
    said = afresh((sd, "--again", 6), (flux, "--again", 3, "--out", "flux-imagine"))
    assert "picture 6 is the one that was drawn first" in said and "picture 3 is the one that was drawn first" in said
    np.testing.assert_array_equal(pixels("imagine/6.png"), first)
    assert small.shape == (8, 12, 3)
    assert "other weights" in fails(capsys, flux, "--vary", 1, "--size", 8, 12)
