"""docs/train.md: its blocks run as they stand there, and its population is as many runs as it has members."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text()


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block, scope)
    said = capsys.readouterr().out
    mean, std = map(float, re.findall(r"radius ([\d.]+) \+- ([\d.]+)", said)[0])
    assert abs(mean - 1) < 0.1 and std < 0.35
    # One step of a teacher ends near the mean of the data, 0; a student's ends near the data.
    teacher, student = map(float, re.findall(r"one step of the \w+: radius ([\d.]+)", said))
    assert teacher < 0.5 and student > 0.7
    assert int(scope["state"].step) == 6 and set(scope["state"].params) == {"generator", "critic"}
    # Member (0, 2) of the population has the seed and the rate of the run.
    lines = [json.loads(line) for line in Path("runs/circle/metrics.jsonl").read_text().splitlines()]
    losses = np.asarray(scope["metrics"]["loss"])
    assert losses.shape == (8, 4, 30) and len(lines) == 200
    np.testing.assert_allclose(losses[0, 2], [line["loss"] for line in lines[:30]], rtol=1e-3)
    assert np.unique(losses[..., -1]).size == 32
