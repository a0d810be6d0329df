"""Where arrays live: one mesh `data x fsdp`, and one rule on paths and shapes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# The batch is split over both axes: with fsdp every device works on its own examples, too.
BATCH_AXES = ("data", "fsdp")
# Arrays of fewer elements are replicated: gathering them costs more time than holding them costs memory.
SMALL = 4096
# Arrays of at least this many elements (4 MiB in float32) must not be replicated behind the user's back.
LARGE = 2**20


def make_mesh(data: int | None = None, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices as a mesh with the axes "data" and "fsdp".

    Args:
        data: number of groups that each hold a copy of the state; None takes all devices that fsdp leaves.
        fsdp: number of devices that share one copy of the state.
        devices: the devices to use; None means all of them.

    Returns:
        A mesh of shape [data, fsdp].

    Raises:
        ValueError: data * fsdp is not the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    groups = count // fsdp if data is None and fsdp > 0 else data
    if fsdp < 1 or groups is None or groups < 1 or groups * fsdp != count:
        raise ValueError(f"data * fsdp must be the number of devices, {count}; got data={data}, fsdp={fsdp}")
    # Auto, not Explicit (the default): the compiler then finds the shardings inside networks by itself.
    return jax.make_mesh((groups, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Give every array of a tree its place: small ones everywhere, others split over "fsdp" along one axis.

    The axis is the last one that the size of "fsdp" divides, that is the output channels wherever they fit.
    Only shapes matter, so an optimizer's moments and the averaged parameters lie where their parameters do.

    Args:
        tree: parameters, or a whole `TrainState`; arrays or `jax.ShapeDtypeStruct`.
        mesh: a mesh with an axis "fsdp".

    Returns:
        A tree like `tree` of `NamedSharding`.

    Raises:
        ValueError: an array of at least `LARGE` elements has no axis that "fsdp" divides.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, _spec(path, x.shape, mesh)), tree)


def _spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
    fsdp, size = mesh.shape["fsdp"], int(np.prod(shape))
    if fsdp == 1 or size < SMALL:
        return P()
    for axis in reversed(range(len(shape))):
        if shape[axis] % fsdp == 0:
            return P(*(None,) * axis, "fsdp")
    if size >= LARGE:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(f"{name} of shape {shape} has no axis that fsdp={fsdp} divides; choose another fsdp")
    return P()


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Put a host's part of a batch onto its devices, split along the first axis over the whole mesh.

    Args:
        batch: tree of numpy arrays [B_host, ...]: the examples of this process only.
        mesh: from `make_mesh`.

    Returns:
        The tree of global arrays [B_host * number of processes, ...]; the copies run asynchronously.

    Raises:
        ValueError: B_host is not a multiple of the number of this process's devices in the mesh.
    """
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    local = len(mesh.local_devices)

    def put(path: tuple[Any, ...], x: Any) -> jax.Array:
        if np.ndim(x) == 0 or np.shape(x)[0] % local:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"a host batch must be a multiple of its {local} devices; {name!r} has shape {np.shape(x)}"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree_util.tree_map_with_path(put, batch)
