"""Other projects' checkpoints: Hugging Face directories, read and written without PyTorch."""

from jaxdiff.interop.adapters.ip_adapter import IPAdapter, load_ip_adapter
from jaxdiff.interop.adapters.lora import load_lora, save_lora
from jaxdiff.interop.checkpoint import load, save
from jaxdiff.interop.formats.keys import flatten
from jaxdiff.interop.models.architecture import Pretrained
from jaxdiff.interop.models.classes import architecture
from jaxdiff.interop.models.efficientnet import efficientnet_lite0
from jaxdiff.interop.models.lpips import lpips
from jaxdiff.interop.models.originals import load_original
from jaxdiff.interop.schedulers import Scheduler, network_scheduler, scheduler

__all__ = [
    "IPAdapter", "Pretrained", "Scheduler", "architecture", "efficientnet_lite0", "flatten", "load", "load_ip_adapter",
    "load_lora", "load_original", "lpips", "network_scheduler", "save", "save_lora", "scheduler",
]  # fmt: skip
