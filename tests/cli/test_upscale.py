"""`jaxdiff upscale`: files and a base's samples made larger, through several stages; and what it says to mistakes."""

from pathlib import Path

import numpy as np
import pytest
from helpers.devices import one_device
from helpers.untrained import untrained
from PIL import Image

from jaxdiff import few_steps
from jaxdiff.cli import main
from jaxdiff.experiment import UserError
from jaxdiff.options import Run

pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[1] / "helpers" / "tiny_cascade.py"
# The stages answer with what they are given, resized; the base with the grey of its class.
RUNS = {
    "base": {"size": 4, "low": 0},
    "small": {"size": 8, "low": 4},
    "large": {"size": 16, "low": 8},
    "colour": {"size": 8, "low": 4, "channels": 3},
    "shoes": {"size": 16, "low": 8, "names": ("boot", "sandal")},
    # Of captions, each by a vocabulary of its own.
    "texts": {"size": 4, "low": 0, "words": ("coat", "bag")},
    "larger texts": {"size": 8, "low": 4, "words": ("shoe", "bag", "coat")},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, knobs in RUNS.items():
        untrained(folder / name, TINY, **knobs)
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(2).integers(60, 200, (4, 4), np.uint8)).save(path)
    return path


def larger(pixels, size):
    """Pillow's of floats: of bytes it also rounds between height and width."""
    values = Image.fromarray(pixels.astype(np.float32), mode="F").resize((size, size), Image.Resampling.BICUBIC)
    return np.rint(np.clip(np.asarray(values), 0, 255)).astype(int)


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["upscale", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_file_is_made_larger_by_each_stage(runs, picture, tmp_path, capsys):
    main(["upscale", str(runs / "small"), str(picture), "--then", str(runs / "large"), "--label", "bag"])
    assert capsys.readouterr().out.split() == [str(runs / "large" / "upscaled-0.png")]
    want = larger(larger(np.asarray(Image.open(picture)), 8), 16)
    got = np.asarray(Image.open(runs / "large" / "upscaled-0.png"), int)
    assert np.abs(got - want).max() <= 1  # a half may be rounded to either side
    out = tmp_path / "a.npz"
    main(
        ["upscale", str(runs / "small"), str(picture), str(picture), "--num", "2", "--level", "0.5", "--out", str(out)]
    )
    arrays = np.load(out)
    assert arrays["x"].shape == (4, 8, 8, 1) and arrays["label"].tolist() == [2] * 4
    assert arrays["level"].tolist() == [0.5] * 4 and np.abs(arrays["x"][0] - arrays["x"][1]).max() > 0.5


def test_each_stage_has_noise_of_its_own(runs, tmp_path):
    grey, first, second = (tmp_path / name for name in ("grey.png", "first.npz", "second.npz"))
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(grey)
    common = ["upscale", str(runs / "small"), str(grey), "--level", "0.2"]
    with one_device():
        main([*common, "--out", str(first)])
        main([*common, "--then", str(runs / "large"), "--out", str(second)])
    small, large = (np.load(path)["x"][0, :, :, 0] for path in (first, second))
    pixels = np.rint((np.clip(small, -1, 1) + 1) * 127.5)
    noise = large - 0.8 * (larger(pixels, 16) / 127.5 - 1)
    # The first 64 numbers of a key are the same whatever the shape.
    assert abs(np.corrcoef(small.ravel(), noise.ravel()[:64])[0, 1]) < 0.5 and 0.15 < noise.std() < 0.25


def test_a_base_draws_what_is_made_larger(runs, tmp_path):
    out = tmp_path / "a.npz"
    then = ["--then", str(runs / "large")]
    main(["upscale", str(runs / "small"), "--base", str(runs / "base"), *then, "--num", "3", "--out", str(out)])
    arrays = np.load(out)
    assert arrays["label"].tolist() == [0, 1, 0] and arrays["x"].shape == (3, 16, 16, 1)
    np.testing.assert_allclose(
        arrays["x"], np.array([-0.5, 0, -0.5])[:, None, None, None] + np.zeros((16, 16, 1)), atol=0.01
    )


def test_each_stage_reads_the_captions_by_its_own_vocabulary(runs, picture, tmp_path, capsys):
    out, stage = tmp_path / "a.npz", runs / "larger texts"
    with one_device():
        main(["upscale", str(stage), "--base", str(runs / "texts"), "--num", "3", "--out", str(out)])
        arrays = np.load(out)
        assert arrays["ids"].tolist() == [2, 1, 2]  # coat, bag, coat
        np.testing.assert_allclose(arrays["x"].mean((1, 2, 3)), [-0.75, 0.75, -0.75], atol=0.01)
        main(["upscale", str(stage), str(picture), "--prompt", "shoe", "--out", str(tmp_path / "shoe.npz")])
        main(["upscale", str(stage), str(picture), str(picture), "--prompt", "bag", "--out", str(out)])
        # A base of classes has no words for it, and the other way round: nothing is said.
        main(["upscale", str(stage), "--base", str(runs / "base"), "--num", "2", "--out", str(tmp_path / "b.npz")])
    shoe, bags = np.load(tmp_path / "shoe.npz")["x"], np.load(out)["x"]
    np.testing.assert_allclose(bags, np.repeat(shoe, 2, axis=0) + 0.25, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "b.npz")["x"].mean((1, 2, 3)), [-0.5, 0], atol=0.01)
    assert "unknown words: ['hat']" in fails(capsys, stage, picture, "--prompt", "hat")
    assert "give one of them" in fails(capsys, stage, picture, "--prompt", "bag", "--label", "bag")


