"""Training: a loss is a function here; networks and solvers are unknown."""

from jaxdiff.sharding import host_rows, make_mesh, shard_batch, shard_params
from jaxdiff.train.checkpoint import Checkpointer, load_params
from jaxdiff.train.freeze import join, split
from jaxdiff.train.goodput import Goodput
from jaxdiff.train.knobs import check_knobs, has_knobs, read_knobs, write_knobs
from jaxdiff.train.log import LineFile, metrics_file
from jaxdiff.train.loop import fit
from jaxdiff.train.optimizer import adafactor, adamw, muon, projected, restarting, skip_spikes
from jaxdiff.train.players import Game, Player, players
from jaxdiff.train.snapshots import Snapshots
from jaxdiff.train.state import TrainState, abstract, adopt, average, create, new_state
from jaxdiff.train.step import make_step, make_update
from jaxdiff.train.watchdog import Watchdog

__all__ = [
    "Checkpointer",
    "Game",
    "Goodput",
    "LineFile",
    "Player",
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
    "make_update",
    "metrics_file",
    "muon",
    "new_state",
    "players",
    "projected",
    "read_knobs",
    "restarting",
    "shard_batch",
    "shard_params",
    "skip_spikes",
    "split",
    "write_knobs",
]
