"""Training: a loss is a function here; networks and solvers are unknown."""

from jaxdiff.sharding import host_rows, make_mesh, shard_batch, shard_params
from jaxdiff.train.checkpoint import Checkpointer, load_params
from jaxdiff.train.freeze import join, split
from jaxdiff.train.goodput import Goodput
from jaxdiff.train.knobs import check_knobs, has_knobs, read_knobs, write_knobs
from jaxdiff.train.log import LineFile, metrics_file
from jaxdiff.train.loop import fit
from jaxdiff.train.optimizer import adafactor, adamw, muon, projected, skip_spikes
from jaxdiff.train.snapshots import Snapshots
from jaxdiff.train.state import TrainState, abstract, adopt, average, create
from jaxdiff.train.step import make_step
from jaxdiff.train.watchdog import Watchdog

__all__ = [
    "Checkpointer",
    "Goodput",
    "LineFile",
    "Snapshots",
    "TrainState",
    "Watchdog",
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
    "skip_spikes",
    "split",
    "write_knobs",
]
