"""Checkpoints of a run: whole or not there, every byte verified, older ones in place of damaged ones."""

from jaxdiff.train.checkpoint.checkpointer import FOLDER, Checkpointer, Room, load_params

__all__ = ["FOLDER", "Checkpointer", "Room", "load_params"]
