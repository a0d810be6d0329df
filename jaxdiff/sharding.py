"""Sharding of arrays over one mesh, by rules on paths and shapes.

The axes of a mesh:
    data      copies of the state, each with different examples.
    fsdp      parts of the state, also with different examples; a layer's weights are gathered for their use.
    tensor    parts of the heads and of the feed-forward's hidden layer, for the same examples.
    sequence  parts of the tokens of a transformer, or of the rows of an image, for the same examples.

The mesh of a program is that of JAX's context: code traced within `use_mesh(mesh)` is sharded over it. Without a mesh,
the functions of this file return arrays unchanged.
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
# The batch is split over both: with fsdp, too, every device processes different examples.
BATCH_AXES = ("data", "fsdp")
# Arrays of fewer elements are replicated: gathering them costs more time than holding them costs memory.
MIN_SHARDED_SIZE = 4096
# Replicating an array of at least this many elements (4 MiB in float32) is an error.
MAX_REPLICATED_SIZE = 2**20

# Layers that tensor parallelism splits by outputs, and the following layers, which it splits by inputs (Shoeybi et al.
# 2019, arXiv:1909.08053, sec. 3): each pair needs one sum over "tensor".
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
        data: number of copies of the state; None: the number of devices divided by the other sizes.
        fsdp: number of parts of one copy of the state.
        tensor: number of devices that share the work of each layer.
        sequence: number of devices that share the tokens or rows of an example.
        devices: the devices to use; None: all of them.

    Returns:
        a mesh of shape [data, fsdp, tensor, sequence].

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
    # One side of a TPU's torus may be split into several axes, which jax.make_mesh does not allow.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)  # type: ignore[arg-type]
    # Auto, not Explicit (the default): the compiler then infers the shardings inside networks.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 4)


def parse_mesh(text: str, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Parse a mesh, e.g. "data=8,fsdp=16,tensor=2".

    Args:
        text: sizes by axis; by default, data uses the remaining devices, and other sizes are 1.
        devices: the devices to use; None: all of them.

    Raises:
        ValueError: the text has another form, or the sizes do not match the devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not size.isdecimal() or name in sizes:
            raise ValueError(f"a mesh is written like data=4,fsdp=2, of the axes {', '.join(AXES)}; got {text!r}")
        sizes[name] = int(size)
    return make_mesh(**sizes, devices=devices)


def use_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Return a context for tracing programs for a mesh; None: for one device."""
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """Return the platform of the traced program: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Constrain the sharding of an array inside a program; without a mesh, or on one device, return it unchanged.

    Args:
        x: the array.
        axes: for each leading axis of x, the mesh axis that splits it, or None. A mesh axis that does not divide the
            axis is ignored.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    fits = (a if a is None or x.shape[i] % _size(mesh, a) == 0 else None for i, a in enumerate(axes))
    return jax.lax.with_sharding_constraint(x, P(*fits))


def constrain_tokens(x: Array) -> Array:
    """Split tokens [B, N, D], or pixels [B, *spatial, C], over examples and positions, not over features."""
    return constrain(x, BATCH_AXES, "sequence")


def check_rows_or_features() -> None:
    """Reject a mesh that splits both the rows and the features of a convolution.

    Raises:
        ValueError: the mesh splits both; XLA would then add the gradient of the kernel several times.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1 and mesh.shape["sequence"] > 1:
        raise ValueError(
            f"convolutions are split over tensor or over sequence, not over both; "
            f"got tensor={mesh.shape['tensor']}, sequence={mesh.shape['sequence']}"
        )


