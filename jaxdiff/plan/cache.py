"""What a compiler made of a program, kept on disk: JAX keeps no programs for devices that are only described."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import inspect
import json
import os
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdiff.plan import gpus, tpus
from jaxdiff.storage import replacing

_COMPILERS = ("jax", "libtpu", "nvidia")  # what the names of their packages begin with


class Compiled(NamedTuple):
    """What a plan reads of a compiled program.

    Attributes:
        total: bytes that it takes of one device, whether it fits or not.
        sizes: of these, those of arguments, outputs, what the two share, temporaries and code; None: it does not fit.
        text: the optimized module; empty if the program does not fit.
        thunks: XLA's list of what a GPU is told to do; empty for other devices.
        seconds: time of compiling.
    """

    total: int
    sizes: tuple[int, int, int, int, int] | None
    text: str
    thunks: str
    seconds: float


def cached(make: Callable[[jax.stages.Lowered, Mesh], Compiled], lowered: jax.stages.Lowered, mesh: Mesh) -> Compiled:
    """Compile a program, or read what compiling it gave before.

    It is kept in the folder `plans` of JAX's folder of compiled programs (`jax_compilation_cache_dir`); without one, or
    where that cannot be read or written, the program is compiled.

    Args:
        make: compiles; is given the program and the mesh.
        lowered: the program.
        mesh: the devices that it is for.
    """
    config: Any = jax.config
    folder = config.jax_compilation_cache_dir
    if folder is None or "://" in folder:
        return make(lowered, mesh)
    path = Path(folder) / "plans" / f"{_key(lowered, mesh)}.json.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error, ValueError, TypeError):  # it is missing or damaged
        return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    compiled = make(lowered, mesh)
    with contextlib.suppress(OSError), replacing(path) as partial_path:
        partial_path.write_bytes(gzip.compress(json.dumps(compiled._asdict()).encode(), 1))
    return compiled


def _key(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """A hash of all that the compiler is given, and of the compiler."""
    packages = {f"{each.name} {each.version}" for each in metadata.distributions() if each.name.startswith(_COMPILERS)}
    devices = [(device.client.platform_version, repr(device)) for device in mesh.devices.flat]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    described = [inspect.getsource(module) for module in (gpus, tpus)]
    return hashlib.sha256(repr((lowered.as_text(), sorted(packages), devices, flags, described)).encode()).hexdigest()
