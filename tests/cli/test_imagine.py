"""`jaxdiff imagine` as docs/imagine.md has it, on a run and on directories of Stable Diffusion and Flux."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_classes, tiny_pipeline
from helpers.flags import xla_flags
from PIL import Image

from jaxdiff.cli import main
from jaxdiff.imagine import read_history

PAGE = (Path(__file__).parents[2] / "docs" / "imagine.md").read_text()


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["imagine", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def imagine(*args):
    main(["imagine", *map(str, args)])


def of_page(directory):
    """The page's commands for a directory."""
    return [shlex.split(line, comments=True) for line in re.findall(rf"^jaxdiff imagine ({directory} .*)$", PAGE, re.M)]


def afresh(*commands, devices=8):
    """Runs commands in a process of its own; returns what it prints."""
    code = (
        f"from jaxdiff.cli import main\nfor args in {[['imagine', *map(str, args)] for args in commands]}: main(args)"
    )
    env = os.environ | {"XLA_FLAGS": xla_flags(devices)}
    return subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True).stdout


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_mistakes_show_before_anything_is_read_or_written(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    for args, words in (
        ((), "one of them, got none"),
        (("a cat", "--vary", "2"), "one of them, got a prompt and --vary"),
        (("--remix", "a dog"), "--remix goes with --vary N"),
        (("--vary", "0"), "--vary must be an integer from 1"),
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
def test_the_page_on_a_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/fashion")
    out = Path("runs/fashion/imagine")
    for args in of_page("runs/fashion"):
        imagine(*args)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "picture 10 is the one that was drawn first, bit for bit" and said[0] == str(out / "1.png")
    assert {f"{name}.png" for name in (*range(1, 14), "1-4", "5-8", "9-12")} == {
        path.name for path in out.glob("*.png")
    }
    assert Image.open(out / "1.png").size == (6, 6) and Image.open(out / "5-8.png").size == (4 * 8 - 2, 6)
    assert Image.open(out / "13.png").size == (12, 12)
    want = np.rint(127.5 * (1 + np.clip(tiny_classes.by_hand(0, tiny_classes.noise(0, 2)), -1, 1)))
    assert np.abs(pixels(out / "2.png") - want[..., 0]).max() <= 1
    history = read_history(out / "history.json")
    assert [(p.prompt, p.parent, p.strength) for p in [*history.pictures[3::4], history.picture(13)]] == [
        ("Sneaker", None, None),
        ("Sneaker", 2, 0.4),
        ("Ankle boot", 6, 0.6),
        ("Sneaker", 6, 0.2),
    ]
    tenth, text = pixels(out / "10.png"), (out / "history.json").read_text()

    # From the history alone, in another process.
    for path in [*out.glob("*.png"), *out.glob("x0/*")]:
        path.unlink()
    assert "picture 10 is the one that was drawn first, bit for bit" in afresh(("runs/fashion", "--again", 10))
    np.testing.assert_array_equal(pixels(out / "10.png"), tenth)
    assert (out / "history.json").read_text() == text and not list(out.glob("x0/*"))

    # What is kept is not believed if it is another picture's; what differs from the first is said to.
    np.savez(out / "x0" / "6.npz", x0=np.ones(tiny_classes.SHAPE, np.float32))
    imagine("runs/fashion", "--vary", 6, "--num", 1)
    imagine("runs/fashion", "--again", 14)
    assert "picture 14 is the one" in capsys.readouterr().out
    (out / "history.json").write_text(text.replace(history.picture(2).x0, "0" * 32))
    imagine("runs/fashion", "--again", 2)
    assert "picture 2 has not the bits" in capsys.readouterr().err

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
        scope: dict = {}
        exec("".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)), scope)
    assert scope["drawn"].keys() == {2, 9} and read_history("sneakers.json").picture(9).x0 is not None


@pytest.mark.slow
def test_mistakes_leave_the_history_as_it_was(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "session"
    imagine(run, "Sneaker", "--num", 1, "--steps", 4, "--out", out)
    text = (out / "history.json").read_text()
    assert json.loads(text)["steps"] == 4
    other = tmp_path / "other"
    main(["train", tiny_classes.__file__, "--workdir", str(other), "--times", "1.1"])
    for args, words in (
        ((other, "--vary", 1), "the history is of other weights"),
        ((run, "--vary", 2), "there is no picture 2: the history has pictures 1 to 1"),
        ((run, "--vary", 1, "--strength", 0), "strength must be above 0"),
        ((run, "--vary", 1, "--strength", 1.5), "strength must be a number from 0 to 1, got 1.5"),
        ((run, "--vary", 1, "--remix", " "), "Bag; got ' '"),
        ((run, "--vary", 1, "--steps", 3), "the history was begun with steps 4, got 3"),
        ((run, "--vary", 1, "--remix", "Sneakers"), "or one of Sneaker, Ankle boot, Bag; got 'Sneakers'"),
        ((run, "--again", 3), "there is no picture 3"),
    ):
        assert words in fails(capsys, *args, "--out", out), args

    def broken(*args):
        raise OSError(28, "No space left on device", "1-4.png")

    monkeypatch.setattr("jaxdiff.media.files.write_pixels", broken)
    with pytest.raises(SystemExit) as stop:
        imagine(run, "--vary", 1, "--out", out)
    assert stop.value.code == 5
    assert (out / "history.json").read_text() == text and not list(out.glob(".*"))


@pytest.mark.slow
def test_directories_of_stable_diffusion_and_flux(tmp_path, capsys, monkeypatch):
    """In processes of one device, which compile faster; the second one has the programs of the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    sd, flux = "stable-diffusion-v1-5", "FLUX.1-dev"
    tiny_pipeline.write(tmp_path / sd)
    tiny_pipeline.write_flux(tmp_path / flux)
    words, upscale = of_page(flux)
    afresh(*of_page(sd), [*words, "--steps", 2, "--size", 8, 12], upscale, devices=1)
    of_sd, of_flux = (read_history(f"{folder}/history.json") for folder in ("fox", "imagine"))
    assert (of_sd.size, of_sd.steps, of_sd.guidance) == ((8, 8), 50, 7.5)
    assert (of_flux.size, of_flux.steps, of_flux.guidance) == ((8, 12), 2, 3.5)
    assert [p.scale for p in of_flux.pictures] == [1] * 4 + [2] and of_flux.picture(5).parent == 3
    assert Image.open("fox/1-4.png").size == (4 * 10 - 2, 8) and Image.open("imagine/5.png").size == (24, 16)
    grown = pixels("imagine/5.png")
    shutil.rmtree("imagine/x0")
    said = afresh((flux, "--again", 5), devices=1)
    assert said.count("picture 5 is the one that was drawn first, bit for bit") == 1
    np.testing.assert_array_equal(pixels("imagine/5.png"), grown)
