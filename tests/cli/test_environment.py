"""What the command line sets before JAX starts: XLA's flags, and a folder where compiled programs stay."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.flags import xla_flags

from jaxdiff.cli import environment

ROOT = Path(__file__).parents[2]
FLAG = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, f"{FLAG}=true"),
        ({"XLA_FLAGS": "--xla_dump_to=x"}, f"--xla_dump_to=x {FLAG}=true"),
        ({"XLA_FLAGS": f"{FLAG}=false"}, f"{FLAG}=false"),
        ({"XLA_FLAGS": "flags.txt"}, "flags.txt"),  # XLA reads that file
        ({"JAX_PLATFORMS": "cuda,cpu"}, f"{FLAG}=true"),
        ({"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_flags_are_added_one_by_one(given, wanted, monkeypatch):
    monkeypatch.setattr(environment, "_has_cuda", lambda: True)
    environment.set_gpu_flags(given)
    assert given.get("XLA_FLAGS") == wanted


def test_without_a_plugin_for_gpus_there_are_no_flags(monkeypatch, tmp_path):
    package = tmp_path / "jax_plugins" / "xla_cuda13"
    environ: dict[str, str] = {}
    environment.set_gpu_flags(environ)
    assert environ == {}  # as the tests are installed: without cuda12 and cuda13
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax_plugins", raising=False)
    environment.set_gpu_flags(environ)
    assert FLAG in environ["XLA_FLAGS"]


def test_the_folder_is_that_of_the_standard():
    assert environment.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/jaxdiff/compiled")
    home = Path.home() / ".cache" / "jaxdiff" / "compiled"
    assert environment.cache_folder({}) == environment.cache_folder({"XDG_CACHE_HOME": "relative"}) == home


@pytest.mark.parametrize(
    "given",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1"},
        {"MALLOC_TRIM_THRESHOLD_": "1"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"},
    ],
)
def test_what_the_user_says_of_malloc_stays(given):
    assert not environment.keep_pages(given)


@pytest.mark.parametrize("lacking", [object(), OSError()])
def test_other_c_libraries_are_left_alone(lacking, monkeypatch):
    def load(name):
        if isinstance(lacking, Exception):
            raise lacking
        return lacking

    monkeypatch.setattr(environment.ctypes, "CDLL", load)
    assert not environment.keep_pages({})


FAULTS = """
import resource
from jaxdiff.cli import environment
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
by_default, kept = faults(), environment.keep_pages({})
faults()
print(by_default, int(kept), faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_pages_are_kept():
    """A block that is freed and asked for again costs no page faults, where it costs one for each 4 KiB by default."""
    by_default, kept, then = map(int, process(FAULTS).stdout.split())
    assert kept and then < by_default / 10


def process(code: str, **environ: str) -> subprocess.CompletedProcess:
    base = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=base | environ, capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.slow
def test_this_jaxlib_knows_the_flags():
    flags = [f"--{name}={value}" for name, value in environment.GPU_FLAGS.items()]
    code = "import jax; jax.devices()"
    assert process(code, XLA_FLAGS=" ".join(flags)).returncode == 0
    assert process(code, XLA_FLAGS=f"{flags[0]} --xla_gpu_no_such_flag=true").returncode != 0


PREPARE = (
    "from jaxdiff.cli.environment import prepare; import jax; prepare(); print(jax.config.jax_compilation_cache_dir)"
)


@pytest.mark.slow
def test_who_decides_on_the_folder(tmp_path):
    cache, other = str(tmp_path / "cache"), str(tmp_path / "other")
    assert process(PREPARE, XDG_CACHE_HOME=cache).stdout.split() == [f"{cache}/jaxdiff/compiled"]
    assert process(PREPARE, XDG_CACHE_HOME=cache, JAX_COMPILATION_CACHE_DIR=other).stdout.split() == [other]
    set_before = f"import jax; jax.config.update('jax_compilation_cache_dir', {other!r}); {PREPARE}"
    assert process(set_before, XDG_CACHE_HOME=cache).stdout.split() == [other]
    off = process(PREPARE, XDG_CACHE_HOME=cache, JAX_ENABLE_COMPILATION_CACHE="false")
    assert off.stdout.split() == ["None"] and off.stderr == ""
    (tmp_path / "file").touch()
    unusable = process(PREPARE, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert unusable.stdout.split() == ["None"] and "cannot be written" in unusable.stderr


COUNT = """
import collections, json, sys, jax
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
from jaxdiff.cli import main
for args in json.loads(sys.argv.pop()): main(args)
names = ("compile_requests_use_cache", "cache_hits", "cache_misses")
print(json.dumps([seen["/jax/compilation_cache/" + name] for name in names]))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    """Neither the donated step on a mesh, nor the sampler, nor the small programs around them."""
    losses = []
    for i in range(2):
        run = str(tmp_path / f"run{i}")
        train = ["train", "experiments/toy2d.py", "--steps", "2", "--batch", "16", "--width", "128"]
        train += ["--mesh", "data=1,fsdp=2", "--workdir", run]
        sample = ["sample", run, "--num", "3", "--steps", "4", "--out", str(tmp_path / f"{i}.npz")]
        code = f"import sys; sys.argv.append({json.dumps([train, sample])!r}){COUNT}"
        said = process(code, XDG_CACHE_HOME=str(tmp_path / "cache"), XLA_FLAGS=xla_flags(2))
        asked, hits, misses = json.loads(said.stdout.splitlines()[-1])
        losses.append([json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()])
        assert asked > 20
        if i:
            assert (hits, misses) == (asked, 0)
    assert losses[0] == losses[1]
