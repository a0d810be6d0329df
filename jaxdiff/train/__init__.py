"""Training: a loss is a function here; networks and solvers are unknown."""

from jaxdiff.sharding import host_rows, make_mesh, shard_batch, shard_params
from jaxdiff.train.checkpoint import Checkpointer, load_params
from jaxdiff.train.freeze import join, split
from jaxdiff.train.knobs import check_knobs, has_knobs, read_knobs, write_knobs
from jaxdiff.train.loop import fit, metrics_file
from jaxdiff.train.optimizer import adafactor, adamw, muon, projected
from jaxdiff.train.snapshots import Snapshots
from jaxdiff.train.state import TrainState, abstract, adopt, average, create
from jaxdiff.train.step import make_step

__all__ = [
    "Checkpointer",
    "Snapshots",
    "TrainState",
    "abstract",
    "adafactor",
    "adamw",
    "adopt",
    "average",
    "check_knobs",
    "create",
    "fit",
    "has_knobs",
    "host_rows",
    "join",
    "load_params",
    "make_mesh",
    "make_step",
    "metrics_file",
    "muon",
    "projected",
    "read_knobs",
    "shard_batch",
    "shard_params",
    "split",
    "write_knobs",
]
