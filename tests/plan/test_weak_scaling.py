"""A fixed batch on each chip, from one chip to 1,024: its work does not grow, and what it sends is what theory says."""

import functools
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
SLICES = {1: "v5p:1x1x1", 1024: "v5p:8x8x16"}
EACH = 4  # examples on a chip


def plan(name, chips, mesh=""):
    """(bytes of all gradients, bytes of those that fsdp splits, the plan)."""
    slice = topology(SLICES[chips])
    where = parse_mesh(mesh, devices=slice.devices)
    # Made outside of the mesh it computes in float32, so that every gradient has 4 bytes.
    experiment = load(FOLDER / f"{name}.py")(batch=EACH * chips, **NETWORKS[name])
    params = train.state_shapes(experiment.model.init, experiment.training.optimizer, where).params
    sizes = [(4 * x.size, x.sharding.is_fully_replicated) for x in jax.tree.leaves(params)]
    made = estimate(train_step(experiment, where), slice, where, title=name, batch=experiment.training.batch)
    return sum(size for size, _ in sizes), sum(size for size, whole in sizes if not whole), made


def sent(made):
    return sum(each.sent for each in made.collectives)


@pytest.fixture(scope="module")
def one():
    return functools.cache(lambda name: plan(name, 1)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_of_the_state(one, name):
    gradient, _, many = plan(name, 1024)
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
    gradient, split, many = plan("imagenet256_dit", 1024, "fsdp=16")
    assert many.flops == pytest.approx(one("imagenet256_dit").flops, rel=0.02)
    assert many.memory.total < one("imagenet256_dit").memory.total and many.bytes < one("imagenet256_dit").bytes
    by = {(each.kind, each.axes): each for each in many.collectives}
    assert {kind for kind, _ in by} == {"all-gather", "reduce-scatter", "all-reduce"}
    summed = by["reduce-scatter", ("fsdp",)].bytes + by["all-reduce", ("fsdp",)].bytes
    assert summed == pytest.approx(split, abs=100) and split > 0.9 * gradient
    assert by["all-reduce", ("data",)].bytes == split // 16
    assert by["all-reduce", ("data",)].sent == pytest.approx(2 * 63 / 64 * split / 16)
    assert by["all-reduce", ("data", "fsdp")].bytes == pytest.approx(gradient - split, abs=100)
    # Forward and again backward, where the product's other gradient needs it.
    assert split <= by["all-gather", ("fsdp",)].bytes <= 2 * split
