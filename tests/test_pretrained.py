"""The trained runs that come with the package: their files, and the folders made of them."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.devices import one_device
from helpers.plans import uncompiled

from jaxdiff import pretrained, run, train, trees
from jaxdiff.cli import main
from jaxdiff.data.npz import read_npz
from jaxdiff.planning import planning

NAMES = ("emoji", "fashion")


def test_the_package_has_the_weights_numbers_and_data_of_each():
    assert pretrained.names() == NAMES
    for name in NAMES:
        folder = pretrained.FOLDER / name
        weights = read_npz(folder / pretrained.WEIGHTS)
        assert {a.dtype for a in weights.values()} == {np.dtype(np.float16)}
        assert "licen" in (folder / "README.md").read_text().lower()
        assert json.loads((folder / "eval.json").read_text())


def test_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no trained run is called 'shoes'; there are: emoji, fashion"):
        pretrained.unpack("shoes", tmp_path / "shoes")
    (tmp_path / "fashion").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        pretrained.unpack("fashion", tmp_path / "fashion")
    # A folder of one's own goes before the package's, and other paths are nobody's name.
    for path, words in (("fashion", "fashion is here and holds no run"), ("runs/emoji", "runs/emoji holds no run")):
        with pytest.raises(SystemExit):
            main(["sample", path])
        assert words in " ".join(capsys.readouterr().err.split())
    assert not any((tmp_path / "fashion").iterdir()) and not (tmp_path / "runs").exists()


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Runs are unpacked into this folder as empty ones."""

    def unpack(name, path):
        path.mkdir(parents=True)
        (path / "experiment.py").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "unpack", unpack)
    return tmp_path


def test_training_begins_with_one_by_its_name(unpacked, monkeypatch):
    def train(*_, init_from, **__):
        assert (init_from / "experiment.py").is_file()
        return SimpleNamespace(step=10**6)

    monkeypatch.setattr(run, "train", train)
    main(["train", "toy2d", "--workdir", "new", "--init-from", "fashion"])
    assert (unpacked / "fashion").is_dir()


def test_a_plan_unpacks_into_a_folder_of_its_own(unpacked):
    (unpacked / "emoji").mkdir()
    (unpacked / "emoji" / "experiment.py").touch()
    with planning():
        found = [pretrained.open_run(Path("fashion")) for _ in range(2)]
        assert found[0] == found[1] and (found[0] / "experiment.py").is_file()
        assert pretrained.open_run(Path("emoji")) == Path("emoji")
    assert not found[0].exists() and [path.name for path in unpacked.iterdir()] == ["emoji"]


@pytest.mark.slow
def test_the_plan_of_an_experiment_on_a_run_of_the_package_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with one_device(), uncompiled():
        main(["plan", "control", "--kind", "adapter", "--topology", "cpu:1", "--batch", "4"])
    assert "control, train step" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_name_after_a_detour_leaves_no_other_folder(unpacked):
    for _ in range(2):  # unpacked, and found there
        assert pretrained.open_run(Path("emoji/../fashion")) == Path("fashion")
    assert [path.name for path in unpacked.iterdir()] == ["fashion"]


@pytest.mark.slow
def test_a_trained_run_is_unpacked_where_its_name_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = ["sample", "fashion", "--label", "Sneaker", "--num", "2", "--steps", "2", "--out"]
    with one_device():
        main([*two, "two.npz"])
        main([*two, "small.npz", "--weights", "int8"])
    assert np.load("two.npz")["x"].shape[0] == 2
    off = np.abs(np.load("small.npz")["x"] - np.load("two.npz")["x"])
    assert 0 < off.mean() < 0.02  # of pictures in [-1, 1]
    # A finished run, which goes on when it gets more steps.
    steps = train.read_knobs("fashion")["steps"]
    with train.Checkpointer("fashion", read_only=True) as checkpointer:
        assert checkpointer.latest() == steps
    assert (tmp_path / "fashion" / "README.md").is_file()
    # Knobs keep a name with the path of the folder that it was given in; one of another folder is no name.
    with one_device():
        pretrained.open_run(tmp_path / "emoji")
    with pytest.raises(ValueError, match="holds no run"):
        pretrained.open_run(tmp_path / "runs" / "fashion")
    assert (tmp_path / "emoji" / "README.md").is_file() and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_the_experiments_network(name, tmp_path):
    """They denoise the data of their experiment, in its code of today; as many others do not."""
    with nullcontext() if name == "fashion" else one_device():  # of eight each writes a part, and compiles its slices
        pretrained.unpack(name, tmp_path / name)
    experiment = run.load_run(tmp_path / name)
    params = run.parameters(experiment, tmp_path / name)
    packed = read_npz(pretrained.FOLDER / name / pretrained.WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, trees.flatten(params), packed)
    part = experiment.training
    batch = next(iter(part.batches(0, np.arange(part.batch))))
    loss = jax.jit(lambda params: part.loss(params, jax.random.key(0), batch)[0])
    shuffled = jax.tree.map(lambda x: np.random.default_rng(0).permutation(np.ravel(x)).reshape(x.shape), params)
    assert loss(params) < 0.3 < loss(shuffled)
