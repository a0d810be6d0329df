"""A fixed batch on each chip, from one chip to 1,024: its work does not grow, and what it sends is what theory says."""

import functools
import re
from pathlib import Path

import jax
import pytest

from jaxdiff import train
from jaxdiff.plan import estimate, topology, train_step
from jaxdiff.recipe import load
from jaxdiff.sharding import parse_mesh

pytest.importorskip("libtpu")
FOLDER = Path(__file__).parents[2] / "experiments"
# U-Nets take a minute to compile for each slice; what a step of theirs sends is counted in `test_meshes`.
NETWORKS = {
    # All is kept: of what it would compute again the compiler puts more into nearer memory where nothing is sent.
    "imagenet256_dit": {
        "width": 128, "layers": 2, "num_heads": 4, "latent": (16, 16, 4), "num_classes": 10, "remat": "none",
    },
}  # fmt: skip
# Weights of one vector per example: fewer elements in 16 x 4 rows than in them.
MODULATES = re.compile(r"norm1\.linear.*kernel|proj_out_1.*kernel|linear_[12].*kernel")
SLICES = {1: "v5p:1x1x1", 1024: "v5p:8x8x16"}
EACH = 4  # examples on a chip


def plan(name, chips, mesh=""):
    """(parameters, bytes of gradients by whether fsdp splits them, the plan)."""
    slice = topology(SLICES[chips])
    where = parse_mesh(mesh, devices=slice.devices)
    # Made outside of the mesh it computes in float32, so that every gradient has 4 bytes.
    experiment = load(FOLDER / f"{name}.py")(batch=EACH * chips, **NETWORKS[name])
    params = train.state_shapes(experiment.model.init, experiment.training.optimizer, where).params
    made = estimate(train_step(experiment, where), slice, where, title=name, batch=experiment.training.batch)
    return params, made


def gradients(params):
    """Bytes of all gradients, of those that fsdp splits, and of those weights whose rows move in their place."""
    leaves = [(4 * x.size, x, jax.tree_util.keystr(path)) for path, x in jax.tree_util.tree_leaves_with_path(params)]
    split = [(size, name) for size, x, name in leaves if not x.sharding.is_fully_replicated]
    total = sum(size for size, *_ in leaves)
    return total, sum(size for size, _ in split), sum(size for size, name in split if MODULATES.search(name))


def sent(made):
    return sum(each.sent for each in made.collectives)


@pytest.fixture(scope="module")
def one():
    return functools.cache(lambda name: plan(name, 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_of_the_state(one, name):
    params, many = plan(name, 1024)
    gradient, *_ = gradients(params)
    assert one(name).fits and many.fits and not one(name).collectives
    assert many.model_flops == one(name).model_flops  # of one device
    assert many.flops == pytest.approx(one(name).flops, rel=0.02)
    assert {(each.kind, each.axes) for each in many.collectives} == {("all-reduce", ("data",))}
    # The gradient, and some numbers such as the mean loss.
    assert sent(many) == pytest.approx(2 * 1023 / 1024 * gradient, rel=1e-3)
    # What is summed has a buffer, which is written and read once more.
    assert many.memory.total <= one(name).memory.total + 2 * gradient
    assert many.bytes <= one(name).bytes + 4 * gradient


@pytest.mark.slow
def test_parts_of_the_state(one):
    """With the state in 16 parts, gradients are summed among those, and then each part among the 64 copies."""
    params, many = plan("imagenet256_dit", 1024, "fsdp=16")
    gradient, split, stays = gradients(params)
    assert many.flops == pytest.approx(one("imagenet256_dit").flops, rel=0.02)
    assert many.memory.total < one("imagenet256_dit").memory.total and many.bytes < one("imagenet256_dit").bytes
    by = {(each.kind, each.axes): each for each in many.collectives}
    assert {kind for kind, _ in by} == {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}
    summed = by["reduce-scatter", ("fsdp",)].bytes + by["all-reduce", ("fsdp",)].bytes
    # The gradient of the embedding of 16 x 4 examples is summed where it meets weights that stay: two blocks, one end,
    # and within the embedding itself.
    rows = 4 * 16 * EACH * NETWORKS["imagenet256_dit"]["width"] * 4
    # A vector of the small arrays, of which all are whole everywhere, is summed along one axis after the other.
    small, vector = by["all-reduce", ("data", "fsdp")].bytes, 2000
    assert summed + small == pytest.approx(split - stays + rows + gradient - split, abs=100) and split > 0.9 * gradient
    assert summed == pytest.approx(split - stays + rows, abs=vector)
    assert by["all-reduce", ("data",)].bytes == pytest.approx(split // 16, abs=100)
    assert by["all-reduce", ("data",)].sent == pytest.approx(2 * 63 / 64 * split / 16, abs=200)
    # Forward and again backward, where the product's other gradient needs it.
    assert split - stays <= by["all-gather", ("fsdp",)].bytes <= 2 * (split - stays) + stays / 4
    assert by["all-to-all", ("fsdp",)].bytes < stays / 16
