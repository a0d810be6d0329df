"""What a compiler made of a program, kept on disk: JAX keeps no programs for devices that are only described."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import inspect
import json
import os
import sys
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdiff.plan import gpus, tpus
from jaxdiff.storage import replacing


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
    path = Path(folder) / "plans" / f"{_key(make, lowered, mesh)}.json.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error, ValueError, TypeError):  # it is missing or damaged
        return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    compiled = make(lowered, mesh)
    with contextlib.suppress(OSError), replacing(path) as partial_path:
        partial_path.write_bytes(gzip.compress(json.dumps(compiled._asdict()).encode(), 1))
    return compiled


def _key(make: Callable[..., Compiled], lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """A hash of all that the compiler is given, of the compiler, and of our own part in it."""
    devices = [(device.client.platform_version, repr(device)) for device in mesh.devices.flat]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    ours = [inspect.getsource(sys.modules[name]) for name in (make.__module__, gpus.__name__, tpus.__name__)]
    return hashlib.sha256(repr((lowered.as_text(), _compilers(), devices, flags, ours)).encode()).hexdigest()


@functools.cache
def _compilers() -> list[str]:
    """Names and versions of the compilers' packages."""
    found = {f"{each.name} {each.version}" for each in metadata.distributions()}
    return sorted(name for name in found if name.startswith(("jax", "libtpu", "nvidia")))
