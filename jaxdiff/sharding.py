"""Where arrays lie: one mesh, and rules on paths and shapes.

The axes of a mesh:
    data      copies of the state, each with its own examples.
    fsdp      parts of the state, each with its own examples, too; a layer's weights are gathered where they are used.
    tensor    parts of the heads and of the feed-forward's inner layer, for the same examples.
    sequence  parts of the tokens of a transformer, or of the rows of an image, of the same examples.

A program learns its mesh from JAX's own context: code that is traced within `on(mesh)` sees it, other code sees none,
and then nothing here does anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff import trees

AXES = ("data", "fsdp", "tensor", "sequence")
# The batch is split over both: with fsdp every device works on its own examples, too.
BATCH_AXES = ("data", "fsdp")
# Arrays of fewer elements are replicated: gathering them costs more time than holding them costs memory.
SMALL = 4096
# Arrays of at least this many elements (4 MiB in float32) must not be replicated behind the user's back.
LARGE = 2**20

# Layers that tensor parallelism splits by their outputs, and those after them, split by their inputs (Shoeybi et al.
# 2019, arXiv:1909.08053, sec. 3): one sum over "tensor" for each pair.
COLUMN = re.compile(r"(.*\.)?(to_[qkv]|add_[qkv]_proj|fc1)|net\.0\.proj|conv1")
ROW = re.compile(r"(.*\.)?(to_out\.0|to_add_out|fc2)|net\.2|conv2")


def make_mesh(
    data: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arrange the devices as a mesh with the axes "data", "fsdp", "tensor" and "sequence".

    Args:
        data: number of groups that each hold a copy of the state; None takes all devices that the others leave.
        fsdp: number of parts of one copy of the state.
        tensor: number of devices that share each layer's work.
        sequence: number of devices that share an example's tokens or rows.
        devices: the devices to use; None means all of them.

    Returns:
        A mesh of shape [data, fsdp, tensor, sequence].

    Raises:
        ValueError: the product is not the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    inner = fsdp * tensor * sequence
    groups = count // inner if data is None and inner > 0 else data
    sizes = (groups, fsdp, tensor, sequence)
    if any(size is None or size < 1 for size in sizes) or groups * inner != count:  # type: ignore[operator]
        shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, (data, *sizes[1:]), strict=True))
        raise ValueError(f"data * fsdp * tensor * sequence must be the number of devices, {count}; got {shown}")
    # A side of a TPU's torus may serve several axes, which jax.make_mesh refuses.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)  # type: ignore[arg-type]
    # Auto, not Explicit (the default): the compiler then finds the shardings inside networks by itself.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 4)


def parse_mesh(text: str, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh that a user wrote as "data=8,fsdp=16,tensor=2".

    Args:
        text: sizes by axis; data takes the devices that are left, others are 1. Empty: data alone.
        devices: the devices to use; None means all of them.

    Raises:
        ValueError: not of that form, or the sizes do not fit the devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not size.isdecimal() or name in sizes:
            raise ValueError(f"a mesh is written like data=4,fsdp=2, of the axes {', '.join(AXES)}; got {text!r}")
        sizes[name] = int(size)
    return make_mesh(**sizes, devices=devices)


def on(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Let what is traced within know the mesh that it will run on; None: nothing to know."""
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": what the program being traced will run on."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Say how an array inside a program lies on the mesh; without a mesh, or on one device, it is returned as it is.

    Args:
        x: the array.
        axes: for its leading axes the mesh axis that splits each, or None. One that does not divide is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    fits = (a if a is None or x.shape[i] % _size(mesh, a) == 0 else None for i, a in enumerate(axes))
    return jax.lax.with_sharding_constraint(x, P(*fits))


def constrain_tokens(x: Array) -> Array:
    """Split tokens [B, N, D], or pixels [B, *spatial, C], by example and position, not by feature."""
    return constrain(x, BATCH_AXES, "sequence")


def check_rows_or_features() -> None:
    """Refuse to split the rows and the features of a convolution at once.

    Raises:
        ValueError: a mesh with both, on which XLA counts the gradient of the kernel several times.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1 and mesh.shape["sequence"] > 1:
        raise ValueError(
            f"convolutions are split over tensor or over sequence, not over both; "
            f"got tensor={mesh.shape['tensor']}, sequence={mesh.shape['sequence']}"
        )


def gathers() -> bool:
    """Whether `weight` gathers, which a backward pass had better do again than keep what it made."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def weight(path: Sequence[str], w: Array, dtype: Any) -> Array:
    """Make of a layer's stored weight what the layer multiplies by: in its type, gathered over "fsdp".

    The cast comes first, so that half precision moves half the bytes. The gradient is scattered again right away.

    Args:
        path: of the parameter, the layer's name and its own last.
        w: the weight as it is stored.
        dtype: of the computation.
    """
    w = w.astype(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return w
    stored = _spec(path, w.shape, mesh)
    used = P(*(_without_fsdp(axis) for axis in stored))
    return _gather(w, used, stored) if used != stored else w


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: Array, used: P, stored: P) -> Array:
    return jax.lax.with_sharding_constraint(w, used)


