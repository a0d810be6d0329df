"""What of a network is trained: its parameters, adapters, or a ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import interop, train
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.finetune.knobs import Network
from jaxdiff.finetune.origin import Origin, takes_scale
from jaxdiff.interop.models.conditional_unets import control_config
from jaxdiff.interop.sources import read_fields
from jaxdiff.networks import lora
from jaxdiff.networks.controlnet import controlled, copy_encoder
from jaxdiff.seeds import seed_key
from jaxdiff.types import Params

__all__ = ["Tuned", "tune"]

NEW = r"^time_embedding\.cond_proj"  # embeds the guidance scale
WIDTHS = (16, 32, 96, 256)  # of a ControlNet's embedding of its hint


class Tuned(NamedTuple):
    """What of a network is trained, and how that is read, used and written.

    Attributes:
        init: key -> the trained parameters.
        apply: ((trained, base), x, noise, cond) -> F.
        base: parameters that are not trained.
        export: a name -> (trained, folder) writes it for other projects.
        pretrained: reads the trained parameters; None: they begin with `init`.
    """

    init: Callable[[Any], Any]
    apply: Callable[..., Any]
    base: Any
    export: dict[str, Callable[[Any, Path], Any]]
    pretrained: Callable[[], Any] | None = None


def tune(origin: Origin, network: Network, *, seed: int, shape: tuple[int, ...], hint: tuple[int, ...] = ()) -> Tuned:
    """Make what `network.mode` trains.

    Args:
        origin: the network.
        network: its knobs.
        seed: of a ControlNet's new parameters.
        shape: of one example, as the network gets it.
        hint: shape of a ControlNet's hint.

    Raises:
        UserError: a ControlNet that does not fit the network or the hints.
    """
    if network.mode == "control":
        return _control(origin, network.control, seed=seed, shape=shape, hint=hint)
    if network.mode == "lora":
        return _adapters(origin, network)
    return _parameters(origin, network.only)


def _parameters(origin: Origin, only: str) -> Tuned:
    """Train the network's parameters, or those that `only` finds."""
    built = interop.architecture(origin.config, compute_dtype())
    given_scale = origin.distilled and not takes_scale(read_fields(origin.folder))
    only = f"(?:{only})|{NEW}" if only and given_scale else only

    def read() -> Any:
        params = origin.read(jnp.float32).params
        return _with_new(built, params) if given_scale else params

    # Everything is read when the run begins; a part needs the rest whenever it runs.
    base = train.partition(read(), only)[1] if only else {}

    def part(params: Params) -> Any:
        return train.partition(params, only)[0] if only else params

    def export(params: Params, out: Path) -> None:
        interop.save(interop.Pretrained(built.apply, train.combine(params, base), origin.config), out)

    return Tuned(
        init=lambda key: part(built.init(key)),
        apply=lambda params, *args, **options: built.apply(train.combine(*params), *args, **options),
        base=base,
        export={"model": export},
        pretrained=lambda: part(read()),
    )


def _with_new(built: Any, params: Params) -> Any:
    """Add the parameters that embed the guidance scale; they are zero, so that the network stays what it is."""
    new, _ = train.partition(jax.eval_shape(built.init, jax.random.key(0)), NEW)
    return train.combine(params, jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), new))


def _adapters(origin: Origin, network: Network) -> Tuned:
    """Train adapters of the kernels that `only` finds; the network stays as it was read."""
    loaded = interop.load(origin.folder, dtype=compute_dtype(), place=origin.place)
    name = "unet" if origin.kind.startswith("UNet") else "transformer"
    shapes, targets, scale = jax.eval_shape(lambda: loaded.params), network.only or lora.ATTENTION, network.scale

    def export(params: Params, out: Path) -> None:
        interop.save(loaded._replace(params=jax.jit(lora.merge)(loaded.params, params, scale)), out)

    def export_lora(params: Params, out: Path) -> None:
        interop.save_lora(out, {name: params}, {name: loaded}, scale=scale)

    return Tuned(
        init=lambda key: lora.init(key, shapes, network.rank, targets=targets),
        apply=lora.adapted(loaded.apply, scale),
        base=loaded.params,
        export={"model": export, "lora": export_lora},
    )


def _control(origin: Origin, begin: str, *, seed: int, shape: tuple[int, ...], hint: tuple[int, ...]) -> Tuned:
    """Train a ControlNet of a conditional U-Net, which stays as it was read."""
    loaded = interop.load(origin.folder, dtype=compute_dtype(), place=origin.place)
    if origin.kind != "UNet2DConditionModel":
        raise UserError(f"a ControlNet is for a UNet2DConditionModel, got {origin.kind}")
    config = read_fields(begin) if begin else _control_config(loaded.config, shape, hint)
    if config["_class_name"] != "ControlNetModel":
        raise UserError(f"{begin} must hold a ControlNetModel, got {config['_class_name']}")
    _check_control(loaded.config, config, shape, hint)
    built = interop.architecture(config, compute_dtype())
    steered = controlled(built.apply, loaded.apply)

    def read() -> Any:
        if begin:
            return interop.load(begin, param_dtype=jnp.float32, place=origin.place).params
        copied = copy_encoder(built.init(seed_key(seed)), loaded.params)
        return jax.tree.map(lambda a: a.astype(jnp.float32), copied)

    return Tuned(
        init=built.init,
        apply=lambda params, *args, **options: steered({"controlnet": params[0], "unet": params[1]}, *args, **options),
        base=loaded.params,
        export={"model": lambda params, out: interop.save(interop.Pretrained(built.apply, params, config), out)},
        pretrained=read,
    )


def _control_config(config: Mapping[str, Any], shape: tuple[int, ...], hint: tuple[int, ...]) -> dict[str, Any]:
    # Each width after the first halves the hint.
    widths = WIDTHS[: (hint[0] // shape[0]).bit_length()]
    fields = {"conditioning_channels": hint[-1], "conditioning_embedding_out_channels": widths}
    return control_config(config, **fields)


def _check_control(
    unet: Mapping[str, Any], control: Mapping[str, Any], shape: tuple[int, ...], hint: tuple[int, ...]
) -> None:
    """Raise UserError unless a ControlNet fits its U-Net and the hints."""
    channels = [config.get("in_channels", 4) for config in (unet, control)]
    own = min(shape[-1], unet.get("out_channels", 4))
    if channels != [own, own]:
        raise UserError(
            f"U-Net and ControlNet must take x alone, {own} channels; theirs are {channels[0]} and {channels[1]}"
        )
    factor = 2 ** (len(control.get("conditioning_embedding_out_channels", WIDTHS)) - 1)
    expected = (factor * shape[0], factor * shape[1], control.get("conditioning_channels", 3))
    if hint != expected:
        raise UserError(f"the ControlNet takes hints of shape {expected}, got {hint}")
