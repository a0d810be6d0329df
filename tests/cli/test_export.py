"""A run's sampler as a file: the six lines of the documentation, with nothing but JAX, draw what `sampler` draws."""

import hashlib
import os
import re
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.untrained import untrained

import jaxdiff as jd
from jaxdiff import conditions, export, hooks, train
from jaxdiff.cli import export as command
from jaxdiff.cli import main
from jaxdiff.cli.prompt import draw_prompts
from jaxdiff.drawing import parameters
from jaxdiff.experiment import Experiment, Medium, Model, Sampling, Training, compute_dtype
from jaxdiff.recipe import load_run
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.sharding import platform

ROOT = Path(__file__).parents[2]
LINES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)[0]
BLOCKED = ("jaxdiff", "flax", "optax", "orbax", "tyro", "tqdm")


def tiny(classes: int = 0, guidance: float = 1.0) -> Experiment:
    """A network of one weight, unconditional unless told otherwise."""

    def apply(params, x, noise, cond):
        shift = 0.0 if "label" not in cond else cond["label"].astype(jnp.float32)[:, None]
        return params["a"].astype(jnp.float32)[None, :] * x + shift

    process = jd.processes.Flow()
    nothing = lambda *args: None  # noqa: E731
    return Experiment(
        Model(nothing, apply, process, jd.parameterize.velocity),
        Training(nothing, None, nothing, nothing, batch=1, steps=1),
        Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.ddim(), steps=2, guidance=guidance),
        conditions.label(classes) if classes else conditions.none(),
        Medium((3,), nothing),
        seed=0,
    )


def draw(experiment: Experiment, keys, cond=None, scale=1.0):
    parts = experiment.model, experiment.sampling, experiment.condition, experiment.medium
    return sampler(*parts, guided=scale != 1)(PARAMS, keys, {} if cond is None else cond, scale)


PARAMS = {"a": jnp.asarray([0.5, -0.25, 2.0], jnp.bfloat16)}


@pytest.mark.slow
def test_an_unconditional_sampler_with_its_weights_as_an_argument():
    experiment = tiny()
    with export.for_export("float32"):
        made = export.export_sampler(experiment, PARAMS, embed_weights=False)
    assert made.platforms == ("cpu", "cuda", "tpu")
    weights = export.flat_weights(PARAMS)
    assert weights["a"].dtype == np.uint16  # numpy's files know no bfloat16
    drawn = made.call(seed=5, index=jnp.arange(2, 6), weights=weights)
    keys = example_keys(5, 4, first=2)
    assert np.array_equal(drawn, draw(experiment, keys))
    assert not np.array_equal(drawn, made.call(seed=5, index=jnp.arange(2, 6), weights={"a": 2 * weights["a"]}))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_guidance_is_a_scale(scale):
    message = f"guidance must be a number from -1,000 to 1,000, got {scale}"
    for refuse in (export.export_sampler, lambda made, _, guidance: hooks.change_sampling(made, guidance=guidance)):
        with pytest.raises(ValueError, match=message):
            refuse(tiny(classes=4), PARAMS, guidance=scale)
    with pytest.raises(ValueError, match=message):
        draw_prompts(Path("missing"), ["a cat"], num=1, guidance=scale)


@pytest.mark.slow
def test_guidance_is_an_argument_unless_it_is_built_in():
    experiment = tiny(classes=4, guidance=3.0)
    label = jnp.asarray([0, 3, 1], jnp.int32)
    given = {"seed": 1, "index": jnp.arange(3), "label": label}
    want = draw(experiment, example_keys(1, 3), {"label": label}, 2.5)
    with export.for_export("float32"):
        open_, fixed, off = (export.export_sampler(experiment, PARAMS, guidance=g) for g in (None, 2.5, 1.0))
    assert np.array_equal(open_.call(**given, guidance=2.5), want)
    assert np.array_equal(fixed.call(**given), want)
    plain = draw(experiment, example_keys(1, 3), {"label": label})
    assert np.array_equal(off.call(**given), plain) and not np.array_equal(plain, want)
    with pytest.raises(ValueError, match="guidance"), export.for_export("float32"):
        export.export_sampler(tiny(), PARAMS, guidance=2.0)