def test_a_picture_of_another_size_or_colour(runs, picture, tmp_path, capsys):
    colour = tmp_path / "colour.png"
    Image.fromarray(np.full((4, 6, 3), 100, np.uint8)).save(colour)
    words = fails(capsys, runs / "small", colour)
    assert "colour.png is 6 x 4 pixels in colour, and the run takes 4 x 4 pixels in grey: --fit" in words
    with one_device():
        main(["upscale", str(runs / "small"), str(colour), "--fit", "--out", str(tmp_path / "a.png")])
        main(["upscale", str(runs / "colour"), str(picture), "--out", str(tmp_path / "b.png")])  # grey is a colour
    assert np.unique(np.asarray(Image.open(tmp_path / "a.png"))).tolist() == [100]
    assert np.asarray(Image.open(tmp_path / "b.png")).shape == (8, 8, 3)


def test_mistakes(runs, picture, tmp_path, capsys):
    small, base = runs / "small", runs / "base"
    either = "either PICTURES or the samples of --base RUN"
    assert "upscale --base takes no --fit" in fails(capsys, small, "--base", base, "--fit")
    assert either in fails(capsys, small) and either in fails(capsys, small, picture, "--base", base)
    assert "makes no picture larger" in fails(capsys, base, picture)
    assert "holds no run" in fails(capsys, small, "--base", tmp_path)
    assert "cannot read the image" in fails(capsys, small, tmp_path / "none.png")
    assert "0..1, or one of coat, bag" in fails(capsys, small, picture, "--label", "boot")
    assert "from 0 to 0.5, got 0.6" in fails(capsys, small, picture, "--level", "0.6")
    assert ".png or .npz" in fails(capsys, small, picture, "--out", tmp_path / "a.gif")
    words = fails(capsys, small, picture, "--then", runs / "colour")
    assert "takes pictures of 4 x 4 pixels in colour" in words and "makes 8 x 8 pixels in grey" in words
    assert "('boot', 'sandal') and ('coat', 'bag')" in fails(capsys, small, picture, "--then", runs / "shoes")
    assert not list(tmp_path.glob("*.npz"))


def test_few_steps_are_not_for_it(runs):
    with pytest.raises(UserError, match=r"noise on its condition, without training\.of_batches, as .*small is"):
        few_steps.load_teacher(str(runs / "small"), Run(steps=1, batch=1, lr=0.1))
