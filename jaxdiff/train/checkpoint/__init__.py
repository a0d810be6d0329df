"""Checkpoints of a run: atomic, with every byte verified; older ones replace damaged ones."""

from jaxdiff.train.checkpoint.checkpointer import FOLDER, Checkpointer, Room, load_params

__all__ = ["FOLDER", "Checkpointer", "Room", "load_params"]
