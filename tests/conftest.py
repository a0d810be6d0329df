"""Eight simulated devices, and JAX's strictest promotion rules, for every test."""

import gc
import os
from importlib.metadata import version

# Before jax is imported: eight CPU devices; NPROC keeps their thread pools from deadlocking on few cores. Compiling is
# most of what the tests do: LLVM's optimizations are a third of that, and the newer emitters of fused loops, which
# versions after 0.10 can't do without, another. To split a program for threads costs a sixth, and two tests run at once.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    ]
)
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
# The command line keeps what it compiles; tests say so where they want that.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import pytest

# libtpu stops a process for a flag that it does not know: it comes to read them later than the CPU does, here.
jax.devices()
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("--xla_cpu_use_fusion_emitters=false", "").strip()

# Programs that are kept are many objects, which take 5 % of the time to look through as often as Python does.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
