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
def test_a_dit_fits_and_gathers_its_weights_twice():
    build, knobs = load(FOLDER / "imagenet256_dit.py"), {"batch": 256, "remat": "dots"}
    made = plan_one(build, knobs, topology("v5p:4x4x4"), "data=4,fsdp=16", name="dit", sample=False)
    assert made.fits
    sent = {(each.kind, each.axes): each for each in made.collectives}
    assert not [kind for kind, _ in sent if kind == "all-to-all"]
    # In bfloat16, forward and backward; vectors and small arrays are whole everywhere.
    params = sum(x.size for x in jax.tree.leaves(jax.eval_shape(build(**knobs).model.init, jax.random.key(0))))
    assert sent["all-gather", ("fsdp",)].bytes == pytest.approx(2 * 2 * params, rel=0.03)
