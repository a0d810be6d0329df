"""Plans: estimates of an experiment's memory and speed on named TPUs or GPUs, by compiling it on this machine."""

from jaxdiff.plan import sweep
from jaxdiff.plan.chips import CHIPS
from jaxdiff.plan.compiling import sampling, train_step
from jaxdiff.plan.report import Estimate, as_json, estimate, table
from jaxdiff.plan.topologies import Topology, topology

__all__ = [
    "CHIPS",
    "Estimate",
    "Topology",
    "as_json",
    "estimate",
    "sampling",
    "sweep",
    "table",
    "topology",
    "train_step",
]
