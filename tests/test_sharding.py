import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.sharding import (
    AXES,
    BATCH_AXES,
    MAX_REPLICATED_SIZE,
    MIN_SHARDED_SIZE,
    make_mesh,
    product,
    shard_batch,
    shard_params,
    splits_params,
    use_mesh,
)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


@pytest.mark.parametrize(
    ("arguments", "shape"), [((), (8, 1)), ((None, 4), (2, 4)), ((2, 4), (2, 4)), ((1, 8), (1, 8))]
)
def test_mesh(arguments, shape):
    mesh = make_mesh(*arguments)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == (*shape, 1, 1)
    assert mesh.axis_types == (AxisType.Auto,) * 4


@pytest.mark.parametrize(("data", "fsdp"), [(3, 2), (None, 3), (8, 2), (4, 1), (0, 8), (None, 0), (-2, -4), (None, 16)])
def test_mesh_refuses_what_is_not_the_number_of_devices(data, fsdp):
    with pytest.raises(ValueError, match="number of devices, 8"):
        make_mesh(data, fsdp)


def test_whether_a_mesh_splits_parameters():
    for mesh, wanted in ((make_mesh(), False), (make_mesh(sequence=8), False), (make_mesh(fsdp=2), True)):
        with use_mesh(mesh):
            assert splits_params() == wanted
    assert not splits_params()


def test_mesh_of_chosen_devices():
    chosen = jax.devices()[4:6]
    assert list(make_mesh(1, 2, devices=chosen).devices.flat) == chosen


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),  # output channels
        ((3, 3, 128, 6), P(None, None, "fsdp")),  # they do not divide: input channels
        ((1, MIN_SHARDED_SIZE), P(None, "fsdp")),
        ((1, MIN_SHARDED_SIZE - 4), P()),  # small
        ((4 * MIN_SHARDED_SIZE,), P()),  # a vector
        ((63, 65), P()),  # nothing divides, but not large
        ((), P()),
    ],
)
def test_rule(shape, spec):
    assert shard_params({"w": shaped(*shape)}, make_mesh(2, 4))["w"].spec == spec


def test_rule_without_fsdp_replicates_everything():
    assert shard_params({"w": shaped(1024, 2048)}, make_mesh(8, 1))["w"].spec == P()


def test_a_large_array_is_never_replicated_silently():
    odd = shaped(1025, 1025)
    assert np.prod(odd.shape) >= MAX_REPLICATED_SIZE
    with pytest.raises(ValueError, match=r"block/w .*\(1025, 1025\).*fsdp=4"):
        shard_params({"block": {"w": odd}}, make_mesh(2, 4))


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_batch_is_split_over_all_devices_in_order(fsdp):
    mesh = make_mesh(None, fsdp)
    host = {"x": np.arange(48, dtype=np.float32).reshape(16, 3), "label": np.arange(16, dtype=np.int32)}
    batch = shard_batch(host, mesh)
    assert batch["x"].shape == (16, 3)
    assert batch["label"].dtype == np.int32
    for place, device in enumerate(mesh.devices.flat):
        (shard,) = [s for s in batch["x"].addressable_shards if s.device == device]
        np.testing.assert_array_equal(shard.data, host["x"][2 * place : 2 * place + 2])


@pytest.mark.parametrize("x", [np.zeros((12, 2)), np.float32(1)])
def test_batch_that_does_not_divide(x):
    with pytest.raises(ValueError, match="multiple of the 8 parts it is cut into; 'x' has shape"):
        shard_batch({"x": x}, make_mesh())


@pytest.mark.parametrize(("rows", "gathers"), [(16, False), (256, True)])
def test_a_product_moves_rows_or_weights_whichever_are_fewer(rows, gathers):
    """On 2 x 4 devices, of integers, so that sums in any order are equal."""
    mesh, rng = make_mesh(2, 4), np.random.default_rng(0)
    x, w, by = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((rows, 64), (64, 128), (rows, 128)))
    places = NamedSharding(mesh, P(BATCH_AXES)), NamedSharding(mesh, P(None, "fsdp"))

    def weighted(x, w):
        with use_mesh(mesh):
            return (product(("layer", "kernel"), x, w, x.dtype) * by).sum()

    program = jax.jit(jax.grad(weighted, (0, 1)), out_shardings=places).lower(*jax.device_put((x, w), places)).compile()
    dx, dw = program(*jax.device_put((x, w), places))
    np.testing.assert_array_equal(dx, by @ w.T)
    np.testing.assert_array_equal(dw, x.T @ by)
    assert bool(re.search(r"f32\[64,128\]\S* all-(gather|reduce)", program.as_text())) == gathers
