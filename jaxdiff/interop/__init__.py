"""Other projects' checkpoints: Hugging Face directories, read and written without PyTorch."""

from jaxdiff.interop.checkpoint import Loaded, architecture, load, save
from jaxdiff.interop.keys import flatten
from jaxdiff.interop.lora import load_lora, save_lora
from jaxdiff.interop.schedulers import Sampling, scheduler

__all__ = ["Loaded", "Sampling", "architecture", "flatten", "load", "load_lora", "save", "save_lora", "scheduler"]
