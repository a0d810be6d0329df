"""Names of U-Net blocks: OpenAI's and latent diffusion's number all entries of the encoder and of the decoder,
diffusers' number levels and blocks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["RESNET", "WHOLE", "unet_blocks", "unet_layout"]

# diffusers' names of the layers in residual blocks, and of the layers outside of blocks -> the original names.
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def unet_blocks(levels: int, blocks: int, attention: Collection[int]) -> dict[str, str]:
    """Map diffusers' names of a U-Net's blocks to the original names.

    Args:
        levels: number of levels.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: levels with attention, counted from the finest.
    """
    bottom, period = levels - 1, blocks + 1
    names = {
        f"mid_block.{kind}": f"middle_block.{i}" for i, kind in enumerate(("resnets.0", "attentions.0", "resnets.1"))
    }
    for level in range(levels):
        for i in range(period):
            entry = f"input_blocks.{1 + level * period + i}"
            if i < blocks:
                names[f"down_blocks.{level}.resnets.{i}"] = f"{entry}.0"
                names[f"down_blocks.{level}.attentions.{i}"] = f"{entry}.1"
            else:
                names[f"down_blocks.{level}.downsamplers.0"] = f"{entry}.0"
            entry = f"output_blocks.{(bottom - level) * period + i}"
            names[f"up_blocks.{bottom - level}.resnets.{i}"] = f"{entry}.0"
            names[f"up_blocks.{bottom - level}.attentions.{i}"] = f"{entry}.1"
        names[f"up_blocks.{bottom - level}.upsamplers.0"] = f"{entry}.{2 if level in attention else 1}"
    return names


def unet_layout(names: Iterable[str]) -> tuple[int, int, str]:
    """Infer a U-Net's size from the original names of its tensors.

    Returns:
        (levels, blocks per level, `resample` as in `UNet`: "conv", "resblock" or "pool").

    Raises:
        ValueError: the decoder does not mirror the encoder.
    """
    names = list(names)
    entries: dict[str, set[int]] = {"input": set(), "output": set()}
    up: dict[int, str] = {}
    for name in names:
        match = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(\w+)", name)
        if match is None:
            continue
        entries[match[1]].add(int(match[2]))
        if match[1] == "output" and int(match[3]) > 0 and match[4] in ("conv", "in_layers"):
            up[int(match[2])] = {"conv": "conv", "in_layers": "resblock"}[match[4]]
    total = 1 + max(entries["output"], default=-1)
    if total > len(names):
        raise ValueError(f"{total} output_blocks are named, and there are {len(names)} tensors")
    # Resampling without parameters has entries in the encoder without tensors.
    silent = set(range(total)) - entries["input"]
    if up:
        blocks, levels, resample = min(up), 1 + len(up), up[min(up)]
    elif silent:
        blocks, levels, resample = min(silent) - 1, 1 + len(silent), "pool"
    else:
        blocks, levels, resample = total - 1, 1, "conv"
    if total != levels * (blocks + 1) or blocks < 1:
        raise ValueError(f"input_blocks and output_blocks don't mirror each other: {total} entries, {levels} levels")
    return levels, blocks, resample
