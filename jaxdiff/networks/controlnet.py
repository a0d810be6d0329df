"""ControlNet: a copy of a U-Net's encoder that conditions the U-Net on an image (Zhang et al. 2023, arXiv:2302.05543).

Parameters are named like those of diffusers' ControlNetModel; see `interop.formats.keys` for the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.apply import Shape
from jaxdiff.networks.layers import Conv, space_to_depth
from jaxdiff.networks.unet import UNet

# A number, one number per residual, or a function of the network's noise input [B] that returns a number or [B].
ControlScale = float | Array | Sequence[float] | Callable[[Array], float | Array]

# Conditions by which adapters steer a U-Net, which are none of its ControlNets'.
OF_UNET = "features", "image_prompt", "image_scale"


class ControlNet(UNet):
    """The encoder of a U-Net with an image, the hint, as additional input; returns residuals for another U-Net.

    The attributes of the decoder (`out_channels`, `learned_variance`) have no effect.

    Attributes:
        hint_channels: of cond["hint"].
        hint_widths: channels of the hint's embedding; the first is at the hint's size, each next at half the size.
        pooled: average the residuals over the spatial axes.
    """

    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    pooled: bool = False

    @nn.compact
    def __call__(  # type: ignore[override]
        self, x: Array, noise: Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> tuple[Array, ...]:
        """Compute the residuals.

        Args:
            x: [B, *spatial, C], the U-Net's input.
            noise: float[B], the U-Net's noise input.
            cond: the U-Net's conditions and "hint" [B, *2^(hint_widths - 1) spatial, hint_channels].
            train: apply dropout; needs the random key "dropout".

        Returns:
            one residual for each skip of the U-Net, from the input on, and one for its bottom, in the dtype of the
            computation; zero at initialization.

        Raises:
            ValueError: as for `UNet`.
        """
        cond = self._check(x, noise, cond)
        h, skips, _ = self._encode(x, noise, cond, train, hint=self._embedded(cond["hint"]))
        names = [*(f"controlnet_down_blocks.{i}" for i in range(len(skips))), "controlnet_mid_block"]
        values = [
            self._conv(v.shape[-1], name, size=1, zero=True)(v) for name, v in zip(names, [*skips, h], strict=True)
        ]
        if self.pooled:
            values = [v.mean(tuple(range(1, v.ndim - 1)), keepdims=True) for v in values]
        return tuple(values)

    def _embedded(self, hint: Array) -> Array:
        def conv(h: Array, features: int, name: str, **options) -> Array:
            return Conv(features, dtype=self.dtype, name=f"controlnet_cond_embedding.{name}", **options)(h)

        h = nn.silu(conv(space_to_depth(hint, self.patch_size), self.hint_widths[0], "conv_in"))
        for i, (width, next_width) in enumerate(zip(self.hint_widths[:-1], self.hint_widths[1:], strict=True)):
            h = nn.silu(conv(h, width, f"blocks.{2 * i}"))
            h = nn.silu(conv(h, next_width, f"blocks.{2 * i + 1}", stride=2))
        return conv(h, self.widths[0], "conv_out", zero=True)

    def _shapes(self, x: Array, cond: Mapping[str, Any]) -> dict[str, Shape]:
        factor = 2 ** (len(self.hint_widths) - 1)
        hint = (x.shape[0], *(factor * size for size in x.shape[1:-1]), self.hint_channels)
        return super()._shapes(x, cond) | {"hint": hint}


def control_of(unet: UNet, *, hint_channels: int = 3, hint_widths: tuple[int, ...] = (16,)) -> ControlNet:
    """Make a ControlNet for a U-Net.

    Args:
        unet: the U-Net.
        hint_channels: see `ControlNet`.
        hint_widths: see `ControlNet`; one width is for a hint of the samples' size.

    Returns:
        the module, with the U-Net's attributes.
    """
    shared = {f.name: getattr(unet, f.name) for f in fields(UNet) if f.name not in ("parent", "name", "image_ranks")}
    return ControlNet(**shared, hint_channels=hint_channels, hint_widths=hint_widths)


def copy_encoder(control: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Any]:
    """Initialize a ControlNet with the weights of a U-Net (Zhang et al. 2023, sec. 3.1).

    Args:
        control: a ControlNet's parameters.
        unet: the U-Net's.

    Returns:
        the ControlNet's parameters; those that the U-Net also has are copies of the U-Net's.

    Raises:
        ValueError: the shapes of the U-Net's encoder differ.
    """
    shared = {name: jax.tree.map(jnp.copy, unet[name]) for name in control if name in unet}
    if jax.tree.map(jnp.shape, shared) != jax.tree.map(jnp.shape, {name: control[name] for name in shared}):
        raise ValueError("the ControlNet is not one for this U-Net: their encoders' parameters have other shapes")
    return {**control, **shared}


def controlled(control: Callable[..., Any], unet: Callable[..., Any], scale: ControlScale = 1.0) -> Callable[..., Any]:
    """Return a U-Net and its ControlNet as one network.

    To train the ControlNet alone, differentiate `lambda p: loss({"controlnet": p, "unet": frozen}, ...)`.

    Args:
        control: the ControlNet's apply, or that of several by `add_controls`.
        unet: the U-Net's.
        scale: factor of the residuals: one number, or one per residual (from the input to the bottom); 0 is off. A
            scale that follows the noise level is a function of the networks' noise input, noise[B] -> a number or [B].

    Returns:
        apply(params, x, noise, cond, *, key=None) with params {"controlnet": ..., "unet": ...}. Only the ControlNet
        gets cond["hint"], and only the U-Net what adapters need; both networks get the other conditions.

    Raises:
        ValueError: when apply is called, scale has neither one number nor one per residual or, of a function, per
            example.
    """

    @wraps(unet)
    def apply(params, x, noise, cond, *, key=None):
        keys = (None, None) if key is None else jax.random.split(key)
        given = {name: value for name, value in cond.items() if name not in OF_UNET}
        residuals = scale_residuals(control(params["controlnet"], x, noise, given, key=keys[0]), scale, noise)
        both = {name: value for name, value in cond.items() if name != "hint"}
        return unet(params["unet"], x, noise, {**both, "residuals": residuals}, key=keys[1])

    return apply


def add_controls(
    controls: Sequence[Callable[..., Any]], scales: Sequence[ControlScale] | None = None
) -> Callable[..., Any]:
    """Return several ControlNets of a U-Net as one, which returns the sum of their residuals.

    Args:
        controls: their applies.
        scales: of each, as for `controlled`; None: 1.

    Returns:
        apply(params, x, noise, cond, *, key=None) -> residuals, with a tuple of parameters and a tuple of hints in
        cond["hint"]; for `controlled`.

    Raises:
        ValueError: there is none, or another number of scales or, when apply is called, of parameters or hints.
    """
    scales = (1.0,) * len(controls) if scales is None else scales
    if not controls or len(scales) != len(controls):
        raise ValueError(f"several ControlNets need a scale for each, got {len(controls)} and {len(scales)} scales")

    def apply(params, x, noise, cond, *, key=None):
        counts = {len(controls), len(params), len(cond["hint"])}
        if len(counts) > 1:
            raise ValueError(
                f"{len(controls)} ControlNets take as many parameters and hints, got {len(params)} and "
                f"{len(cond['hint'])}"
            )
        total = None
        for i, (control, scale) in enumerate(zip(controls, scales, strict=True)):
            own = None if key is None else jax.random.fold_in(key, i)
            residuals = control(params[i], x, noise, {**cond, "hint": cond["hint"][i]}, key=own)
            residuals = scale_residuals(residuals, scale, noise)
            total = residuals if total is None else tuple(a + b for a, b in zip(total, residuals, strict=True))
        return total

    return apply


def scale_residuals(residuals: Sequence[Array], scale: ControlScale, noise: Array) -> tuple[Array, ...]:
    """Multiply what steers a U-Net by a scale.

    Args:
        residuals: arrays [B, ...].
        scale: see `controlled`.
        noise: float[B], the network's noise input.

    Raises:
        ValueError: another shape of the scale.
    """
    scales = jnp.asarray(scale(noise) if callable(scale) else scale)
    kind, count = ("example", len(noise)) if callable(scale) else ("residual", len(residuals))
    if scales.shape not in ((), (count,)):
        raise ValueError(f"scale must be one number or {count}, one per {kind}, got shape {scales.shape}")
    if callable(scale) and scales.ndim:
        return tuple(r * scales.astype(r.dtype).reshape(-1, *(1,) * (r.ndim - 1)) for r in residuals)
    each = jnp.broadcast_to(scales, len(residuals))
    return tuple(r * s.astype(r.dtype) for r, s in zip(residuals, each, strict=True))
