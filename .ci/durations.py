"""The last lines of CI: seconds of tests by room and stage, beside the budget in CONTRIBUTING.md.

Usage: python durations.py CONTRIBUTING.md STAGE.xml ...   (reports of `pytest --junitxml`)
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree


def room(test: ElementTree.Element) -> str:
    """The folder of tests that a test lies in."""
    parts = test.get("classname", "").split(".")
    # A file of the top, with a class perhaps; a module that was skipped has no name.
    return "tests/*.py" if len(parts) < 3 or parts[1].startswith("test_") else parts[1]


def main(page: Path, reports: list[Path]) -> None:
    """Print the rooms' seconds, and the slowest tests."""
    stages = [report.stem for report in reports]
    tests = [
        (room(test), stage, float(test.get("time", 0)), f"{test.get('classname')}::{test.get('name')}")
        for stage, report in zip(stages, reports, strict=True)
        for test in ElementTree.parse(report).iter("testcase")
    ]
    spent: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(stages, 0.0))
    for name, stage, seconds, _ in tests:
        spent[name][stage] += seconds
    allowed = {name: int(most) for name, most in re.findall(r"^\| `(.+?)` \|.*\| (\d+) \|$", page.read_text(), re.M)}

    print(f"{'room':<14}" + "".join(f"{name:>10}" for name in [*stages, "all", "budget"]))
    for name, row in sorted(spent.items(), key=lambda item: -sum(item[1].values())):
        total = sum(row.values())
        verdict = "none set" if name not in allowed else f"{allowed[name]}" + (" OVER" if total > allowed[name] else "")
        print(f"{name:<14}" + "".join(f"{seconds:>10.0f}" for seconds in [*row.values(), total]) + f"{verdict:>10}")
    sums = [sum(row[stage] for row in spent.values()) for stage in stages]
    print(f"{'all':<14}" + "".join(f"{seconds:>10.0f}" for seconds in [*sums, sum(sums)]))
    print("Seconds of tests; two run at a time. The slowest:")
    for _, stage, seconds, test in sorted(tests, key=lambda item: -item[2])[:15]:
        print(f"{seconds:>7.1f}  {stage:<8} {test}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
