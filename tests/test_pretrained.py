"""The trained runs that come with the package: their files, and the folders made of them."""

import json

import jax
import numpy as np
import pytest

from jaxdiff import pretrained, run, train, trees
from jaxdiff.cli import main
from jaxdiff.data.npz import read_npz

NAMES = ("emoji", "fashion")


def test_the_package_has_the_weights_numbers_and_data_of_each():
    assert pretrained.names() == NAMES
    for name in NAMES:
        folder = pretrained.FOLDER / name
        weights = read_npz(folder / pretrained.WEIGHTS)
        assert {a.dtype for a in weights.values()} == {np.dtype(np.float16)}
        assert "licen" in (folder / "README.md").read_text().lower()
        assert json.loads((folder / "eval.json").read_text())


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no trained run is called 'shoes'; there are: emoji, fashion"):
        pretrained.unpack("shoes", tmp_path / "shoes")
    (tmp_path / "fashion").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        pretrained.unpack("fashion", tmp_path / "fashion")
    # A folder of one's own goes before the package's, and other paths are nobody's name.
    for path in ("fashion", "runs/emoji"):
        with pytest.raises(SystemExit):
            main(["sample", path])
    assert not any((tmp_path / "fashion").iterdir()) and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_run_is_unpacked_where_its_name_is_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--prompt", "a small red heart on the left"] if name == "emoji" else ["--label", "Sneaker"]
    main(["sample", name, *words, "--num", "2", "--steps", "2", "--out", "two.npz"])
    assert np.load("two.npz")["x"].shape[0] == 2
    experiment = run.load_run(name)
    params = run.parameters(experiment, name)
    packed = read_npz(pretrained.FOLDER / name / pretrained.WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, trees.flatten(params), packed)
    # The code draws what the weights were trained for: they denoise, and as many others do not.
    part = experiment.training
    batch = part.batches(0, np.arange(part.batch)).__iter__().__next__()
    loss = jax.jit(lambda params: part.loss(params, jax.random.key(0), batch)[0])
    other = jax.tree.map(lambda x: np.random.default_rng(0).permutation(np.ravel(x)).reshape(x.shape), params)
    assert loss(params) < 0.3 < loss(other)
    # A finished run goes on when it gets more steps.
    assert train.read_knobs(name)["steps"] == part.steps
    with train.Checkpointer(name, read_only=True) as checkpointer:
        assert checkpointer.latest() == part.steps
