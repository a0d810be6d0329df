"""Bytes and floats are each other's inverses; images of any kind become arrays of the asked shape."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data.transforms import fit_array, fit_image, flip_some

BYTES = np.arange(256, dtype=np.uint8)


def test_to_float_is_affine_with_exact_ends():
    x = data.to_float(BYTES)
    assert x.dtype == np.float32
    assert x[0] == -1 and x[255] == 1
    np.testing.assert_allclose(x, 2 * BYTES.astype(np.float64) / 255 - 1, atol=1e-7)


def test_to_uint8_inverts_to_float():
    np.testing.assert_array_equal(data.to_uint8(data.to_float(BYTES)), BYTES)


def test_to_uint8_rounds_to_nearest_and_clips():
    step = 2 / 255
    x = np.array([-np.inf, -7, -1, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step, 1, 3, np.inf])
    np.testing.assert_array_equal(data.to_uint8(x), [0, 0, 0, 0, 1, 255, 255, 255, 255])
    assert data.to_uint8(x).dtype == np.uint8


def test_to_uint8_takes_jax_arrays():
    x = jnp.array([[-1.0, 1.0]], jnp.bfloat16)
    np.testing.assert_array_equal(data.to_uint8(x), [[0, 255]])


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(3, np.int32)])
def test_to_float_refuses_what_is_not_bytes(wrong):
    with pytest.raises(ValueError, match="takes uint8"):
        data.to_float(wrong)


def test_to_uint8_refuses_integers_and_nan():
    with pytest.raises(ValueError, match="takes floats"):
        data.to_uint8(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        data.to_uint8([np.nan, 0.0])


def test_flip_some_mirrors_columns_of_the_chosen():
    x = np.arange(2 * 2 * 3 * 1).reshape(2, 2, 3, 1)
    out = flip_some(x, np.array([False, True]))
    np.testing.assert_array_equal(out[0], x[0])
    np.testing.assert_array_equal(out[1, :, :, 0], [[8, 7, 6], [11, 10, 9]])


def test_fit_image_crops_the_centre():
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 200
    out = fit_image(Image.fromarray(pixels), 4, 1)
    assert out.shape == (4, 4, 1) and out.dtype == np.uint8
    assert (out == 200).all()


def test_fit_image_antialiases():
    # A checkerboard of single pixels: point sampling would give 0 or 255.
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    out = fit_image(Image.fromarray(board), 4, 1)
    assert abs(out.astype(int) - 128).max() <= 8


def test_fit_image_puts_transparency_on_white():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    out = fit_image(image, None, 3)
    np.testing.assert_array_equal(out[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(out[1, 1], [255, 255, 255])


def test_fit_image_covers_a_rectangle_and_keeps_its_centre():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(fit_image(image, (2, 4), 1)[..., 0], pixels[1:3])
    np.testing.assert_array_equal(fit_image(image, (4, 2), 1)[..., 0], pixels[:, 1:3])
    np.testing.assert_array_equal(fit_image(image, (2, 2), 1), fit_image(image, 2, 1))


def test_fit_image_turns_photographs_upright():
    image = Image.new("L", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to display
    image.info["exif"] = exif.tobytes()
    assert fit_image(image, None, 1).shape == (4, 2, 1)


def test_fit_image_refuses_sixteen_bits():
    with pytest.raises(ValueError, match=r"8 bits a channel, got mode 'I;16'"):
        fit_image(Image.fromarray(np.zeros((2, 2), np.uint16)), None, 1)


def test_fit_array_converts_channels_and_size():
    grey = np.full((6, 4, 1), 77, np.uint8)
    np.testing.assert_array_equal(fit_array(grey, None, None), grey)
    np.testing.assert_array_equal(fit_array(grey, 2, 3), np.full((2, 2, 3), 77))
    # ITU-R 601-2 luma, which Pillow documents for RGB to L.
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert abs(int(fit_array(red, None, 1)[0, 0, 0]) - 255 * 299 // 1000) <= 1
