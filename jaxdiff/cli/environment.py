"""What the command line sets before JAX meets a device: compiled programs and pages are kept, GPUs get their flags."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

# XLA aborts the process on an unknown flag; jaxlib 0.10.2 and 0.12 have these.
GPU_FLAGS = {
    # Overlaps collectives with computation; NVIDIA's images of JAX set it, JAX does not.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
}
# mallopt's numbers of glibc's settings: which blocks are mapped one by one, and how much free heap is given back.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
TWO_GIB = 2**31 - 1  # the largest value


def prepare() -> None:
    """Set what the user has not set; after this, and before the first use of a device, nothing is too late."""
    # With more simulated devices than cores, JAX's thread pools can wait for each other.
    os.environ.setdefault("NPROC", "32")
    set_gpu_flags(os.environ)
    keep_compiled()
    keep_pages(os.environ)


def set_gpu_flags(environ: MutableMapping[str, str]) -> None:
    """Add `GPU_FLAGS` to XLA_FLAGS where JAX has a plugin for NVIDIA's GPUs; a flag that is there stays as it is.

    Args:
        environ: the environment's variables.
    """
    allowed = environ.get("JAX_PLATFORMS", "cuda").split(",")
    given = environ.get("XLA_FLAGS", "").strip()
    if not {"cuda", "gpu"} & set(allowed) or not _has_cuda() or (given and not given.startswith("-")):
        return  # XLA reads flags that don't begin with a dash from a file of that name
    named = {flag.lstrip("-").partition("=")[0] for flag in given.split()}
    missing = [f"--{name}={value}" for name, value in GPU_FLAGS.items() if name not in named]
    environ["XLA_FLAGS"] = " ".join(filter(None, [given, *missing]))


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, small ones too, unless the user has chosen otherwise.

    JAX_COMPILATION_CACHE_DIR or `jax_compilation_cache_dir` is another folder, JAX_ENABLE_COMPILATION_CACHE=false none.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder(os.environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        print(f"jaxdiff: {folder} cannot be written: what is compiled is not kept for next time", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def keep_pages(environ: Mapping[str, str]) -> bool:
    """Let malloc keep what a program's buffers lay in, for the next call: a step on a CPU is spared fresh pages.

    XLA allocates the buffers anew in each call, and glibc gives large ones back to the system: the pages that come
    instead are zeroed, one fault each. Other C libraries are left alone, and so is what the user has set by
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ or GLIBC_TUNABLES.

    Args:
        environ: the environment's variables.

    Returns:
        whether anything was set.
    """
    chosen = environ.get("GLIBC_TUNABLES", "")
    names = ("mmap_threshold", "trim_threshold")
    if any(f"MALLOC_{name.upper()}_" in environ or f"malloc.{name}=" in chosen for name in names):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # other libraries give mallopt's numbers other meanings
    except (AttributeError, OSError, TypeError):
        return False
    # The manual allows 32 MiB; glibc 2.36 takes more.
    heap = libc.mallopt(MMAP_THRESHOLD, TWO_GIB) or libc.mallopt(MMAP_THRESHOLD, 2**25)
    return bool(heap and libc.mallopt(TRIM_THRESHOLD, TWO_GIB))


def cache_folder(environ: MutableMapping[str, str]) -> Path:
    """Return the folder of compiled programs: that of the XDG standard, whose variable has to be an absolute path."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "jaxdiff" / "compiled"


def _has_cuda() -> bool:
    if find_spec("jax_plugins") is None:
        return False
    return any(find_spec(f"jax_plugins.xla_cuda{version}") is not None for version in (12, 13))
