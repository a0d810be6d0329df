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


# OpenPose's colours of its joints, of which the first 17 are its limbs', too.
COLORS = [
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
]  # fmt: skip
LIMBS = [
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (0, 1),
    (0, 14), (14, 16), (0, 15), (15, 17),
]  # fmt: skip
draw = jax.jit(hints.pose, static_argnums=1)


def test_a_body_has_openpose_s_joints_and_limbs_in_its_colours():
    bodies = np.zeros((18 + len(LIMBS), 1, 18, 3), np.float32)
    bodies[np.arange(18), 0, np.arange(18)] = 20, 12, 0.3  # a joint
    for i, (a, b) in enumerate(LIMBS):
        bodies[18 + i, 0, [a, b]] = [[10, 20, 1], [30, 20, 1]]
    got = np.asarray(draw(bodies, (32, 40)))
    y, x = np.mgrid[:32, :40]
    for i, color in enumerate(COLORS):
        disc = np.hypot(x - 20, y - 12) <= 4
        np.testing.assert_allclose(got[i], disc[..., None] * np.float32(color) / 255, atol=1e-6)
    for i, (a, b) in enumerate(LIMBS):
        want = (((x - 20) / 10) ** 2 + ((y - 20) / 4) ** 2 <= 1)[..., None] * (0.6 * np.float32(COLORS[i]) / 255)
        for joint, left in sorted([(a, 10), (b, 30)]):
            want = np.where((np.hypot(x - left, y - 20) <= 4)[..., None], np.float32(COLORS[joint]) / 255, want)
        np.testing.assert_allclose(got[18 + i], want, atol=1e-6)


def test_a_body_turns_with_its_joints_and_is_drawn_over_those_before():
    body = np.concatenate([rng.uniform(4, 35, (2, 18, 2)), np.ones((2, 18, 1))], -1)[None].astype(np.float32)
    got = np.asarray(draw(body, (40, 40)))
    turned = np.stack([body[..., 1], 39 - body[..., 0], body[..., 2]], -1)
    assert (
        np.mean(np.abs(draw(turned, (40, 40)) - np.rot90(got, axes=(1, 2))).max(-1) > 1e-6) < 1e-3
    )  # rounding at borders
    last = np.asarray(draw(np.concatenate([np.zeros_like(body[:, :1]), body[:, 1:]], 1), (40, 40)))
    inside = last.any(-1)
    np.testing.assert_array_equal(got[inside], last[inside])
    assert 0.2 < inside.mean() < 0.95 and got[~inside].any()
