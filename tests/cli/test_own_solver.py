"""docs/solvers.md: its solver is found by its file and name, and is of the order that it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB

import jaxdiff as jd
from jaxdiff import hooks

PAGE = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text()


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    path.write_text(next(block for block in blocks if "def ab2" in block))
    return path


@pytest.mark.usefixtures("x64")
def test_the_pages_solver_is_found_and_of_its_order(mine):
    solver, flow, key = hooks.solver(f"{mine}:ab2"), jd.processes.Flow(), jax.random.key(0)
    function = mine.read_text().split("def ab2")[1]
    assert len(function.strip().splitlines()) <= 20
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
    errors = []
    for n in (50, 200):
        levels = jd.grids.by_time(flow, n, start=0.9, end=0.1)
        ends = [jax.tree.map(lambda field: field[i], levels) for i in (0, -1)]  # noqa: B023
        out = jax.jit(lambda x, levels: jd.sample(BLOB.denoise, solver, levels, x, key))(x, levels)
        errors.append(np.abs(out - BLOB.flow(x, *ends)).max())
    np.testing.assert_allclose(np.log(errors[0] / errors[1]) / np.log(4), solver.order, atol=0.15)
    whole = jd.sample(BLOB.denoise, solver, jd.grids.by_time(flow, 4), x, key)  # pure noise to clean data
    assert np.all(np.isfinite(whole))


def test_mistakes_say_what_is_allowed(mine, tmp_path):
    for name, words in (
        ("dpm2m", r"unknown solver 'dpm2m'; there are: .*dpmpp_2m.*FILE\.py:NAME"),
        (f"{mine}:ab3", r"no function `ab3\(\.\.\.\)` that returns a jaxdiff\.solvers\.Solver"),
        (f"{tmp_path}/other.py:ab2", r"other\.py is no Python file; beside it there are: .*mine\.py"),
        (f"{mine}:from_x0", r"called without arguments: give defaults to all of \(x0"),
    ):
        with pytest.raises(ValueError, match=words):
            hooks.solver(name)
    mine.write_text("def ab2():\n    return 2\n")
    with pytest.raises(ValueError, match=r"must return a jaxdiff\.solvers\.Solver, got 2"):
        hooks.solver(f"{mine}:ab2")
