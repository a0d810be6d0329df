"""The field's words: identifiers that are banned, since a name that a researcher would search for exists.

In the pages they are banned within Python blocks: each has an honest use in English.
"""

import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
BANNED = {"beside", "limit", "one", "row", "said", "told", "whole"}

# File -> banned words that are right there: a row is one of a table of numbers or text.
EXCEPTIONS = {
    "experiments/toy2d.py": {"row"},
    "jaxdiff/metrics/report.py": {"row"},
    "jaxdiff/plan/report.py": {"row"},
}


def code_of(path):
    """A file's Python code on its own lines; of a page, what stands in its Python blocks."""
    text = path.read_text()
    if path.suffix == ".py":
        return text
    fence = r"^```python\n(.*?)^```$"
    starts = [(text.count("\n", 0, match.start(1)), match[1]) for match in re.finditer(fence, text, re.M | re.S)]
    code = [""] * (text.count("\n") + 1)
    for line, block in starts:
        code[line : line + block.count("\n")] = block.splitlines()
    return "\n".join(code)


def banned_names(path):
    """Return the lines of each banned name, as {word: [line, ...]}."""
    lines = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(code_of(path)).readline):
        if token.type == tokenize.NAME and token.string in BANNED:
            lines[token.string].append(token.start[0])
    return lines


def test_a_banned_name_is_found_but_not_in_text(tmp_path):
    (tmp_path / "example.py").write_text('"""One row."""\n\nn = 1  # the whole one\nlimit = f(told=n, ones=n)\n')
    assert banned_names(tmp_path / "example.py") == {"limit": [4], "told": [4]}


def test_a_banned_name_is_found_in_the_code_of_a_page_but_not_in_its_words(tmp_path):
    (tmp_path / "page.md").write_text("One row.\n\n```python\nx = 1  # the row\nrow = x\n```\n\n```\nrow\n```\n")
    assert banned_names(tmp_path / "page.md") == {"row": [5]}


def test_no_name_is_banned():
    found = []
    files = [path for folder in ("jaxdiff", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in (*files, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        name = path.relative_to(ROOT).as_posix()
        for word, lines in banned_names(path).items():
            if word not in EXCEPTIONS.get(name, ()):
                found += [f"{name}:{line}: {word}" for line in lines]
    assert not found, "these names need a noun that says what the thing is:\n" + "\n".join(found)
