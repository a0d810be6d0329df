"""Experiment files: found by path or name, imported with the modules in their folder, and copied to a run."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdiff.storage import replacing

__all__ = ["SOURCE", "Script", "find", "load_function", "shipped"]

# Name of the experiment file in a run's folder; the other modules keep their names.
SOURCE = "experiment.py"


class Script:
    """A Python file that can import the modules in its folder, as if Python executed it.

    Each file has separate modules: another file may import different ones with the same names.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path, *, kept: bool = False):
        """Import the file.

        Args:
            path: the file, or the name of an experiment that comes with jaxdiff.
            kept: whether the file is in a run's folder: modules in that folder take precedence over modules with the
                same names that this process has already imported.

        Raises:
            ValueError: there is no such file.
        """
        self.path = find(path)
        self._folder, self._kept = self.path.resolve().parent, kept
        self._local_modules: dict[str, ModuleType] = {}
        name = f"jaxdiff_file_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        self._module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[name] = self._module  # dataclasses look up their module
        with self._importing():
            spec.loader.exec_module(self._module)  # type: ignore[union-attr]

    def function(self, name: str, purpose: str) -> Callable[..., Any]:
        """Return one of the file's functions; it can import the modules in the folder while it runs.

        Args:
            name: name of the function.
            purpose: purpose of the function, for the message if it is missing.

        Raises:
            ValueError: the file has no such function.
        """
        function = getattr(self._module, name, None)
        if not callable(function):
            found = "" if function is None else f"; its {name} is a {type(function).__name__}"
            raise ValueError(f"{self.path} has no function `{name}(...)` that {purpose}{found}")

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with self._importing():
                return function(*args, **options)

        return call

    def check_kept(self, folder: Path) -> None:
        """Compare the files with those that `keep` copied to a folder.

        Raises:
            ValueError: the file, or a module in its folder, differs from the copy.
        """
        for name, path in self._files().items():
            there = folder / name
            if there.exists() and there.read_bytes() != path.read_bytes():
                raise ValueError(f"{path} differs from {there}, the file of this run: choose another --workdir")

    def keep(self, folder: Path) -> None:
        """Copy the file to `SOURCE` in a folder, and the imported modules of its folder, each atomically.

        Raises:
            ValueError: as for `check_kept`.
        """
        self.check_kept(folder)
        for name, path in self._files().items():
            with replacing(folder / name) as partial_path:
                partial_path.write_bytes(path.read_bytes())

    def _files(self) -> dict[str, Path]:
        """Return this file and its modules, by their names in a run's folder."""
        modules = [Path(module.__file__) for module in self._local_modules.values() if module.__file__]
        files = {str(path.relative_to(self._folder)): path for path in modules if path != self.path.resolve()}
        if SOURCE in files:
            raise ValueError(f"{files[SOURCE]} has the name of a run's own file: {self.path} cannot import it")
        return files | {SOURCE: self.path}

    @contextmanager
    def _importing(self) -> Iterator[None]:
        """Put the file's folder first on the import path, and its modules into `sys.modules`."""
        local = self._local_names() if self._kept else set()
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _first(name) in local}
        before = set(map(_first, sys.modules))
        sys.modules.update(self._local_modules)
        sys.path.insert(0, str(self._folder))
        invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(self._folder))
            local = self._local_names()
            imported = {name: module for name, module in sys.modules.items() if _first(name) in local}
            self._local_modules |= {name: module for name, module in imported.items() if self._is_local(name, module)}
            for name in [name for name in self._local_modules if _first(name) not in before]:
                del sys.modules[name]
            sys.modules.update(hidden)

    def _local_names(self) -> set[str]:
        """Return the top-level names of modules that may be from the folder; never jaxdiff, e.g. in a checkout."""
        names = {name for name in map(_first, sys.modules) if name not in ("", "jaxdiff")}
        return {n for n in names if (self._folder / f"{n}.py").is_file() or (self._folder / n).is_dir()}

    def _is_local(self, name: str, module: ModuleType) -> bool:
        place = self._folder.joinpath(*name.split("."))
        spec = getattr(module, "__spec__", None)
        folders = (spec and spec.submodule_search_locations) or ()
        return getattr(module, "__file__", None) == f"{place}.py" or str(place) in folders


def _first(name: str) -> str:
    return name.partition(".")[0]


def load_function(path: str | Path, name: str, purpose: str) -> Callable[..., Any]:
    """Import a function of a Python file, see `Script`.

    Args:
        path: the file.
        name: name of the function.
        purpose: purpose of the function, for the message if it is missing.

    Returns:
        the function.

    Raises:
        ValueError: the file does not exist, or has no such function.
    """
    return Script(path).function(name, purpose)


def shipped() -> dict[str, Path]:
    """Return the files of the experiments that come with jaxdiff, by name."""
    installed = Path(__file__).parent / "experiments"
    # In a checkout they are next to the package.
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find(name: str | Path) -> Path:
    """Return the file of an experiment.

    Args:
        name: a path that ends in .py, or the name of an experiment that comes with jaxdiff.

    Raises:
        ValueError: there is no such file.
    """
    path, known = Path(name), shipped()
    if str(name) in known:
        return known[str(name)]
    if path.suffix == ".py" and path.is_file():
        return path
    if path.suffix != ".py" and path.name == str(name):
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"no experiment is called {path.name!r}{hint}: give a Python file, or one of {', '.join(known)}"
        )
    siblings = ", ".join(sorted(str(p) for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
    hint = f"; its folder has: {siblings}" if siblings else ""
    shipped_hint = f"; jaxdiff has one that is called {path.stem}" if path.stem in known else ""
    raise ValueError(f"{path} is no Python file{hint}{shipped_hint}")
