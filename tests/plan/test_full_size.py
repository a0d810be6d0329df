"""One of our experiments at its full size, planned as in `docs/plan.md`: it fits, and sends what theory says."""

from pathlib import Path

import jax
import pytest

from jaxdiff.cli.plan import plan_one
from jaxdiff.plan import topology
from jaxdiff.recipe import load

pytest.importorskip("libtpu")
FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
def test_a_dit_fits_and_gathers_its_weights_twice_but_those_that_modulate():
    build, knobs = load(FOLDER / "imagenet256_dit.py"), {"batch": 256, "remat": "dots"}
    made = plan_one(build, knobs, topology("v5p:4x4x4"), "data=4,fsdp=16", name="dit", sample=False)
    assert made.fits
    sent = {(each.kind, each.axes): each for each in made.collectives}
    # In bfloat16, forward and backward; vectors and small arrays are whole everywhere.
    params = jax.eval_shape(build(**knobs).model.init, jax.random.key(0))
    sizes = {jax.tree_util.keystr(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
    gathered = sum(size for name, size in sizes.items() if "norm1.linear" not in name)
    assert gathered < 0.7 * sum(sizes.values())
    assert sent["all-gather", ("fsdp",)].bytes == pytest.approx(2 * 2 * gathered, rel=0.03)
    # The shifts, scales and gates of the examples move instead.
    assert sent["all-to-all", ("fsdp",)].bytes < 0.01 * sent["all-gather", ("fsdp",)].bytes
    assert [axes for kind, axes in sent if kind == "all-to-all"] == [("fsdp",)]
