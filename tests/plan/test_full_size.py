"""Two of our experiments at their full size, planned as in `docs/plan.md`: they fit, and send what theory says."""

from pathlib import Path

import jax
import pytest

from jaxdiff.cli.plan import plan_one
from jaxdiff.experiment import load
from jaxdiff.plan import topology

pytest.importorskip("libtpu")
FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slice", "mesh", "knobs"),
    [
        ("imagenet256_dit", "v5p:4x4x4", "data=4,fsdp=16", {"batch": 256, "remat": "dots"}),
        ("text_mmdit", "v5p:8x8x16", "data=16,fsdp=64", {"batch": 4096, "remat": "dots", "moments": "bfloat16"}),
    ],
)
def test_fits_and_gathers_its_weights_twice(name, slice, mesh, knobs):
    build = load(FOLDER / f"{name}.py")
    made = plan_one(build, knobs, topology(slice), mesh, name=name, sample=False)
    assert made.fits
    sent = {(each.kind, each.axes): each for each in made.collectives}
    assert not [kind for kind, _ in sent if kind == "all-to-all"]
    # In bfloat16, forward and backward; vectors and small arrays are whole everywhere.
    params = sum(x.size for x in jax.tree.leaves(jax.eval_shape(build(**knobs).init, jax.random.key(0))))
    assert sent["all-gather", ("fsdp",)].bytes == pytest.approx(2 * 2 * params, rel=0.03)
