"""Other projects' checkpoints: Hugging Face directories, read and written without PyTorch."""

from jaxdiff.interop.checkpoint import Loaded, architecture, load, save
from jaxdiff.interop.efficientnet import efficientnet_lite0
from jaxdiff.interop.index import encode_prompts
from jaxdiff.interop.keys import flatten
from jaxdiff.interop.lora import load_lora, save_lora
from jaxdiff.interop.originals import load_original
from jaxdiff.interop.pipelines import Pipeline, text_to_image
from jaxdiff.interop.schedulers import Sampling, network_sampling, scheduler

__all__ = [
    "Loaded", "Pipeline", "Sampling", "architecture", "efficientnet_lite0", "encode_prompts", "flatten", "load",
    "load_lora", "load_original", "network_sampling", "save", "save_lora", "scheduler", "text_to_image",
]  # fmt: skip
