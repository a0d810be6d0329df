"""What compilers answered is kept, and found again by all that they were given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxdiff.cli import main
from jaxdiff.plan import cache
from jaxdiff.plan.cache import Compiled, cached

ONE, OTHER = (Mesh(np.array(jax.devices()[i : i + 1]), ("data",)) for i in (0, 1))


def lowered(last=1.0, length=100_000):
    """A program with a long constant, of which all counts."""
    constant = np.arange(length, dtype=np.float32)
    constant[-1] = last
    return jax.jit(lambda x: x + constant).lower(jax.ShapeDtypeStruct((length,), jnp.float32))


@pytest.fixture
def compiling(tmp_path):
    """`cached` with a compiler that counts, and the programs that it was given."""
    given = []

    def make(program, mesh):
        given.append(program)
        fits = len(given) % 2 == 1
        return Compiled(7, (1, 2, 3, 4, 5) if fits else None, "HloModule, \u2200", "0: kKernel", 0.1 + len(given))

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield lambda *args: cached(make, *args), given
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_program_is_compiled_once(compiling):
    compiled, given = compiling
    fits, does_not = compiled(lowered(), ONE), compiled(lowered(length=5), ONE)
    assert len(given) == 2 and does_not.sizes is None
    again = compiled(lowered(), ONE)
    assert tuple(again.sizes) == fits.sizes and again[2:] == fits[2:] and again.total == fits.total
    assert compiled(lowered(length=5), ONE) == does_not
    assert len(given) == 2


def test_all_that_the_compiler_is_given_counts(compiling, monkeypatch):
    compiled, given = compiling
    compiled(lowered(), ONE)
    compiled(lowered(last=2.0), ONE)
    compiled(lowered(), OTHER)
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.setenv(name, "--xla_gpu_autotune_level=0")
        compiled(lowered(), ONE)
    monkeypatch.setattr(cache, "_compilers", lambda: ["jaxlib 1.0"])
    compiled(lowered(), ONE)
    monkeypatch.setattr(cache.inspect, "getsource", lambda module: f"another version of {module.__name__}")
    compiled(lowered(), ONE)
    assert len(given) == 7


def test_what_is_damaged_or_has_no_folder_is_compiled(compiling, tmp_path):
    compiled, given = compiling
    compiled(lowered(), ONE)
    (kept,) = (tmp_path / "plans").iterdir()
    for damaged in (b"", b"no gzip", kept.read_bytes()[:-20], kept.read_bytes()[:40] + bytes(40)):
        kept.write_bytes(damaged)
        compiled(lowered(), ONE)
    assert len(given) == 5
    compiled(lowered(), ONE)
    assert len(given) == 5
    jax.config.update("jax_compilation_cache_dir", str(kept))  # a file
    compiled(lowered(), ONE)
    jax.config.update("jax_compilation_cache_dir", None)
    compiled(lowered(), ONE)
    assert len(given) == 7


@pytest.mark.parametrize("kept", [True, False])
def test_the_command_keeps_nothing_where_the_user_wants_no_cache(compiling, kept, tmp_path):
    jax.config.update("jax_enable_compilation_cache", kept)
    with pytest.raises(SystemExit):  # there is no such experiment, which shows later
        main(["plan", str(tmp_path / "none.py"), "--topology", "cpu:1"])
    assert jax.config.jax_compilation_cache_dir == (str(tmp_path) if kept else None)
