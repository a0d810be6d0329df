"""What the tool leaves is whole: a failed write leaves the old file as it was, and nothing beside it."""

import ast
import contextlib
import errno
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import tiny_model as tiny

from jaxdiff import data, export, interop, storage
from jaxdiff.cli import encode, gallery
from jaxdiff.data.shards import UNFINISHED, NpzShards
from jaxdiff.interop.models.classes import CLASSES
from jaxdiff.media import classifier, files
from jaxdiff.script import Script

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "jaxdiff").rglob("*.py"), *(ROOT / "experiments").glob("*.py")])


@contextlib.contextmanager
def largest_file(size):
    """No file of this process gets larger, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))  # nor half of a compiled program
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RNG = np.random.default_rng(0)
PICTURES = RNG.uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
CLASSIFIER = classifier.FittedClassifier({"head": {"bias": RNG.normal(size=2000)}}, (4, 4, 1))
WRITERS = {
    "grid": lambda to: files.save_png(to / "a.png", PICTURES, 2),
    "single pictures": lambda to: files.save_pngs(to, PICTURES),
    "arrays": lambda to: files.save_npz(to / "a.npz", x=PICTURES),
    "classifier": lambda to: classifier.save_classifier(to / "judge.npz", CLASSIFIER),
    "program": lambda to: export.write_program(to / "a.jaxdiff", SimpleNamespace(serialize=lambda: RNG.bytes(9000))),
    "kept script": lambda to: Script("toy2d").keep(to),
    "text": lambda to: storage.write_text(to / "plan.json", "x" * 9000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_files(name, tmp_path):
    write = WRITERS[name]
    write(tmp_path)
    before = contents(tmp_path)
    assert max(map(len, before.values())) > 2500 and not any(part.startswith(".") for part in before)
    with largest_file(2500), pytest.raises(OSError) as found:
        write(tmp_path)
    assert found.value.errno == errno.EFBIG and contents(tmp_path) == before


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.npz").write_bytes(b"of somebody")
    (tmp_path / "a.npz").symlink_to(tmp_path / "elsewhere" / "a.npz")
    files.save_npz(tmp_path / "a.npz", x=PICTURES)
    assert not (tmp_path / "a.npz").is_symlink()
    assert contents(tmp_path / "elsewhere") == {"a.npz": b"of somebody"}


def test_a_copy_that_fails_is_not_there(tmp_path):
    with largest_file(2500), pytest.raises(OSError):
        gallery.new(tmp_path / "mine.py", "toy2d")
    assert not contents(tmp_path)


@pytest.fixture
def network(monkeypatch, tmp_path):
    monkeypatch.setitem(CLASSES, "Tiny", tiny.tiny)
    tiny.write(tmp_path / "in", tiny.tensors(width=64), width=64)
    return interop.load(tmp_path / "in")


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_a_converted_folder_is_whole_or_as_it_was(network, shard_bytes, tmp_path):
    """Config and weights fit together at each moment: an old config waits until all of the weights are on disk."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text("old")
    for limit in (200, 2500, 30_000):
        with largest_file(limit), pytest.raises(OSError) as found:
            interop.save(network, old, shard_bytes=shard_bytes)
        assert found.value.errno == errno.EFBIG and contents(old) == {"config.json": b"old"}
    order = []
    interop.save(network, tmp_path / "in turn", shard_bytes=shard_bytes)
    real = storage.sync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "sync", lambda path: (real(path), order.append(contents(tmp_path / "watched").keys())))
        interop.save(network, tmp_path / "watched", shard_bytes=shard_bytes)
    seen = [{name for name in names if not name.startswith(".")} for names in order]
    config = next(i for i, names in enumerate(seen) if "config.json" in names)
    assert not seen[config - 1] and len(seen[config]) == 1
    listings = [any(name.endswith("index.json") for name in names) for names in seen]
    assert not any(listings[:-1]) and listings[-1] == (shard_bytes < 10**9)
    assert contents(tmp_path / "watched") == contents(tmp_path / "in turn")


