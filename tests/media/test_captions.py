"""Grids with captions: where the pictures, the frames and the words are."""

import numpy as np
from PIL import Image

from jaxdiff import media
from jaxdiff.media import Samples
from jaxdiff.media.captions import EDGE, FRAME, WIDTH

SIDE = WIDTH  # 8 pixels are enlarged 14 times
NAMES = ("cat", "a small green heart on the left of a very large dog", "dog")


def test_a_picture_has_its_words_under_it_and_a_frame_if_it_is_held_out(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    samples = Samples(x, {"ids": np.zeros((3, 4))}, choices=2, names=NAMES, held_out=np.array([False, True, False]))
    medium = media.images((8, 8, 3), captions=True)
    medium.save(tmp_path / "a.png", samples)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    width, height = SIDE + 2 * EDGE, sheet.shape[0] // 2
    assert sheet.shape[1] == 2 * width and sheet.shape[0] == 2 * height
    inked = []
    for i in range(3):
        cell = sheet[i // 2 * height :][:height, i % 2 * width :][:, :width]
        inside = cell[EDGE : EDGE + SIDE, EDGE : EDGE + SIDE]
        np.testing.assert_array_equal(inside[7::14, 7::14], np.rint((x[i] + 1) * 127.5))
        around = np.concatenate([cell[:EDGE].reshape(-1, 3), cell[: SIDE + 2 * EDGE, -EDGE:].reshape(-1, 3)])
        assert (around == (FRAME if i == 1 else (255, 255, 255))).all()
        inked.append((cell[SIDE + 2 * EDGE :] < 128).all(-1).sum())
    assert 0 < inked[0] < inked[1] / 4  # letters
    assert (sheet[height:, width:] == 255).all()  # a cell without a picture
    medium.save(tmp_path / "a.npz", samples)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["prompt"].tolist() == list(NAMES) and sorted(arrays) == ["prompt", "x"]


def test_grey_and_large_pictures_and_no_captions(tmp_path):
    samples = Samples(np.zeros((1, 8, 120, 1), np.float32), {}, names=("cat",))
    media.images((8, 120, 1), captions=True).save(tmp_path / "a.png", samples)
    assert Image.open(tmp_path / "a.png").size[0] == 120 + 2 * EDGE
    media.images((8, 120, 1)).save(tmp_path / "b.png", samples)
    assert Image.open(tmp_path / "b.png").size == (120, 8)