def test_weights_that_a_file_cannot_hold_and_directories_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "MAX_EMBEDDED_BYTES", 5)
    with pytest.raises(ValueError, match="--no-embed-weights"):
        export.export_sampler(tiny(), PARAMS)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="tokenizers"):
        command.command(tmp_path)
    for options, words in (({"out": Path("x.npz")}, "end in .jaxdiff"), ({"platforms": "cpu,gpu"}, "cpu,gpu")):
        with pytest.raises(ValueError, match=words):
            command.command(tmp_path, **options)


def test_the_type_is_asked_for_and_not_the_exporting_machines():
    with export.for_export("bfloat16"):
        assert compute_dtype() == jnp.bfloat16 and platform() not in ("gpu", "tpu", "cpu")
    with export.for_export("float32"):
        assert compute_dtype() == jnp.float32


def alone(code: str, folder: Path) -> str:
    """What a process prints that runs this in the folder, where nothing but JAX can be imported."""
    block = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", block + code], cwd=folder, env=environ, capture_output=True, text=True)
    return run.stdout + run.stderr.splitlines()[-1] if run.returncode else run.stdout


@pytest.mark.slow
def test_six_lines_with_nothing_but_jax(tmp_path):
    assert len(LINES.replace("\n\n", "\n").splitlines()) == 6
    run, file = tmp_path / "run", tmp_path / "sampler.jaxdiff"
    untrained(run, ROOT / "experiments" / "fashion.py", noise=0.05, width=8)
    main(["export", str(run), "--steps", "2", "--out", str(file)])
    both = (
        f"import numpy as np\nfor n in (16, 3):\n    exec({LINES!r}.replace('16', str(n)))\n    np.save(f'{{n}}', x)\n"
    )
    assert alone(both, tmp_path) == ""
    experiment, params = load_run(run), train.load_params(run)
    sampling = replace(experiment.sampling, steps=2)
    generate = sampler(experiment.model, sampling, experiment.condition, experiment.medium)
    for n in (16, 3):
        want = generate(params, example_keys(0, n), {"label": jnp.arange(n) % 10}, 2.0)
        assert np.array_equal(np.load(tmp_path / f"{n}.npy"), want)
    main(
        [
            "export",
            str(run),
            "--steps",
            "2",
            "--weights",
            "float8",
            "--no-embed-weights",
            "--out",
            str(tmp_path / "small.jaxdiff"),
        ]
    )
    small = jax.export.deserialize(bytearray((tmp_path / "small.jaxdiff").read_bytes().split(b"\n", 2)[2]))
    with np.load(tmp_path / "small.npz") as arrays:
        weights = dict(arrays)
    kernels = [name for name, x in weights.items() if x.dtype == np.uint8]
    assert kernels and all(name.endswith("kernel/values") for name in kernels)
    given = {"index": jnp.arange(3), "label": jnp.arange(3) % 10}
    drawn = small.call(seed=0, **given, guidance=2.0, weights=weights)
    params = parameters(experiment, run, weights="float8")
    want = generate(params, example_keys(0, 3), {"label": given["label"]}, 2.0)
    assert np.array_equal(drawn, want) and not np.array_equal(drawn, np.load(tmp_path / "3.npy"))
    kind, version, program = file.read_bytes().split(b"\n", 2)
    newer = b"99.0.0"
    again = export.MAGIC.format(hashlib.sha256(newer + program).hexdigest()).encode()
    changed = [(kind.replace(b"2", b"3", 1), version), (again, newer), (kind, newer), (b"PK\x03\x04", b"")]
    for head in changed:
        file.write_bytes(b"\n".join([*head, program]))
        with pytest.raises(ValueError, match=f"not for this script and jax {jax.__version__}"), chdir(tmp_path):
            exec(LINES, {})
