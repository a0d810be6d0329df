"""ControlNets of a pipeline: checked against its network, and added to it at scales that may follow the level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.guidance.base import Scale
from jaxdiff.levels import Level
from jaxdiff.networks import add_controls, controlled
from jaxdiff.text_to_image.prompts import Cond, Models, PipelineSpec

__all__ = ["check_controls", "check_hints", "control_names", "controlled_apply"]

# Conditions of a U-Net that its ControlNets don't take: the masked picture, and the distilled guidance.
OWN = "concat", "guidance"


def control_names(count: int) -> tuple[str, ...]:
    """The names of so many ControlNets among a pipeline's models, which are diffusers'."""
    return tuple(f"controlnet_{i}" if i else "controlnet" for i in range(count))


def check_controls(layout: PipelineSpec, models: Models, names: Sequence[str]) -> None:
    """Check ControlNets against the network of a pipeline.

    Args:
        layout: the kind of pipeline.
        models: its models.
        names: of the ControlNets among them.

    Raises:
        ValueError: the network has none, or one is for another network.
    """
    own = models.config[layout.network]
    if names and own["_class_name"] != "UNet2DConditionModel":
        raise ValueError(f"ControlNets are for a UNet2DConditionModel, got {own['_class_name']}")
    for name in names:
        config = models.config[name]
        if config["_class_name"] != "ControlNetModel":
            raise ValueError(f"a control must be a ControlNetModel, got {config['_class_name']}")
        fields = "block_out_channels", "cross_attention_dim", "layers_per_block", "addition_embed_type"
        for field in fields:
            mine, theirs = (_plain(c.get(field)) for c in (own, config))
            if field in own and field in config and mine != theirs:
                raise ValueError(f"{name} is not for this U-Net: its {field} is {theirs}, and the U-Net's is {mine}")
        factor = 2 ** (len(config.get("conditioning_embedding_out_channels", range(4))) - 1)
        if factor != models.apply["vae"].factor:
            raise ValueError(
                f"{name} takes hints {factor} times the size of its latents, and the autoencoder's pictures are "
                f"{models.apply['vae'].factor} times theirs"
            )


def check_hints(models: Models, names: Sequence[str], hints: Sequence[Array], shape: tuple[int, ...]) -> None:
    """Check the hints of ControlNets.

    Args:
        models: a pipeline's models.
        names: of the ControlNets among them.
        hints: one for each.
        shape: (B, height, width) of the pictures.

    Raises:
        ValueError: another number of hints, or another shape or dtype of one.
    """
    if len(hints) != len(names):
        raise ValueError(f"a pipeline of {len(names)} ControlNets takes as many hints, got {len(hints)}")
    for name, hint in zip(names, hints, strict=True):
        wanted = (*shape, models.config[name].get("conditioning_channels", 3))
        if hint.shape != wanted or not jnp.issubdtype(hint.dtype, jnp.floating):
            raise ValueError(
                f"hints of {name} must be floats in [0, 1] of shape {wanted}, got {hint.dtype}, {hint.shape}"
            )


def controlled_apply(
    models: Models, network: str, names: Sequence[str], scales: Scale | Sequence[Scale]
) -> Callable[[Level], Callable[..., Any]]:
    """Make the network with its ControlNets.

    Args:
        models: a pipeline's models.
        network: name of the U-Net.
        names: of the ControlNets.
        scales: of each, or one for all: a number, or a function of the level that returns one.

    Returns:
        level -> apply(params of all models, x, noise[B], cond with "hint", a tuple).

    Raises:
        ValueError: another number of scales.
    """
    each = list(scales) if isinstance(scales, Sequence) else [scales] * len(names)
    if len(each) != len(names):
        raise ValueError(f"{len(names)} ControlNets take one scale, or as many, got {len(each)}")

    def at(level: Level) -> Callable[..., Any]:
        numbers = [scale(level) if callable(scale) else scale for scale in each]
        control = add_controls([_without(models.apply[name]) for name in names], numbers)
        both = controlled(control, models.apply[network])

        def apply(params: Mapping[str, Any], x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
            own = {"controlnet": tuple(params[name] for name in names), "unet": params[network]}
            return both(own, x, noise, cond, **options)

        return apply

    return at


def _without(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A ControlNet that gets no conditions of the U-Net alone."""

    def control(params: Any, x: Array, noise: Array, cond: Cond, **options: Any) -> Any:
        return apply(params, x, noise, {k: v for k, v in cond.items() if k not in OWN}, **options)

    return control


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
