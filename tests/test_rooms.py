"""The house: who may import whom, what is imported where, and what `import jaxdiff` costs."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jaxdiff"
FILES = sorted(ROOT.rglob("*.py"))
FILES_OF_INTEROP = sorted((ROOT / "interop").glob("*/*.py"))

# Room -> the rooms it may import. A room that is not here may be imported by nobody but the front door.
MATHS = {
    "checks": set(),
    "levels": set(),
    "types": {"levels"},
    "noise": {"levels"},
    "processes": {"levels"},
    "parameterize": {"levels", "processes"},
    "grids": {"levels", "processes"},
    "times": {"levels", "processes"},
    "weights": {"levels", "processes"},
    "solvers": {"levels", "noise", "processes"},
    "guidance": {"levels", "noise", "parameterize", "solvers"},
    "inverse": {"levels", "noise", "processes", "parameterize", "solvers", "guidance"},
    "sample": {"levels", "noise", "solvers"},
    "parallel": {"levels", "noise", "solvers", "sample"},
    "caching": {"levels", "solvers", "sample"},
    "sde": {"levels", "noise", "processes"},
    "likelihood": {"levels", "noise", "processes", "parameterize", "solvers", "sample"},
}
MATHS["losses"] = {"levels", "noise", "processes", "parameterize", "times", "weights", "likelihood", "guidance"}
MATHS["tune"] = {"levels", "noise", "processes", "parameterize", "grids", "solvers", "sample"}
MATHS["distill"] = MATHS["losses"] | {"losses", "solvers", "sample", "grids", "weights", "schema"}
BASIS = {"checks", "levels", "types"}  # what is checked, a level, and the types that pass between rooms
MATHS = {room: known | ({"checks"} - {room} if room in BASIS else BASIS) for room, known in MATHS.items()}
# Where arrays lie, and their paths in trees: numpy and jax alone; known to whoever makes or holds large arrays.
WHERE = {"sharding", "trees"}
LEAVES = {room: set() for room in ("networks", "autoencoders", "text", "train", "data", "metrics")}
FLAX = {"networks", "autoencoders", "text"}  # flax here alone, and nothing but jax and flax
# An autoencoder and a text encoder are made of the same layers; a pipeline is maths around networks.
LEAVES |= {"trees": set(), "sharding": {"trees"}, "train": WHERE | {"types"}, "networks": WHERE}
LEAVES |= {"autoencoders": {"networks"} | WHERE, "text": {"networks", "resize"} | WHERE}
WORDS = {"messages", "schema"}  # how names are listed, and what a stranger's value may be
DISK = {"storage", "faults"}  # how files are written, and what may befall them: known to whoever reads or writes
LEAVES |= {"networks": LEAVES["networks"] | WORDS | {"quantize"}, "train": LEAVES["train"] | WORDS | DISK}
LEAVES |= {"text": LEAVES["text"] | WORDS | DISK, "data": WORDS | DISK}
ALLOWED = {**MATHS, **LEAVES, **{room: set() for room in WORDS | DISK}}
# Who asks a program to end, and how it does; what storage reads may be damaged.
ALLOWED |= {"signals": {"faults"}, "storage": {"faults"}, "train": ALLOWED["train"] | {"signals"}}
ALLOWED["domains"] = {"checks", "levels", "noise"}  # what a field needs: leaves, that nobody below knows
ALLOWED["interop"] = FLAX | WHERE | WORDS | DISK | MATHS.keys() | {"sampling", "options", "quantize"}
ALLOWED["text_to_image"] = ALLOWED["interop"] | {"interop", "experiment", "conditions", "media", "sampler"}
# The parts of an experiment: what passes between them and the sampler that they make.
PARTS = {"checks", "parameterize", "options", "types"}
ALLOWED |= {"options": {"schema"}, "seeds": {"options"}, "progress": set(), "distributed": {"faults"}}
ALLOWED["sampling"] = {"levels", "guidance", "solvers"} | PARTS
ALLOWED["resize"] = set()
ALLOWED["conditions"] = {"messages", "levels", "noise", "resize"} | PARTS
ALLOWED["image_text"] = {"networks", "text", "noise", "types"}
ALLOWED["media"] = {"conditions", "data", "metrics", "networks", "train", "trees", "seeds", "progress"}
ALLOWED["media"] |= PARTS | WORDS | DISK | {"image_text", "text"}  # what judges samples may read captions
ALLOWED["experiment"] = {"conditions", "media", "sampling", "train", "losses", "processes"} | PARTS | WHERE
ALLOWED["sampler"] = {"experiment", "conditions", "media", "sampling", "sample", "noise", "levels", "solvers"}
ALLOWED["sampler"] |= PARTS | WHERE | {"casts"}
ALLOWED |= {"casts": set(), "quantize": set()}
# What is made of experiments; and who nobody imports.
USERS = {
    "recipe", "run", "drawing", "extend", "export", "hooks", "models", "training", "finetune", "few_steps", "control",
    "first_stage", "plan", "text_encoders", "cascade", "imagine", "pretrained", "edit", "unclip", "latents",
    "alignment",
}  # fmt: skip
NOBODYS = {"cli", "demo", "experiments"}
FRONT = {"__init__", "__main__", "script", "trust", "planning"} | USERS | NOBODYS
HEAVY = {
    "tensorflow_datasets", "tensorflow", "torch", "grain", "orbax", "matplotlib", "PIL", "safetensors", "transformers",
    "tokenizers", "gradio", "fastapi", "pandas", "diffusers", "onnx",
}  # fmt: skip


def _room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _imports(path, *, top_only):
    """Dotted names that a file imports, relative ones made absolute; `top_only`: not inside functions or for typing."""
    found = []

    def visit(node):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ("jaxdiff", *path.relative_to(ROOT).parts[: -node.level or None]) if node.level else ()
            base = ".".join((*package, *filter(None, [node.module])))
            found.extend(f"{base}.{alias.name}" for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_only and (inside or typing)):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(_parsed(path))
    return found


@cache
def _parsed(path):
    return ast.parse(path.read_text())


def _rooms_imported(path):
    names = (name.split(".") for name in _imports(path, top_only=False) if name.startswith("jaxdiff."))
    return {name[1] for name in names} - {_room(path)}


# Within `interop`: what reads files knows no model, and only the modules outside of its rooms know them all.
INTEROP = {"formats": set(), "models": {"formats"}, "schedulers": {"formats"}, "adapters": {"formats", "models"}}


def test_the_rooms_of_interop_import_only_those_they_may_know():
    for path in FILES_OF_INTEROP:
        names = (name.split(".") for name in _imports(path, top_only=False) if name.startswith("jaxdiff.interop."))
        room = path.relative_to(ROOT).parts[1]
        assert {name[2] for name in names} - {room} <= INTEROP[room], path


def _packages(path, *, top_only):
    return {name.split(".")[0] for name in _imports(path, top_only=top_only)} - {"jaxdiff"}


def test_the_walk_sees_imports():
    assert _rooms_imported(ROOT / "likelihood" / "variational.py") >= {"levels", "processes"}
    assert "jax" in _packages(ROOT / "levels.py", top_only=True)
    assert "PIL" in _packages(ROOT / "data" / "folder.py", top_only=False)


def test_rooms_import_only_those_they_may_know():
    for path in FILES:
        room = _room(path)
        assert room in ALLOWED or room in FRONT, f"{room}: a new room has to be written into tests/test_rooms.py"
        if room in ALLOWED:
            assert _rooms_imported(path) <= ALLOWED[room], path
        if room != "__main__":
            assert not _rooms_imported(path) & (NOBODYS - {room}), path


def test_flax_optax_and_orbax_stay_in_their_rooms():
    plain = {"__future__", "collections", "dataclasses", "functools", "inspect", "math", "typing", "jax", "numpy"}
    for path in FILES:
        room, packages = _room(path), _packages(path, top_only=False)
        if room not in FLAX:
            assert "flax" not in packages, path
        if room in MATHS:
            assert packages <= plain | ({"optax"} if room == "tune" else set()), path
        if room in FLAX:
            vocabularies = {"tokenizers"} if room == "text" else set()
            assert packages - set(sys.stdlib_module_names) <= {"jax", "flax", "numpy"} | vocabularies, path
        if room in {"metrics", "data"}:
            assert not packages & {"flax", "optax", "orbax"}, path


def test_heavy_packages_are_imported_inside_functions():
    for path in FILES:
        heavy = _packages(path, top_only=True) & HEAVY
        assert heavy <= ({"orbax"} if _room(path) == "train" else set()), path


def _cycle(graph):
    """A room that, through others, imports itself; None if there is none."""
    reach = {room: set(others) for room, others in graph.items()}
    for via in graph:
        for room in graph:
            if via in reach[room]:
                reach[room] |= reach[via]
    return next((room for room in graph if room in reach[room]), None)


def test_allowed_imports_have_no_cycle():
    assert _cycle(ALLOWED) is None
    assert _cycle({"a": {"b"}, "b": {"a"}}) == "a"


def _undocumented(path):
    tree = _parsed(path)
    kinds = ast.FunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


def test_public_functions_of_the_maths_have_docstrings():
    for path in FILES:
        if _room(path) in MATHS:
            assert ast.get_docstring(_parsed(path)), path
            assert _undocumented(path) == [], path


# A heading without a blank line before it, and a capital under "Returns:" that is no symbol or class.
FAULT = re.compile(
    r"\S\n *(?:Args|Attributes|Returns|Yields|Raises):\n|(?:Returns|Yields):\n +(?:A |(?!None\b)[A-Z][a-z]+\b(?!\())"
)


def _misformed(tree):
    """Names of what has a docstring of another form."""
    kinds = ast.FunctionDef | ast.ClassDef | ast.Module
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [getattr(node, "name", "") for node in nodes if FAULT.search(ast.get_docstring(node) or "")]


def test_the_form_of_docstrings_is_seen():
    form = 'def f():\n    """Sum.\n{}\n    Returns:\n        {}\n    """\n'
    misformed = lambda before, text: _misformed(ast.parse(form.format(before, text)))  # noqa: E731
    for text in ("the sum.", "an array.", "None where there is none.", "B sums.", "Sum(value, count)."):
        assert misformed("", text) == misformed("\n    More.\n", text) == []
    for text in ("The sum.", "An array.", "A sum."):
        assert misformed("", text) == ["f"]
    assert misformed("    More.", "the sum.") == ["f"]


def test_docstrings_have_one_form():
    """What is returned begins in lower case; a blank line is before each heading."""
    found = {path.relative_to(ROOT).as_posix(): _misformed(_parsed(path)) for path in FILES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_import_is_cheap():
    unwanted = HEAVY | {"flax", "optax", "tyro", "tqdm", "scipy.stats"}
    code = f"import sys, jaxdiff; print([name for name in {sorted(unwanted)} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "[]"
