"""Solvers, schedules and guidance by name: those of the rooms, with arguments, and those of files."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB

import jaxdiff as jd
from jaxdiff import hooks

PAGE = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text()


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    path.write_text(next(block for block in blocks if "def ab2" in block))
    return path


@pytest.mark.slow
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
        ("dpm2m", r"unknown solver 'dpm2m' \(did you mean 'dpm_2'\?\); there are: .*dpmpp_2m.*FILE\.py:NAME"),
        (f"{mine}:ab3", r"no function `ab3\(\.\.\.\)` that returns a jaxdiff\.solvers\.Solver"),
        (f"{tmp_path}/other.py:ab2", r"other\.py is no Python file; its folder has: .*mine\.py"),
        (f"{mine}:from_x0", r"from_x0 is called without x0, .*from_x0\(x0=VALUE\), or give defaults"),
    ):
        with pytest.raises(ValueError, match=words):
            hooks.solver(name)
    mine.write_text("def ab2():\n    return 2\n")
    with pytest.raises(ValueError, match=r"must return a jaxdiff\.solvers\.Solver, got 2"):
        hooks.solver(f"{mine}:ab2")
    mine.write_text("import jaxdiff as jd\nab2 = jd.solvers.ddim()\n")
    with pytest.raises(ValueError, match=r"no function `ab2\(\.\.\.\)` that returns .*; its ab2 is a Solver"):
        hooks.solver(f"{mine}:ab2")


def test_a_solver_that_takes_a_process_gets_that_of_the_run(tmp_path):
    process = jd.processes.VP()
    assert hooks.solver("heun(churn=0.3)", process).stochastic
    assert "process=VP" in repr(hooks.solver("rk4", process)) and "process" not in repr(hooks.solver("ddim", process))
    (tmp_path / "mine.py").write_text("from jaxdiff import solvers\ndef f(process):\n    return solvers.rk4(process)\n")
    assert "VP" in repr(hooks.solver(f"{tmp_path}/mine.py:f", process))


def x0_of(value):
    return lambda x, level: jnp.full_like(x, value)


@pytest.mark.slow
def test_arguments_beside_a_name():
    level, key, x = jd.processes.VP()(jnp.float32(0.5)), jax.random.key(0), jnp.ones((4, 2))
    steps = [
        solver.step(x0_of(0.5), key, x, (), level, jd.processes.VP()(jnp.float32(0.2)))[0]
        for solver in (hooks.solver("ddim(eta=1.0)"), jd.solvers.ddim(1.0), hooks.solver("ddim"))
    ]
    np.testing.assert_array_equal(steps[0], steps[1])
    assert np.abs(steps[0] - steps[2]).max() > 1e-3
    flow = jd.processes.Flow()
    levels = hooks.grid("beta(alpha=0.5, beta=0.7)", flow)(5)
    np.testing.assert_array_equal(levels.t, jd.grids.beta(flow, 5, alpha=0.5, beta=0.7).t)
    guided = hooks.guide("cfg_zero_star(zero_init=0.0)")(x0_of(1.0), x0_of(3.0), 2.0)(x, level)
    want = jd.guidance.cfg_zero_star(x0_of(1.0), x0_of(3.0), 2.0, zero_init=0.0)(x, level)
    np.testing.assert_array_equal(guided, want)


def test_functions_of_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\n"
        "def thirds(process, n, power=1.0):\n    return process(jnp.linspace(0.9, 0.0, 3 * n + 1) ** power)\n"
        "def odd(process, n):\n    return n\n"
        "def away(cond, uncond, scale):\n    return lambda x, level: cond(x, level) + scale * uncond(x, level)\n"
    )
    assert callable(hooks.guide("apg(norm_threshold=None)")) and hooks.solver("sa_solver(tau=1, predictor_order=2)")
    flow = jd.processes.Flow()
    np.testing.assert_allclose(hooks.grid(f"{path}:thirds(power=2.0)", flow)(1).t, [0.81, 0.36, 0.09, 0], atol=1e-6)
    level = flow(jnp.float32(0.5))
    assert hooks.guide(f"{path}:away")(x0_of(1.0), x0_of(3.0), 2.0)(jnp.ones((1, 2)), level).tolist() == [[7.0, 7.0]]
    for call, words in (
        (lambda: hooks.grid(f"{path}:odd", flow)(3), r"odd must return levels, a jaxdiff\.Level, got 3"),
        (
            lambda: hooks.grid("by_tim", flow),
            r"unknown grid 'by_tim' \(did you mean 'by_time'\?\); there are: beta, .*by_time.*FILE\.py:NAME",
        ),
        (lambda: hooks.grid("by_time(n=5)", flow), "by_time's argument n is given by the sampler"),
        (lambda: hooks.guide("cfg(scale=3.0)"), "cfg's argument scale is given by the sampler"),
        (lambda: hooks.grid("by_time(stat=1)", flow), r"by_time has no argument 'stat'; it takes \(process"),
        (lambda: hooks.grid("karras(sigma_min=0.1)", flow), "karras is called without sigma_max: write karras"),
        (lambda: hooks.guide("interval"), r"unknown guidance 'interval'; there are: apg, cfg, cfg_zero_star, and"),
        (lambda: hooks.solver("ddim(eta=x)"), r"written like ddim\(eta=1.0\), with plain values, got 'ddim\(eta=x\)'"),
        (lambda: hooks.solver("ddim(1.0)"), "written like"),
        (lambda: hooks.solver("ddim(eta=1.0"), "written like"),
        (lambda: hooks.solver("ddim(1e9=eta)"), "written like"),
        (lambda: hooks.solver("ddim(eta='a')"), r"ddim's argument eta must be a number, got 'a'"),
        (lambda: hooks.solver("ddim(eta=(1.0, 2.0))"), r"eta must be a number, got \(1.0, 2.0\)"),
        (lambda: hooks.solver("ddim(eta=None)"), "eta must be a number, got None"),
        (lambda: hooks.guide("apg(eta='a')"), "eta must be a number, got 'a'"),
        (lambda: hooks.grid("beta(alpha='a')", flow), "alpha must be a number, got 'a'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