def test_half_of_a_data_set_is_recognized(tmp_path):
    example = {"mean": jax.ShapeDtypeStruct((300,), np.float16)}
    parts = [{"mean": RNG.normal(size=(n, 300)).astype(np.float16)} for n in (2, 2, 9)]
    with largest_file(2500), pytest.raises(OSError) as found:
        encode.write(tmp_path, iter(parts), {})
    assert found.value.errno == errno.EFBIG
    assert contents(tmp_path).keys() == {"00000.npz", "00001.npz", UNFINISHED}
    for reads in (lambda: len(NpzShards(tmp_path, example)), lambda: encode._check_free(tmp_path)):
        with pytest.raises(ValueError, match="is incomplete"):
            reads()
    whole = tmp_path / "whole"
    encode.write(whole, iter(parts), {whole / "prompts" / "classes.npz": parts[0]})
    assert contents(whole).keys() == {"00000.npz", "00001.npz", "00002.npz", "prompts/classes.npz"}
    assert len(NpzShards(whole, example)) == 13
    (whole / ".00003-left.npz").write_bytes(b"of a process that was killed")
    assert len(NpzShards(whole, example)) == 13
    np.testing.assert_array_equal(data.load_embeddings(whole / "prompts" / "classes.npz")["mean"], parts[0]["mean"])


# Functions that write a file other than through a name that `replacing` has given.
OTHERS = {
    ("jaxdiff/cli/places.py", "try_file"),  # opens it, and leaves it as it is
    ("jaxdiff/interop/formats/files.py", "write_tensors"),  # is called with such a name
    ("jaxdiff/storage.py", "write_text"),
}
ANY_FILE = {"savez", "savez_compressed", "save_file", "savefig", "serialize_file", "tofile"}


def _writes(call, pictures):
    """The expression for the file that a call writes, or None."""
    function, name = call.func, getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("write_text", "write_bytes") and isinstance(function, ast.Attribute):
        # storage.write_text(path, text) is whole; path.write_text(text) is not.
        return None if len(call.args) == 2 else function.value
    if name in ANY_FILE or (name == "save" and pictures) or ast.unparse(function) == "np.save":
        paths = [arg for arg in call.args if not isinstance(arg, ast.Starred)]
        return paths[1] if name == "save_file" else paths[0]
    if name in ("open", "fdopen"):
        values = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        modes = [v for v in values if isinstance(v, str) and len(v) <= 3 and set(v) <= set("rwxabt+")]
        return call if any(set(mode) & set("wax+") for mode in modes) else None
    return call if ast.unparse(function) in ("json.dump", "shutil.copy", "shutil.copyfile", "os.replace") else None


def _given(function):
    """Names that `replacing` gives within a function."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.withitem) and "replacing(" in ast.unparse(node.context_expr) and node.optional_vars:
            names.add(ast.unparse(node.optional_vars))
        if isinstance(node, ast.Assign) and "enter_context(replacing(" in ast.unparse(node.value):
            names.add(ast.unparse(node.targets[0]))
    return names


def found_writes(source):
    tree = ast.parse(source)
    pictures = "PIL" in source
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target = _writes(call, pictures)
        within = [f for f in functions if f.lineno <= call.lineno <= f.end_lineno]
        inner = max(within, key=lambda f: f.lineno, default=None)
        if target is not None and ast.unparse(target) not in (_given(inner) if inner else ()):
            yield (inner.name if inner else "", ast.unparse(call))


def test_the_walk_sees_writes():
    bad = """
from PIL import Image
def f(path):
    path.write_text("a"); path.open("w"); open(path, mode="ab"); np.savez(path, x=1); Image.new().save(path)
def g(path):
    with replacing(path) as beside:
        np.savez(path)
        np.savez(beside)
    path.open(); open(path, "rb"); storage.write_text(path, "a")
"""
    assert [name for name, _ in found_writes(bad)] == ["f"] * 5 + ["g"]


def test_files_are_written_through_storage():
    found = [
        (name, told)
        for path in FILES
        for name in [str(path.relative_to(ROOT))]
        for function, told in found_writes(path.read_text())
        if (name, function) not in OTHERS
    ]
    assert found == []
