"""Eight simulated devices, and JAX's strictest promotion rules, for every test."""

import gc
import os
import threading

from helpers import flags

# Before jax is imported: eight CPU devices; NPROC keeps their thread pools from deadlocking on few cores.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags.xla_flags(8)}"
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
# The command line keeps what it compiles; tests say so where they want that.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import pytest
from jax._src import pjit
from jax._src.interpreters import mlir

# JAX keeps 8,192 programs at hand, and none that comes after them: tests count programs, and make more of them.
for store in ("_cpp_pjit_cache_fun_only", "_cpp_pjit_cache_explicit_attributes"):
    setattr(pjit, store, pjit.make_jit_cpp_cache(2**16))


def reusing(make):
    """A maker of MLIR contexts that gives each one ten times to a thread, before what it has interned grows."""
    last = threading.local()

    def context():
        if mlir.ir.Context.current is not None:  # within another program's lowering, operations would go there
            return make()
        last.given = getattr(last, "given", 0) + 1
        if last.given % 10 == 1:
            last.context = make()
        return last.context

    return context


# A context takes 5 ms, half of the time of a small program. Versions from 0.12 on reuse theirs.
if not hasattr(mlir, "_thread_local_context"):
    mlir.make_ir_context = reusing(mlir.make_ir_context)

jax.devices()  # the CPU reads the options here, libtpu later
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(flags.NOT_FOR_LIBTPU, "").strip()

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


@pytest.fixture(autouse=True)
def compiled_programs_are_kept():
    """Or not: as this process was told, whatever a command that was tested does to JAX's settings."""
    kept = jax.config.jax_enable_compilation_cache
    yield
    if jax.config.jax_enable_compilation_cache != kept:
        jax.config.update("jax_enable_compilation_cache", kept)
