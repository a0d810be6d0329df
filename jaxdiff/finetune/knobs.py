"""The knobs of fine-tuning: of the network to begin with, and of what it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxdiff.options import Count, File, Help, Kept, Natural, Source, absolute

__all__ = ["Network", "Pictures"]

_Hints = Annotated[str, Kept(lambda text: absolute(text) if text.endswith(".npz") else text)]


@dataclass(frozen=True)
class Network:
    """The network to begin with, and what of it is trained."""

    directory: Annotated[
        File,
        Help("a Hugging Face folder of a diffusion network, or of a pipeline that has one; or a file of either."),
    ]
    mode: Annotated[
        Literal["full", "lora", "control"],
        Help(
            "full trains the network's own parameters; lora keeps them and trains low-rank adapters; control trains a "
            "ControlNet of a conditional U-Net."
        ),
    ] = "full"
    distill: Annotated[
        Literal["none", "consistency", "guidance"],
        Help(
            "into what the network is distilled, with itself as the teacher: consistency, a network of 1 to 8 steps, "
            "with --mode lora an LCM-LoRA; guidance, a network that is given the guidance scale."
        ),
    ] = "none"
    max_guidance: Annotated[
        float, Help("the largest scale of a network that is given the guidance scale, in distillation.")
    ] = 8.0
    only: Annotated[
        str,
        Help(
            "a regular expression for dotted paths: what is trained or adapted; by default everything, or the "
            "projections of attention."
        ),
    ] = ""
    rank: Annotated[Count, Help("of the adapters.")] = 8
    scale: Annotated[float, Help("of the adapters' part, alpha / rank.")] = 1.0
    control: Annotated[
        File, Help("folder of a ControlNet to begin with; by default one that begins as the U-Net's encoder.")
    ] = ""
    vae: Annotated[
        File, Help("folder or file of the autoencoder whose latents the network is of; a pipeline's is found.")
    ] = ""
    base: Annotated[
        File,
        Help("folder of a pipeline that gives what the other lacks; of a checkpoint in one file the tokenizers."),
    ] = ""


@dataclass(frozen=True)
class Pictures:
    """What the network learns from."""

    source: Source = "fashion_mnist"
    size: Annotated[Natural, Help("of the images; by default as the network's config and the autoencoder have it.")] = 0
    hints: Annotated[
        _Hints,
        Help(
            'what a ControlNet gets: edges of the images, or an .npz file of "hint", uint8 [N, H, W, C], one for '
            "each image of the data."
        ),
    ] = "edges"
    prompt: Annotated[
        str,
        Help(
            'for a pipeline: the text of a class, whose name stands for {}, such as "a photo of a {}"; an empty '
            "text is the null condition."
        ),
    ] = ""
    cond: Annotated[
        File,
        Help(
            'in place of a prompt an .npz file of the condition by its names ("tokens", "vector"): one row for '
            "each class of the data and a last one for the null condition."
        ),
    ] = ""
