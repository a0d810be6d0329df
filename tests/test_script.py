"""The file that makes a run: found by path or name, with the modules beside it, and kept with them."""

import sys

import pytest

from jaxdiff import script
from jaxdiff.recipe import load
from jaxdiff.script import SOURCE, Script, find, load_function, shipped


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch):
    """Files that change within a second look alike to Python's cache."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


MAIN = """
from __future__ import annotations
from dataclasses import dataclass
import handy
import parts.more as more

@dataclass
class Own:
    x: int = 1

def answer(plus: int = 0) -> int:
    import later
    return handy.VALUE + more.VALUE + later.VALUE + Own().x + plus
"""


def written(write, folder: str, value: int):
    write(f"{folder}/handy.py", f"VALUE = {value}\n")
    write(f"{folder}/parts/more.py", "from parts import less\nVALUE = 100 * less.VALUE\n")
    write(f"{folder}/parts/less.py", "VALUE = 3\n")
    write(f"{folder}/later.py", "VALUE = 1000\n")
    write(f"{folder}/other.py", "raise ImportError\n")
    return write(f"{folder}/main.py", MAIN)


def test_modules_beside_it_are_found_and_belong_to_it_alone(write, tmp_path):
    before, path = set(sys.modules), list(sys.path)
    one, two = (load_function(written(write, folder, value), "answer", "") for folder, value in (("a", 10), ("b", 20)))
    assert (one(), two(plus=5), one()) == (1311, 1326, 1311)
    assert sys.path == path
    assert {name for name in set(sys.modules) - before if name.split(".")[0] in ("handy", "parts", "later")} == set()


def test_it_is_kept_with_what_it_imports_and_found_again(write, tmp_path):
    main, run = Script(written(write, "a", 10)), tmp_path / "run"
    main.function("answer", "")()
    main.keep(run)
    kept = ["experiment.py", "handy.py", "later.py", "parts/less.py", "parts/more.py"]
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == kept
    main.check_kept(run)
    write("a/handy.py", "VALUE = 77\n")
    assert Script(run / SOURCE, kept=True).function("answer", "")() == 1311
    with pytest.raises(ValueError, match=r"a/handy\.py differs from .*run/handy\.py, the file of this run"):
        main.check_kept(run)
    write("a/handy.py", "VALUE = 10\n")
    write("a/main.py", MAIN + "\n")
    with pytest.raises(ValueError, match=r"a/main\.py differs from .*run/experiment\.py"):
        main.check_kept(run)


def test_a_runs_modules_go_before_those_that_are_imported(write, tmp_path, monkeypatch):
    """Someone who has imported handy of his own, and then loads a run, gets the run's."""
    own = type(sys)("handy")
    monkeypatch.setitem(sys.modules, "handy", own)
    written(write, "run", 10).rename(tmp_path / "run" / SOURCE)
    assert Script(tmp_path / "run" / SOURCE, kept=True).function("answer", "")() == 1311
    assert sys.modules["handy"] is own


ROOM = """
import sys
from types import ModuleType

room = sys.modules["jaxdiff.room"] = ModuleType("jaxdiff.room")
room.__file__ = __file__.replace("main.py", "jaxdiff/room.py")
"""


def test_a_file_beside_the_package_itself_leaves_it_alone(write, tmp_path, monkeypatch):
    """In a checkout, where a file may be the first to import one of our rooms, which others will import, too."""
    monkeypatch.setitem(sys.modules, "jaxdiff.room", None)  # to be as it was in the end
    write("jaxdiff/room.py", "")
    made = Script(write("main.py", ROOM))
    assert sys.modules["jaxdiff.room"].__file__ == str(tmp_path / "jaxdiff" / "room.py")
    made.keep(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*.py")] == ["experiment.py"]


def test_a_module_with_the_name_of_a_runs_own_file_is_refused(write, tmp_path):
    write("experiment.py", "VALUE = 1\n")
    made = Script(write("main.py", "import experiment\n"))
    with pytest.raises(ValueError, match=r"experiment\.py has the name of a run's own file: .*main\.py"):
        made.keep(tmp_path / "run")


def test_an_error_while_it_is_imported_leaves_the_path_as_it_was(write):
    before = list(sys.path)
    with pytest.raises(ZeroDivisionError):
        Script(write("bad.py", "1 / 0\n"))
    assert sys.path == before


def test_names_and_paths(write, tmp_path, monkeypatch):
    assert find("fashion") == shipped()["fashion"] and shipped()["fashion"].is_file()
    assert load("toy2d")(steps=7).training.steps == 7
    path = write("fashion.py", "x = 1\n")
    assert find(path) == path
    for name, words in (
        ("fashoin", r"did you mean 'fashion'\?.*toy2d"),
        ("zzzz", r"no experiment is called 'zzzz': give a Python file"),
        (tmp_path / "fashoin.py", r"no Python file; its folder has: .*fashion\.py"),
        ("nowhere/fashion.py", "jaxdiff has one that is called fashion"),
        (tmp_path / "folder", "is no Python file"),
    ):
        with pytest.raises(ValueError, match=words):
            find(name)
    # As an installation has them: in the package.
    monkeypatch.setattr(script, "__file__", str(tmp_path / "script.py"))
    inside = write("experiments/mine.py", '"""Mine."""\n')
    assert shipped() == {"mine": inside}
