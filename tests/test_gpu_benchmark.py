"""`benchmarks/gpu.py` on a CPU, in processes that cannot import more than it needs."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.quantize import quantize

FOLDER = Path(__file__).parents[1] / "benchmarks"
# Read by Python as it starts.
WITHOUT = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"PIL", "diffusers", "grain", "matplotlib", "safetensors", "tensorflow_datasets",
                                      "tokenizers", "torch", "tqdm", "tyro"}:
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def parts():
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: import_module(name) for name in ("gpu", "gpu_cases", "gpu_models")}
    finally:
        sys.path.remove(str(FOLDER))


def run(folder, *options):
    """(the status, the results) of a run."""
    (folder / "sitecustomize.py").write_text(WITHOUT)
    command = [sys.executable, FOLDER / "gpu.py", "--tiny", "--out", folder / "out", *options]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True)
    (written,) = (folder / "out").glob("*.json")
    results = json.loads(written.read_text())
    assert written.with_suffix(".md").read_text() in done.stdout
    assert all(part in done.stdout for part in results["parts"])
    return done.returncode, results, (folder / "out" / "stderr.txt").read_text()


@pytest.mark.slow
def test_a_tiny_run(tmp_path):
    status, results, said = run(tmp_path, "--minutes", "9", "--only", "correct", "dit", "torch dit")
    assert status == 0, said
    assert results["device"] == "cpu" and {"jax", "flax", "python"} == results["versions"].keys()
    correct, dit, other = results["parts"].values()
    assert [correct["status"], dit["status"]] == ["done", "done"] and other["status"].startswith(
        "skipped: cannot import"
    )
    assert len(correct["rows"]) == 6 and all(row["correct"] for row in correct["rows"])
    draw, update = dit["rows"]
    assert [draw["what"], update["what"]] == ["sampler, 20 steps", "train step"]
    for row in dit["rows"]:
        assert row["images_per_s"] * row["seconds"] == pytest.approx(row["batch"])
        assert row["tflops"] * row["seconds"] * 1e12 == pytest.approx(row["flops"])
        assert row["compile_s"] > 0 and row["temp_gib"] > 0 and row["utilization"] is None
    # Guidance doubles the batch of each of 20 steps; a gradient costs twice the forward pass.
    assert draw["flops"] / 40 == update["flops"] / 3


def test_a_part_is_stopped_when_its_time_is_over(parts, tmp_path):
    asked = Namespace(out=tmp_path, tiny=True, minutes=0, only=["correct", "dit"])
    begin = time.monotonic()
    found = parts["gpu"].one_part("dit", 0.2, asked)
    assert found["status"] == "stopped after 0 s" and found["rows"] == [] and time.monotonic() - begin < 30
    assert parts["gpu"].run_all(asked) == 0
    (written,) = tmp_path.glob("*.json")
    left = {name: part["status"] for name, part in json.loads(written.read_text())["parts"].items()}
    assert left == {"correct": "no time left", "dit": "no time left"}


def test_wrong_answers_are_told(parts):
    cases = parts["gpu_cases"]
    with np.load(cases.REFERENCE) as stored:
        reference = dict(stored)
    names = {name.rpartition("/")[0] for name in reference}
    assert names == cases.builders().keys()
    for name in names:
        right = [reference[f"{name}/{kind}"] for kind in cases.KINDS]
        compare = lambda got, dtype: cases.compared(name, dtype, got, reference)  # noqa: B023, E731
        assert compare(right, "float32")["correct"] and compare(right, "bfloat16")["correct"]
        for i, kind in enumerate(cases.KINDS):
            for wrong in (-right[i], right[i][::-1], np.where(np.arange(len(right[i])) == 1, np.nan, right[i])):
                row = compare([wrong if j == i else a for j, a in enumerate(right)], "bfloat16")
                assert not row["correct"] and row["why"].startswith(kind)
        off = [1.003 * a for a in right]  # a rounding of bfloat16, but not of float32
        assert compare(off, "bfloat16")["correct"] and not compare(off, "float32")["correct"]


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_a_case_of_8_bits_is_the_quantized_network(parts, weights):
    cases = parts["gpu_cases"]
    case = cases.network(networks.MLP(width=64), (2, 5))
    small = cases.in_8_bits(case, weights)
    x, params, scales = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (case.x, case.params, small.params))
    got, want, plain = (
        np.asarray(one.function(jnp.float32, held, x))
        for one, held in ((small, scales), (case, quantize(params, weights)), (case, params))
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.abs(got - plain).max() > 1e-3


def test_operations_and_the_share_of_the_peak(parts):
    models = parts["gpu_models"]
    # Peebles and Xie 2022, table 4: 118.64 billion multiply-adds; ours has 4 channels out where theirs has 8.
    count = models.forward_flops(models.model("dit", tiny=False), 2)
    assert count / 2 == pytest.approx(2 * 118.64e9, rel=2e-3)
    row = models.rates(8, 2.0, 989e12, "NVIDIA H100 80GB HBM3")
    assert (row["images_per_s"], row["utilization"]) == (4, 0.5)
    shares = {"NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA GB200": 2500, "TPU v5 lite": 197, "TPU v5p": 459}
    for kind, peak in shares.items():
        assert models.rates(1, 1.0, 1e12, kind)["utilization"] == pytest.approx(1 / peak)
    assert models.rates(1, 1.0, 1e12, "cpu")["utilization"] is None
