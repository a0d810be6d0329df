"""Hints made of pictures: what they are of steps, ramps and blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditions import hints

SIDE, AT = 12, 5
rng = np.random.default_rng(0)


def step(height=1.0, turns=0):
    """Brightness 0 left of column AT and `height` from there on, turned by multiples of 90 degrees."""
    bright = np.where(np.arange(SIDE) < AT, 0.0, height) * np.ones((SIDE, 1))
    return np.rot90(np.float32(2 * bright - 1), turns)[None, :, :, None]


def test_a_step_has_edges_on_both_its_sides_of_its_height_and_a_ramp_has_one_slope():
    for turns in range(4):
        want = np.where(np.isin(np.arange(SIDE), (AT - 1, AT)), 0.4, 0.0) * np.ones((SIDE, 1))
        got = hints.edges(step(0.4, turns))
        np.testing.assert_allclose(got, np.broadcast_to(np.rot90(want, turns)[None, :, :, None], got.shape), atol=1e-6)
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.float32(2 * (0.03 * x + 0.04 * y) - 1)[None, ..., None]
    np.testing.assert_allclose(hints.edges(ramp)[:, 1:-1, 1:-1], 2 * 0.05, atol=1e-6)  # over two pixels
    assert hints.edges(step(1.0)).max() == 1


compiled = jax.jit(hints.canny)  # of four pictures


def canny(images, low=0.1, high=0.2):
    """Of up to four pictures, [N, SIDE, SIDE, 1], their edges [N, SIDE, SIDE]."""
    padded = np.concatenate([images, np.zeros((4 - len(images), SIDE, SIDE, 1), np.float32)])
    return np.asarray(compiled(padded, np.float32(low), np.float32(high)))[: len(images), ..., 0]


def test_canny_s_edges_are_a_pixel_wide_wherever_they_lead():
    for turns, edge in enumerate(canny(np.concatenate([step(turns=turns) for turns in range(4)]))):
        want = np.zeros((SIDE, SIDE))  # of the two pixels at a step the first in the row, or column
        want[:, AT - 1] = 1
        if turns in (1, 2):
            want = np.roll(want, SIDE - 2 * AT, axis=1)
        np.testing.assert_array_equal(edge, want.T if turns % 2 else want)
    y, x = np.mgrid[:SIDE, :SIDE]
    across = x - y, x + y - SIDE + 1  # positive on one side of a diagonal
    found = canny(np.stack([np.float32(2 * (off > 0) - 1) for off in across])[..., None])
    for edge, off in zip(found[:, 2:-2, 2:-2], across, strict=True):
        blocks = edge[1:, 1:] + edge[1:, :-1] + edge[:-1, 1:] + edge[:-1, :-1]
        assert edge.sum(0).min() >= 1 and edge.sum(1).min() >= 1 and blocks.max() < 4
        assert not edge[np.abs(off - 0.5)[2:-2, 2:-2] > 0.5].any()


def test_canny_keeps_weak_edges_that_go_on_from_strong_ones():
    height = np.where(np.arange(SIDE) < 6, 0.5, 0.15)[:, None]  # strong above, weak below
    bright = np.where(np.arange(SIDE) < AT, 0.0, height)
    alone = np.where(np.arange(SIDE) < AT, 0.0, 0.15) * np.ones((SIDE, 1))
    images = np.float32(2 * np.stack([bright, alone, 0 * alone])[..., None] - 1)
    kept = canny(images).sum((1, 2))
    assert kept[0] >= SIDE and kept[1] == kept[2] == 0
    assert canny(images, 0.1, 0.14)[1].sum() == SIDE
    np.testing.assert_array_equal(canny(images, 0.2, 0.2)[0, 8:], 0)


def test_blocks_have_their_means_and_low_resolution_keeps_what_is_smooth():
    x = np.float32(rng.uniform(-1, 1, (2, 8, 12, 3)))
    got = np.asarray(hints.colors(x, 4))
    want = (x.reshape(2, 2, 4, 3, 4, 3).mean((2, 4)) + 1) / 2
    np.testing.assert_allclose(got[:, ::4, ::4], want, rtol=1e-5)
    np.testing.assert_array_equal(got, np.repeat(np.repeat(got[:, ::4, ::4], 4, 1), 4, 2))
    ramp = np.float32(np.broadcast_to(np.linspace(-1, 1, 16)[:, None, None], (16, 16, 1)))[None]
    small = np.asarray(hints.low_resolution(ramp, 2))
    assert small.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(small[:, 4:-4], np.broadcast_to((ramp[:, 4:-4] + 1) / 2, (1, 8, 16, 3)), atol=1e-2)
    for make in (hints.colors, hints.low_resolution):
        with pytest.raises(ValueError, match="blocks of 5 pixels"):
            make(x, 5)


def test_the_nearest_is_white():
    distance = jnp.asarray([[[1.0, 2.0], [4.0, 4.0]], [[3.0, 3.0], [3.0, 3.0]]])
    want = [[[1, 1 / 3], [0, 0]], [[0, 0], [0, 0]]]
    np.testing.assert_allclose(hints.depth(distance), np.repeat(np.float32(want)[..., None], 3, -1), atol=1e-6)
