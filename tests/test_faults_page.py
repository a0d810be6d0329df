"""The page about faults: each test that it names is there, and each line of its table has one."""

import ast
import re
from pathlib import Path

import pytest

from jaxdiff import faults

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text()


def test_each_test_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    for file in sorted({file for file, _ in named}):
        tree = ast.parse((TESTS / file).read_text())
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {name for other, name in named if other == file} <= found, file


def test_each_line_is_held_by_a_test():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|.*\|.*\|.*\|$", line)]
    table = [line for line in rows if line.count("|") == 5]
    assert [int(line.split("|")[1]) for line in table] == list(range(1, 26))
    assert all("::test_" in line.split("|")[4] for line in table)


@pytest.mark.parametrize("name", ["DONE", "MISTAKE", "NUMBERS", "DAMAGE", "STORAGE", "AGAIN"])
def test_each_status_is_told(name):
    page = (TESTS.parent / "docs" / "scale.md").read_text()
    assert re.search(rf"^\| {getattr(faults, name)} \|", page, re.MULTILINE)
