"""Training of any loss function; independent of networks and solvers."""

from jaxdiff.sharding import make_mesh, process_indices, shard_batch, shard_params
from jaxdiff.train.checkpoint import Checkpointer, load_params
from jaxdiff.train.freeze import combine, partition
from jaxdiff.train.goodput import Goodput
from jaxdiff.train.knobs import check_knobs, has_knobs, read_knobs, write_knobs
from jaxdiff.train.log import LineFile, jsonl_logger
from jaxdiff.train.loop import fit
from jaxdiff.train.optimizer import adafactor, adamw, by_part, muon, restarting, skip_spikes, with_projection
from jaxdiff.train.players import Game, Player, players
from jaxdiff.train.snapshots import Snapshots
from jaxdiff.train.state import TrainState, ema_params, init_state, new_state, state_from_params, state_shapes
from jaxdiff.train.step import check_microbatches, make_step, make_update
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
    "adafactor",
    "adamw",
    "by_part",
    "check_knobs",
    "check_microbatches",
    "combine",
    "ema_params",
    "fit",
    "has_knobs",
    "init_state",
    "jsonl_logger",
    "load_params",
    "make_mesh",
    "make_step",
    "make_update",
    "muon",
    "new_state",
    "partition",
    "players",
    "process_indices",
    "read_knobs",
    "restarting",
    "shard_batch",
    "shard_params",
    "skip_spikes",
    "state_from_params",
    "state_shapes",
    "with_projection",
    "write_knobs",
]
