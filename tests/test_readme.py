"""The README's Python runs as it stands there, and says what it promises."""

import re
from pathlib import Path

import jax

from jaxdiff.interop.schedulers import KINDS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run(capsys):
    scope: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
        for block in re.findall(r"```python\n(.*?)```", README, re.S):
            exec(block, scope)
    for line in capsys.readouterr().out.splitlines():
        mean, std = map(float, re.findall(r"mean ([\d.]+), std ([\d.]+)", line)[0])
        assert abs(mean - 2) < 0.05 and abs(std - 0.5) < 0.05
    assert scope["generate"]._cache_size() == 1
    assert float(abs(scope["grads"][0]["dense"]["kernel"][...]).max()) > 0


def test_the_schedulers_are_counted():
    assert f"{len(KINDS)} of diffusers' schedulers" in README


def test_commands_are_one_line_each():
    for heading in ("Train", "Test"):
        section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert len(re.findall(r"```bash\n(.*?)\n```", section)) == 1
