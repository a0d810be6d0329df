"""A person's mistake ends with a sentence and status 2; an error of JAX, numpy or an experiment keeps its traceback."""

import json
import re
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import cli, data, train
from jaxdiff.cli import main
from jaxdiff.cli.errors import _EXTRAS, sentence
from jaxdiff.experiment import UserError
from jaxdiff.faults import DAMAGE, MISTAKE
from jaxdiff.interop.formats.files import write_tensors
from jaxdiff.media.files import grid
from jaxdiff.networks import lora
from jaxdiff.seeds import keys_at


def raised(function, *args) -> Exception:
    with pytest.raises(Exception) as found:
        function(*args)
    return found.value


def refuse_in_a_block():
    with nullcontext():
        return jax.jit(lambda x: grid(np.zeros((1, 2, 2, 2)), 1))(1.0)


def test_what_jaxdiff_refuses_is_a_sentence():
    cases = [
        (lambda: jd.sharding.parse_mesh("rows=2"), "a mesh is written like"),
        (refuse_in_a_block, "images must be [N, H, W, C]"),
        (
            lambda: jd.losses.denoising_loss(print, jd.processes.Flow(), jd.parameterize.x0, cond_dropout=2.0),
            "cond_dropout",
        ),
        # JAX leaves its own frames out of the tracebacks of what it calls.
        (lambda: jax.jit(lambda x: x + grid(np.zeros((1, 2, 2, 1)), 0).sum())(1.0), "columns must be at least 1"),
        (lambda: data.to_float(np.zeros(3)), "to_float takes uint8"),
    ]
    for function, words in cases:
        error = raised(function)
        assert type(error) is ValueError and words in str(error)
        assert sentence(error) == str(error)


def test_what_others_refuse_is_none():
    """Below our frames, too, whether they are written in Python, which JAX hides, or in C."""
    jax_hidden = raised(keys_at, jax.random.key(0), jnp.int32(3))
    in_c = raised(grid, [[1.0], [1.0, 2.0]], 1)
    mine = raised(lambda: int("three"))
    own = raised(lambda: (_ for _ in ()).throw(ValueError("of the user's code")))
    for error in (jax_hidden, in_c, mine, own):
        assert isinstance(error, ValueError) and sentence(error) is None, error
    assert sentence(KeyError("a")) is None and sentence(ValueError("never raised")) is None


def test_a_package_of_an_extra_that_is_missing_is_named(monkeypatch, capsys):
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (extra,) = set(_EXTRAS.values())
    listed = pyproject["project"]["optional-dependencies"][extra]
    assert {re.match(r"[\w-]+", each)[0] for each in listed} == _EXTRAS.keys()
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    error = raised(write_tensors, {}, Path("weights.safetensors"))
    assert sentence(error) == "this needs safetensors, which is missing: pip install 'jaxdiff[interop]'"
    assert sentence(ModuleNotFoundError("No module named 'mine'", name="mine")) is None

    def run(command, args, signals):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.delenv("JAXDIFF_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as status:
        main(["list"])
    assert status.value.code == MISTAKE
    assert capsys.readouterr().err == f"jaxdiff: {sentence(error)}\n"


def test_an_experiment_can_refuse_its_knobs():
    assert sentence(UserError("density must be round")) == "density must be round"


def test_what_the_file_system_refuses_is_a_sentence(tmp_path):
    assert sentence(raised(open, tmp_path / "no")) == f"{tmp_path / 'no'}: No such file or directory"
    assert sentence(OSError(28, "No space left on device")) == "No space left on device"
    assert sentence(OSError("of a library")) is None


def fails(capsys, *args: str, status: int = MISTAKE) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == status
    return capsys.readouterr().err


BAD = {
    "def experiment(steps: int = 1):\n    return 3": "must return an Experiment, got 3",
    "def experiment(steps=1):\n    return 3": "argument 'steps' needs a type, as in `steps: int`",
    "def experiment(*steps: int):\n    return 3": "knobs of their own name, got *steps",
    "def experiment(steps: 'Missing' = 1):\n    return 3": "name 'Missing' is not defined",
    "def experiment(workdir: int = 1):\n    return 3": "has the name of an option",
}


@pytest.mark.parametrize("text", BAD)
def test_files_that_are_no_experiments(text, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert BAD[text] in fails(capsys, "train", str(tmp_path / "bad.py"), "--workdir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_errors_of_an_experiment_keep_their_traceback(tmp_path, capsys):
    for body, words in (
        ("raise ValueError('mine')", "mine"),
        ("import jax.numpy as jnp; jnp.concatenate([])", "concatenate"),
        ("import numpy as np; np.zeros(3).reshape(2, 2)", "reshape"),
    ):
        (tmp_path / "mine.py").write_text(f"def experiment(steps: int = 1):\n    {body}\n")
        with pytest.raises(ValueError, match=words):
            main(["train", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run")])
    refused = "from jaxdiff.experiment import UserError\ndef experiment(a: int = 1):\n    raise UserError('too few')\n"
    (tmp_path / "mine.py").write_text(refused)
    assert fails(capsys, "train", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run")) == "jaxdiff: too few\n"


def test_runs_that_do_not_fit_their_knobs(tmp_path, capsys):
    (tmp_path / "experiment.py").write_text("def experiment(steps: int = 1):\n    return 3\n")
    for text, words in (
        (json.dumps({"lr": 1}), "it takes no --lr"),
        (json.dumps({"steps": 1}), "must return an Experiment"),
        ("[1]", "must hold an object"),
        ("{", "is damaged"),
    ):
        (tmp_path / "run.json").write_text(text)
        status = DAMAGE if text in ("[1]", "{") else MISTAKE
        assert words in fails(capsys, "sample", str(tmp_path), status=status)


def test_patterns_that_are_none():
    for refused in (
        lambda: train.partition({"a": jnp.zeros(1)}, "("),
        lambda: lora.init(jax.random.key(0), {"a": {"kernel": np.zeros((2, 2))}}, 1, targets="("),
    ):
        assert "is no regular expression" in sentence(raised(refused))


def test_a_folder_with_a_broken_picture_is_named_from_within_the_readers_threads(tmp_path):
    from PIL import Image

    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 30), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:500])
    stream = data.batches(data.open_dataset(f"folder:{tmp_path}"), 4, seed=0)
    error = raised(next, stream)
    stream.close()
    assert "2.png" in sentence(error)
