"""Optimized programs, for what runs for longer than LLVM's optimizations take; `helpers.flags` leaves them out."""

from contextlib import contextmanager
from unittest import mock

from jax._src import compiler

OPTIMIZED = {"xla_backend_optimization_level": 1}  # compiler_options of a program


@contextmanager
def optimized():
    """Optimizes what is compiled within, at the level of `compiler_options`, which reach no jit within the library."""
    make = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **more):
        chosen = OPTIMIZED | dict(env_options_overrides or {})
        return make(*args, env_options_overrides=chosen, **more)

    with mock.patch.object(compiler, "get_compile_options", options):
        yield
