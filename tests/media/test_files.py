import numpy as np
import pytest
from PIL import Image

from jaxdiff.media.files import grid, save_npz, save_png, save_pngs


def ramp(n, channels=1, height=3, width=4):
    """Pictures of one value each, from black to white."""
    values = np.linspace(-1, 1, n, dtype=np.float32)[:, None, None, None]
    return np.broadcast_to(values, (n, height, width, channels)).copy()


def test_pictures_go_row_by_row_with_white_gaps():
    images = ramp(6)
    sheet = grid(images, 3)
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * 3 + 2, 3 * 4 + 2 * 2, 1)
    for i in range(6):
        row, column = divmod(i, 3)
        cell = sheet[row * 5 : row * 5 + 3, column * 6 : column * 6 + 4]
        assert (cell == round(255 * i / 5)).all()
    assert (sheet[3:5] == 255).all() and (sheet[:, 4:6] == 255).all() and (sheet[:, 10:12] == 255).all()


def test_the_last_row_may_be_short():
    sheet = grid(-np.ones((3, 2, 2, 1)), 2)
    assert sheet.shape == (6, 6, 1)
    assert (sheet[4:, :2] == 0).all() and (sheet[4:, 4:] == 255).all()


def test_values_are_rounded_and_clipped():
    pixels = grid(np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 7.0]).reshape(6, 1, 1, 1), 6)[0, ::3, 0]
    np.testing.assert_array_equal(pixels, [0, 0, 128, 191, 255, 255])


def test_orientation_is_kept():
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 5, 7, 3))
    np.testing.assert_array_equal(grid(picture, 1), np.rint((picture[0] + 1) * 127.5).astype(np.uint8))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_png_holds_the_grid(tmp_path, channels, mode):
    images = np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, channels)).astype(np.float32)
    path = save_png(tmp_path / "deep" / "sheet.png", images, 3)
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(10, 16, channels), grid(images, 3))


def test_single_pngs(tmp_path):
    images = ramp(3, channels=3)
    paths = save_pngs(tmp_path / "out", images)
    assert [p.name for p in paths] == ["00000.png", "00001.png", "00002.png"]
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), grid(image[None], 1))


def test_npz_keeps_the_values(tmp_path):
    x, label = ramp(3), np.array([4, 5, 6], np.int32)
    path = save_npz(tmp_path / "deep" / "samples.npz", x=x, label=label)
    with np.load(path) as data:
        np.testing.assert_array_equal(data["x"], x)
        np.testing.assert_array_equal(data["label"], label)
        assert data["x"].dtype == np.float32 and data["label"].dtype == np.int32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, value):
    images = ramp(3)
    images[2, 0, 0, 0] = value
    for save in (
        lambda: save_png(tmp_path / "a.png", images, 2),
        lambda: save_pngs(tmp_path / "b", images),
        lambda: save_npz(tmp_path / "c.npz", x=images),
    ):
        with pytest.raises(ValueError, match="1 of 36 values that are not finite"):
            save()
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(tmp_path):
    for shape in [(3, 4, 1), (0, 3, 4, 1), (2, 3, 4, 2), (2, 3, 4, 4)]:
        with pytest.raises(ValueError, match="N, H, W, C"):
            grid(np.zeros(shape), 1)
    with pytest.raises(ValueError, match="columns"):
        grid(ramp(2), 0)
    with pytest.raises(ValueError, match=r"\.npz"):
        save_npz(tmp_path / "a.txt", x=ramp(1))
    with pytest.raises(ValueError, match="no arrays"):
        save_npz(tmp_path / "a.npz")
