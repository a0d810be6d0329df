"""Benchmarks of trained runs do with a run what `jaxdiff` does; each is in the table of their page."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

import jaxdiff as jd
from jaxdiff import conditions, media
from jaxdiff.experiment import Sampling

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return import_module


def test_each_is_in_the_table():
    scripts = {path.name for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    page = (FOLDER / "README.md").read_text()
    assert len(scripts) > 20 and not {name for name in scripts if f"`{name}`" not in page}


def test_a_runs_classifier_is_fitted_if_it_has_none(script, tmp_path, monkeypatch):
    inverse, fitted = script("inverse"), []
    monkeypatch.setattr(inverse, "load_classifier", lambda path: path.read_text())

    def evaluator(run, condition):
        fitted.append(condition)
        (run / "judge.npz").write_text("fitted")

    for medium in (media.Medium((4,), print), media.Medium((4,), print, evaluator=evaluator)):
        experiment = SimpleNamespace(medium=medium, condition="classes")
        if medium.evaluator is None:
            with pytest.raises(ValueError, match="no data to fit a classifier to"):
                inverse.judge(experiment, tmp_path)
        else:
            assert [inverse.judge(experiment, tmp_path) for _ in range(2)] == ["fitted"] * 2
    assert fitted == ["classes"]


@pytest.mark.slow
def test_a_network_is_given_the_encoded_condition(script, monkeypatch, capsys):
    parallel, process = script("parallel"), jd.processes.Flow()
    labels = conditions.label(3)
    condition = conditions.Condition(
        labels.spec, labels.choose, labels.parse, 3, null=labels.null,
        encode=lambda params, cond: {"tokens": params[cond["label"]]},
    )  # fmt: skip
    experiment = SimpleNamespace(
        model=SimpleNamespace(
            apply=lambda params, x, noise, cond: x * cond["tokens"], prediction=jd.parameterize.velocity
        ),
        sampling=Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.ddim(), 2, guidance=2.0),
        condition=condition,
        medium=SimpleNamespace(shape=(2,)),
    )
    monkeypatch.setattr(parallel, "open_run", lambda path: path)
    monkeypatch.setattr(parallel.run, "load_run", lambda path: experiment)
    monkeypatch.setattr(parallel.run, "parameters", lambda experiment, path: jnp.ones((4, 1)))
    monkeypatch.setattr(parallel, "CASES", [("ddim", 2, 0.01)])
    monkeypatch.setattr(parallel, "STEPS", 2)
    monkeypatch.setattr(sys, "argv", ["parallel.py"])
    parallel.main()
    assert "| `ddim` | 2 |" in capsys.readouterr().out
