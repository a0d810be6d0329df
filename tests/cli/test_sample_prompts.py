"""`jaxdiff sample RUN --prompt`: pictures of prompts by a run of captions, from training to the grid."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_captions
from helpers.flags import xla_flags
from PIL import Image

from jaxdiff import text_encoders
from jaxdiff.cli import main, sample
from jaxdiff.media.captions import EDGE, WIDTH


def fails(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["sample", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red square\n\na blue one\n", encoding="utf-8-sig")
    assert sample._read_prompts(("first",), tmp_path / "prompts.txt") == ("first", "a red square", "a blue one")


def test_prompts_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("a\u2028b\x85c\r\nsecond\n".encode())
    assert sample._read_prompts((), tmp_path / "prompts.txt") == ("a\u2028b\x85c", "second")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of four steps, by a process of its own with one device, for which it compiles faster than for eight."""
    workdir = tmp_path_factory.mktemp("captions")
    options = ["--steps", "4", "--lr", "0.1", "--preview-every", "4", "--workdir", str(workdir)]
    command = [sys.executable, "-m", "jaxdiff", "train", tiny_captions.__file__, *options]
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": xla_flags(1)}, capture_output=True)
    return workdir


@pytest.mark.slow
def test_a_run_of_captions_draws_prompts(run, tmp_path):
    assert json.loads((run / "vocabulary.json").read_text())["words"][:3] == ["a", "blue", "left"]
    sheet = np.asarray(Image.open(run / "samples.png"))  # eight pictures of four captions, the last of them framed
    side = WIDTH + 2 * EDGE
    assert sheet.shape[1] == 4 * side
    framed = (sheet[1, :: side // 2] == (245, 180, 110)).all(-1)
    assert framed.tolist() == [False] * 6 + [True] * 2

    (tmp_path / "prompts.txt").write_text("Blue square, left!\n\n a red square on the right\n")
    options = ["--prompt", "red left", "--prompts", str(tmp_path / "prompts.txt"), "--negative", "blue"]
    main(["sample", str(run), "--steps", "1", *options, "--out", str(tmp_path / "a.npz")])
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["prompt"].tolist() == ["red left", "Blue square, left!", "a red square on the right"]
        assert arrays["x"].shape == (3, 8, 8, 3)


@pytest.mark.slow
def test_prompts_that_a_run_refuses(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text_encoders, "find_spec", lambda name: None)
    assert "unknown word 'rad' (did you mean red?)" in fails(capsys, run, "--prompt", "a rad square")
    assert "unknown word 'gold'" in fails(capsys, run, "--prompt", "red", "--negative", "gold")
    assert "got an empty one" in fails(capsys, run, "--prompt", "")
    assert "has 8 words; a text has at most 7" in fails(capsys, run, "--prompt", "a " * 8)
    assert "give one of them" in fails(capsys, run, "--prompt", "red", "--label", "red")
    assert "guidance is 1" in fails(capsys, run, "--prompt", "red", "--negative", "blue", "--guidance", "1")
    (tmp_path / "empty.txt").write_text("\n")
    assert "a prompt on each line" in fails(capsys, run, "--prompts", tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    assert "in UTF-8" in fails(capsys, run, "--prompts", tmp_path / "latin.txt")
    kept = run / "vocabulary.json"
    kept.write_text(json.dumps({"words": ["a", "green"]}))
    assert "other words than in its training: " in fails(capsys, run, "--prompt", "red")
