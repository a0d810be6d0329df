"""Tiles against plain loops in numpy, and the memory that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import autoencoders
from jaxdiff.autoencoders import in_tiles
from jaxdiff.networks.layers import upsample


def images(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width, 1)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("height, width, overlap", [(5, 8, 1), (8, 9, 4), (20, 23, 0), (21, 26, 3)])
def test_what_looks_at_no_neighbour_comes_out_whole(height, width, overlap):
    x = images(height, width)
    got = in_tiles(lambda x: {"once": upsample(x), "twice": upsample(2 * x)}, x, tile=8, overlap=overlap)
    want = upsample(jnp.asarray(x))
    np.testing.assert_allclose(got["once"], want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got["twice"], 2 * want, rtol=0, atol=1e-6)


def ramps(starts, seams, overlap, tile, length):
    """Each tile's share of each position, written seam by seam."""
    share = np.zeros((len(starts), length))
    for k, start in enumerate(starts):
        share[k, start : start + tile] = 1
    for k, seam in list(enumerate(seams))[1:]:
        share[k, :seam] = 0
        share[k - 1, seam + overlap :] = 0
        for i in range(overlap):
            share[k, seam + i], share[k - 1, seam + i] = i / overlap, 1 - i / overlap
    return share


def test_neighbours_fade_into_each_other():
    x = images(13, 20)
    rows = ramps([0, 5], [0, 6], 2, 8, 13)  # the last tile is moved in by one, its seam is not
    columns = ramps([0, 6, 12], [0, 6, 12], 2, 8, 20)
    want = np.zeros_like(x)
    for row, i in zip(rows, [0, 5], strict=True):
        for column, j in zip(columns, [0, 6, 12], strict=True):
            tile = x[:, i : i + 8, j : j + 8]
            part = np.zeros_like(x)
            part[:, i : i + 8, j : j + 8] = tile * np.abs(tile).mean((1, 2), keepdims=True)
            want += row[None, :, None, None] * column[None, None, :, None] * part
    got = in_tiles(lambda x: x * jnp.abs(x).mean((1, 2), keepdims=True), x, tile=8, overlap=2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match=r"overlap must be in 0\.\.4"):
        in_tiles(lambda x: x, images(20, 20), tile=8, overlap=5)
    with pytest.raises(ValueError, match="multiples of 4"):
        in_tiles(lambda x: x[:, ::4, ::4], images(20, 20), tile=8, overlap=2)


@pytest.mark.slow
def test_one_tile_is_the_whole_and_memory_does_not_grow():
    module = autoencoders.KLAutoencoder(widths=(4, 8), num_blocks=1, groups=2, mid_attention=False)
    params = autoencoders.init(module, jax.random.key(0))
    whole = autoencoders.kl_codec(module)
    codec = autoencoders.tiled(whole, tile=8, overlap=2)
    z = np.random.default_rng(0).standard_normal((1, 8, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(codec.decode(params, z), whole.decode(params, z), rtol=0, atol=1e-6)

    def memory(decode, size):
        z = jax.ShapeDtypeStruct((1, size, size, 4), jnp.float32)
        return jax.jit(decode).lower(params, z).compile().memory_analysis().temp_size_in_bytes

    few, many = memory(codec.decode, 14), memory(codec.decode, 80)
    assert many < 1.1 * few
    assert memory(whole.decode, 80) > 10 * many
