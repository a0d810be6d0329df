"""The order and names of the layers of EDM's and EDM2's U-Nets, whose names contain the size of the layer's images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from jax import Array

from jaxdiff.networks.apply import check_cond, check_spatial, cond_shapes
from jaxdiff.networks.layers import check_divisible
from jaxdiff.networks.song_layers import check_attention


class SizedUNet(Protocol):
    """A U-Net whose layers' names contain the size of their images.

    Attributes:
        resolution: edge of the images.
        widths: channels by level; level i works at resolution / 2^i.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: sizes with attention after each residual block.
        num_classes: classes of cond["label"]; None: off.
    """

    resolution: int
    widths: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    num_classes: int | None


class Stage(NamedTuple):
    """A layer of the encoder or the decoder.

    Attributes:
        at: encoder or decoder, and size, e.g. "enc.32x32".
        part: the rest of the layer's name, e.g. "block0".
        level: 0 is the finest.
        width: output channels; None: those of the input.
        direction: "down" or "up" halves or doubles the spatial axes; None keeps them.
        attend: whether attention follows.
        block: index of a residual block within its level; None for other layers.
    """

    at: str
    part: str
    level: int
    width: int | None = None
    direction: str | None = None
    attend: bool = False
    block: int | None = None

    @property
    def name(self) -> str:
        """The layer's key, e.g. "enc.32x32_block0"."""
        return f"{self.at}_{self.part}"


def encoder(net: SizedUNet, dims: int) -> Iterator[Stage]:
    """Yield the layers from the input to the bottom, beginning with a convolution; each output is a skip.

    Args:
        net: the network.
        dims: number of spatial axes.
    """
    for level, width in enumerate(net.widths):
        size = net.resolution >> level
        at = _at("enc", size, dims)
        yield Stage(at, "conv", level) if level == 0 else Stage(at, "down", level, direction="down")
        for i in range(net.num_blocks):
            yield Stage(at, f"block{i}", level, width, attend=size in net.attention, block=i)


def decoder(net: SizedUNet, dims: int) -> Iterator[Stage]:
    """Yield the layers from the bottom to the output; those with a block index take a skip, the last skip first.

    Args:
        net: the network.
        dims: number of spatial axes.
    """
    for level, width in reversed(list(enumerate(net.widths))):
        size = net.resolution >> level
        at = _at("dec", size, dims)
        if level == len(net.widths) - 1:
            yield Stage(at, "in0", level, width, attend=True)
            yield Stage(at, "in1", level, width)
        else:
            yield Stage(at, "up", level, direction="up")
        for i in range(net.num_blocks + 1):
            yield Stage(at, f"block{i}", level, width, attend=size in net.attention, block=i)


def check(
    net: SizedUNet,
    x: Array,
    noise: Array,
    cond: Mapping[str, Array] | None,
    *,
    head_dim: int = 1,
    augment_dim: int | None = None,
) -> Mapping[str, Any]:
    """Check a network's inputs, and the attention of its levels.

    Args:
        net: the network.
        x: [B, *spatial, C], its input.
        noise: float[B], its noise input.
        cond: its conditions.
        head_dim: channels per attention head.
        augment_dim: length of cond["augment"]; None: off.

    Returns:
        the conditions, or an empty dict for None.

    Raises:
        ValueError: an input is misshapen, a condition is missing or unknown, or the levels can't have the attention.
    """
    check_attention([net.resolution >> i for i in range(len(net.widths))], net.widths, net.attention, head_dim)
    check_spatial(x)
    check_divisible(x.shape, 2 ** (len(net.widths) - 1))
    return check_cond(x, noise, cond, cond_shapes(x, cond, num_classes=net.num_classes, augment_dim=augment_dim))


def _at(half: str, size: int, dims: int) -> str:
    return f"{half}." + "x".join([str(size)] * dims)
