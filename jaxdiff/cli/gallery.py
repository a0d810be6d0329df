"""`jaxdiff list` and `jaxdiff new FILE --from NAME`: the experiments that come with jaxdiff."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import tyro

from jaxdiff.cli.places import try_file
from jaxdiff.script import find, shipped
from jaxdiff.storage import write_text


def names() -> None:
    """Name the experiments that come with jaxdiff, each with the first sentence of its description."""
    found = shipped()
    width = max(map(len, found))
    for name, path in found.items():
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        print(f"{name:{width}}  {' '.join(doc.partition(chr(10) * 2)[0].split())}")


def new(file: tyro.conf.Positional[Path], source: Annotated[str, tyro.conf.arg(name="from")] = "fashion") -> None:
    """Begin an experiment of your own with a copy of another.

    Args:
        file: the Python file to write; must not exist.
        source: an experiment that comes with jaxdiff, or a Python file.
    """
    if file.suffix != ".py":
        raise ValueError(f"an experiment is a Python file, whose name ends in .py; got {file}")
    if file.exists():
        raise ValueError(f"{file} exists already: choose another name")
    text = find(source).read_text()
    try_file(file, "an experiment")
    write_text(file, text)
    print(file)