_gather.defvjp(
    lambda w, used, stored: (_gather(w, used, stored), None),
    lambda used, stored, _, grad: (jax.lax.with_sharding_constraint(grad, stored),),
)


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Give every array of a tree its place: vectors and small ones everywhere, others split by "fsdp" and "tensor".

    "tensor" splits the layers of `COLUMN` and `ROW`. "fsdp" takes the last axis that it divides and "tensor" leaves,
    that is the output channels wherever they fit, and never the axis of stacked layers. Paths and shapes are all that
    matters, so an optimizer's moments and the averaged parameters lie where their parameters do.

    Args:
        tree: parameters, or a whole `TrainState`; arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.

    Returns:
        A tree like `tree` of `NamedSharding`.

    Raises:
        ValueError: an array of at least `LARGE` elements has no axis that "fsdp" divides.
    """

    def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
        names = trees.keys(path)
        return NamedSharding(mesh, _spec(names, x.shape, mesh, trees.stack_axes(names)))

    return jax.tree_util.tree_map_with_path(place, tree)


def shard_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Put a host's part of a batch onto its devices, split over "data" and "fsdp".

    Args:
        batch: tree of numpy arrays [B_host, ...]: the examples of this process only, see `host_rows`.
        mesh: from `make_mesh`.
        axis: that counts examples: 1 for a stack of batches.

    Returns:
        The tree of global arrays [B, ...]; the copies run asynchronously.

    Raises:
        ValueError: B_host is not a multiple of the number of parts that lie on this process's devices.
    """
    sharding = batch_sharding(mesh, axis)
    local = max(1, batch_parts(mesh) // jax.process_count())

    def put(path: tuple[Any, ...], x: Any) -> Array:
        if np.ndim(x) <= axis or np.shape(x)[axis] % local:
            name = "/".join(trees.keys(path))
            raise ValueError(
                f"a host batch must be a multiple of the {local} parts it is cut into; {name!r} has shape {np.shape(x)}"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree_util.tree_map_with_path(put, batch)


def host_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Tell which examples of a global batch this process has to read: those that its devices hold.

    Which these are is the mesh's affair: a slice's best order of devices need not be that of its hosts, and hosts
    that share an example, as parts of "tensor", read it both.

    Args:
        mesh: from `make_mesh`.
        size: examples in the global batch.

    Returns:
        int [B_host], increasing: the rows of the global batch that `shard_batch` takes from this process.

    Raises:
        ValueError: the batch cannot be cut into the mesh's parts.
    """
    parts = batch_parts(mesh)
    if size < 1 or size % parts:
        raise ValueError(f"a batch is cut into data * fsdp = {parts} parts, got {size} examples")
    held = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in held]))


def batch_parts(mesh: Mesh) -> int:
    """Return the number of parts that a batch is split into."""
    return _size(mesh, BATCH_AXES)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the place of arrays whose axis number `axis` counts examples, the first one unless told."""
    return NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES))


def _spec(path: Sequence[str], shape: tuple[int, ...], mesh: Any, stacks: int = 0) -> P:
    """The rule for an array whose first `stacks` axes count equal layers, which a loop takes one by one."""
    fsdp, size = mesh.shape["fsdp"], math.prod(shape[stacks:])
    if fsdp == mesh.shape["tensor"] == 1 or size < SMALL or len(shape) - stacks < 2:
        return P()
    axes: list[Any] = [None] * len(shape)
    split = _tensor_axis(path, shape, mesh)
    if split is not None:
        axes[split] = "tensor"
    if fsdp > 1:
        own = [i for i in reversed(range(stacks, len(shape))) if i != split and shape[i] % fsdp == 0]
        if own:
            axes[own[0]] = "fsdp"
        elif split is not None and shape[split] % (fsdp * mesh.shape["tensor"]) == 0:
            axes[split] = ("tensor", "fsdp")
        elif math.prod(shape) >= LARGE:
            raise ValueError(f"{'/'.join(path)} of shape {shape} has no axis that fsdp={fsdp} divides; choose another")
    return P(*axes[: 1 + max((i for i, axis in enumerate(axes) if axis), default=-1)])


def _tensor_axis(path: Sequence[str], shape: tuple[int, ...], mesh: Any) -> int | None:
    """The axis that "tensor" splits, of a layer that stands on either side of heads or of an inner layer."""
    layer, kind = path[-2:] if len(path) > 1 else ("", "")
    if kind != "kernel" or mesh.shape["tensor"] == 1 or len(shape) < 2:
        return None
    axis = len(shape) - 1 if COLUMN.fullmatch(layer) else len(shape) - 2 if ROW.fullmatch(layer) else None
    return axis if axis is not None and shape[axis] % mesh.shape["tensor"] == 0 else None


def _without_fsdp(axis: Any) -> Any:
    return None if axis == "fsdp" else "tensor" if isinstance(axis, tuple) else axis


def _size(mesh: Any, axes: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