def splits_params() -> bool:
    """Whether the mesh splits parameters over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.shape.get("fsdp", 1) == mesh.shape.get("tensor", 1) == 1


def uses_fsdp() -> bool:
    """Whether `gathered_weight` gathers: then a backward pass should gather again instead of storing the result."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def product(path: Sequence[str], x: Array, w: Array, dtype: Any) -> Array:
    """Multiply x by a layer's stored weight; over "fsdp" moves whichever is smaller.

    Weights are gathered, except for one vector per example, e.g. of a condition: where the rows of all devices that
    share a weight have fewer elements than it, these are gathered, and each device multiplies them by its part of the
    columns. Of DiT's and MMDiT's parameters a third modulate by the condition.

    Args:
        path: path of the parameter; it ends with the names of the layer and of the parameter.
        x: [..., D].
        w: the stored weight [D, F].
        dtype: dtype of the computation.

    Returns:
        [..., F], in `dtype`, split like x over examples.
    """
    x, mesh = x.astype(dtype), jax.sharding.get_abstract_mesh()
    if mesh.empty or not _rows_are_fewer(path, x, w, mesh):
        return _matmul(x, gathered_weight(path, w, dtype))
    w = constrain(w.astype(dtype), None, "fsdp")  # its gradient stays split, too
    y = constrain(_matmul(constrain(x, "data"), w), "data", "fsdp")
    return constrain(y, BATCH_AXES)


@jax.jit
def _matmul(x: Array, w: Array) -> Array:
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def _rows_are_fewer(path: Sequence[str], x: Array, w: Array, mesh: Any) -> bool:
    if mesh.shape["fsdp"] == 1 or x.ndim != 2 or _spec(path, w.shape, mesh) != P(None, "fsdp"):
        return False
    return x.shape[0] // mesh.shape["data"] < w.shape[1]


def gathered_weight(path: Sequence[str], w: Any, dtype: Any) -> Array:
    """Cast a layer's stored weight to the dtype of the computation, and gather it over "fsdp".

    The cast comes first, so that half precision transfers half the bytes, but last for weights in 8 bits. The gradient
    is scattered immediately.

    Args:
        path: path of the parameter; it ends with the names of the layer and of the parameter.
        w: the stored weight, an array or `quantize.Quantized`.
        dtype: dtype of the computation.
    """
    if isinstance(w, jax.Array):
        return _gathered(path, w.astype(dtype))
    return jax.tree.map(partial(_gathered, path), w).astype(dtype)


def _gathered(path: Sequence[str], w: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
        return w
    stored = _spec(path, w.shape, mesh)
    used = P(*(_without_fsdp(axis) for axis in stored))
    return _gather(w, used, stored) if used != stored else w


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: Array, used: P, stored: P) -> Array:
    return jax.lax.with_sharding_constraint(w, used)


