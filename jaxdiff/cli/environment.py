"""What the command line sets before JAX meets a device: compiled programs are kept, GPUs get the flags that help."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

# XLA stops a process that gives it a flag it does not know; jaxlib 0.10.2 and 0.12 know these.
GPU_FLAGS = {
    # Collectives run beside the computation; NVIDIA's own images of JAX set it, JAX does not.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
}


def prepare() -> None:
    """Set what the user has not set; after this, and before the first use of a device, nothing is too late."""
    # With more simulated devices than cores, JAX's thread pools can wait for each other.
    os.environ.setdefault("NPROC", "32")
    set_gpu_flags(os.environ)
    keep_compiled()


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


def cache_folder(environ: MutableMapping[str, str]) -> Path:
    """Return the folder of compiled programs: that of the XDG standard, whose variable has to be an absolute path."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "jaxdiff" / "compiled"


def _has_cuda() -> bool:
    if find_spec("jax_plugins") is None:
        return False
    return any(find_spec(f"jax_plugins.xla_cuda{version}") is not None for version in (12, 13))
