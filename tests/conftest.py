"""Eight simulated devices, and JAX's strictest promotion rules, for every test."""

import os
from importlib.metadata import version
from importlib.util import find_spec

# Before jax is imported: eight CPU devices; NPROC keeps their thread pools from deadlocking on few cores. Compiling is
# most of what the tests do: LLVM's optimizations are a third of that, the newer emitters of fused loops another. Later
# versions can't do without these, and libtpu stops a process that gives it a flag it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.") and not find_spec("libtpu")
        else "",
    ]
)
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
# The command line keeps what it compiles; tests say so where they want that.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