# The barrier keeps what a backward pass gathers again from being merged with what was gathered before: XLA for GPUs
# does gather again; for TPUs it does in loops over layers. A sampler has no barrier, and gathers before its loop.
_gather.defvjp(
    lambda w, used, stored: (_gather(jax.lax.optimization_barrier(w), used, stored), None),
    lambda used, stored, _, grad: (jax.lax.with_sharding_constraint(grad, stored),),
)


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array of a tree: vectors and small arrays are replicated, others split.

    "tensor" splits the layers of `COLUMN` and `ROW`. "fsdp" splits the last axis that it divides and that "tensor" does
    not split, i.e. the output channels if possible, and never the axis of stacked layers. The rule depends only on
    paths and shapes, so that an optimizer's moments and averaged parameters are sharded like their parameters.

    Args:
        tree: parameters or a `TrainState`, of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.

    Returns:
        a tree of `NamedSharding`, like `tree`.

    Raises:
        ValueError: "fsdp" divides no axis of an array of at least `MAX_REPLICATED_SIZE` elements.
    """

    def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
        names = trees.keys(path)
        return NamedSharding(mesh, _spec(names, x.shape, mesh, trees.stack_axes(names)))

    return jax.tree_util.tree_map_with_path(place, tree)


def shard_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Transfer a host's part of a batch to its devices, split over "data" and "fsdp".

    Args:
        batch: tree of numpy arrays [B_host, ...]: the examples of this process, see `process_indices`.
        mesh: from `make_mesh`.
        axis: axis of the examples; 1 for a stack of batches.

    Returns:
        the tree of global arrays [B, ...]; the copies run asynchronously.

    Raises:
        ValueError: B_host is not a multiple of the number of parts on this process's devices.
    """
    local = max(1, num_batch_shards(mesh) // jax.process_count())
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if np.ndim(x) <= axis or np.shape(x)[axis] % local:
            name = "/".join(trees.keys(path))
            raise ValueError(
                f"a host batch must be a multiple of the {local} parts it is cut into; {name!r} has shape {np.shape(x)}"
            )
    return jax.make_array_from_process_local_data(batch_sharding(mesh, axis), jax.tree.map(np.asarray, batch))


def process_indices(mesh: Mesh, size: int) -> np.ndarray:
    """Return the indices of the examples of a global batch that this process reads: the examples on its devices.

    They depend on the mesh, since the best order of a slice's devices may differ from the order of its hosts. All hosts
    that share an example, e.g. over "tensor", read it.

    Args:
        mesh: from `make_mesh`.
        size: number of examples in the global batch.

    Returns:
        int [B_host], increasing: the rows of the global batch that `shard_batch` expects from this process.

    Raises:
        ValueError: the mesh does not divide the batch.
    """
    parts = num_batch_shards(mesh)
    if size < 1 or size % parts:
        raise ValueError(f"a batch is cut into data * fsdp = {parts} parts, got {size} examples")
    slices = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))


def num_batch_shards(mesh: Mesh | None = None) -> int:
    """Return the number of parts that a mesh splits a batch into; None: the mesh that is traced for, 1 without one."""
    where = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if where.empty else _size(where, BATCH_AXES)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of arrays whose axis number `axis` counts examples."""
    return NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES))


def _spec(path: Sequence[str], shape: tuple[int, ...], mesh: Any, stacks: int = 0) -> P:
    """Sharding rule of an array whose first `stacks` axes are stacked layers."""
    fsdp, size = mesh.shape["fsdp"], math.prod(shape[stacks:])
    if fsdp == mesh.shape["tensor"] == 1 or size < MIN_SHARDED_SIZE or len(shape) - stacks < 2:
        return P()
    axes: list[Any] = [None] * len(shape)
    split = _tensor_axis(path, shape, mesh)
    if split is not None:
        axes[split] = "tensor"
    if fsdp > 1:
        divisible = [i for i in reversed(range(stacks, len(shape))) if i != split and shape[i] % fsdp == 0]
        if divisible:
            axes[divisible[0]] = "fsdp"
        elif split is not None and shape[split] % (fsdp * mesh.shape["tensor"]) == 0:
            axes[split] = ("tensor", "fsdp")
        elif math.prod(shape) >= MAX_REPLICATED_SIZE:
            raise ValueError(f"{'/'.join(path)} of shape {shape} has no axis that fsdp={fsdp} divides; choose another")
    return P(*axes[: 1 + max((i for i, axis in enumerate(axes) if axis), default=-1)])


def _tensor_axis(path: Sequence[str], shape: tuple[int, ...], mesh: Any) -> int | None:
    """Axis that "tensor" splits, for layers before and after the heads or a hidden layer."""
    layer, kind = path[-2:] if len(path) > 1 else ("", "")
    if kind != "kernel" or mesh.shape["tensor"] == 1 or len(shape) < 2:
        return None
    axis = len(shape) - 1 if COLUMN.fullmatch(layer) else len(shape) - 2 if ROW.fullmatch(layer) else None
    return axis if axis is not None and shape[axis] % mesh.shape["tensor"] == 0 else None


def _without_fsdp(axis: Any) -> Any:
    return None if axis == "fsdp" else "tensor" if isinstance(axis, tuple) else axis


def _size(mesh: Any, axes: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
