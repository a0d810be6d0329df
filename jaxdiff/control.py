"""A trained run of ours that is steered by a picture: by a ControlNet or a T2I-Adapter, beside frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdiff import networks, train
from jaxdiff.conditions import Condition
from jaxdiff.conditions.base import unaugmented
from jaxdiff.experiment import Experiment, Model, UserError
from jaxdiff.pretrained import open_run
from jaxdiff.recipe import load_run
from jaxdiff.seeds import seed_key
from jaxdiff.types import Params

__all__ = ["Kind", "load_base", "of_run"]

Kind = Literal["controlnet", "adapter"]


def load_base(path: str) -> Experiment:
    """Load the experiment of a run that shall be steered.

    Args:
        path: its folder, or the name of a run of the package.

    Raises:
        UserError: its network is no plain U-Net in pixels.
    """
    experiment = load_run(open_run(Path(path)))
    model, condition = experiment.model, experiment.condition
    alone = model.frozen is None and model.network_key is None
    plain = type(model.network) is networks.UNet and alone and not model.learned_variance
    if not plain or condition.augment is not unaugmented or "hint" in condition.spec:
        raise UserError(
            f"what is steered is a networks.UNet without a text encoder, an autoencoder, a learned variance or a hint; "
            f"{path} has another"
        )
    return experiment


def of_run(
    path: str, base: Experiment, condition: Condition, kind: Kind, *, seed: int, mesh: Mesh | None = None
) -> tuple[Model, Condition]:
    """Make the model that steers a run, whose own weights are frozen.

    Args:
        path: the run's folder, or the name of a run of the package.
        base: its experiment.
        condition: its condition with a hint of the samples' size, see `conditions.hint`.
        kind: a ControlNet, which begins with the run's encoder and is evaluated at every step (Zhang et al. 2023,
            arXiv:2302.05543), or an adapter, evaluated once per picture (Mou et al. 2023, arXiv:2302.08453).
        seed: of new parameters.
        mesh: where the frozen weights lie; None is the default device.

    Returns:
        the model, with frozen {"unet"}, and its condition; at initialization the model is the run's.
    """
    unet, frozen = base.model.network, {"unet": train.load_params(open_run(Path(path)), "ema", mesh=mesh)}
    make = _controlnet if kind == "controlnet" else _adapter
    init, apply, condition = make(unet, base, condition)

    def pretrained() -> Any:
        made = init(seed_key(seed))
        if kind == "adapter":
            return made
        return jax.tree.map(lambda a: a.astype(jnp.float32), networks.copy_encoder(made, frozen["unet"]))

    model = replace(
        base.model, init=init, apply=apply, frozen=frozen, pretrained=pretrained, export={}, network=None
    )  # fmt: skip
    return model, condition


Made = tuple[Callable[..., Any], Callable[..., Any], Condition]  # init, apply of (trained, frozen), condition


def _controlnet(unet: Any, base: Experiment, condition: Condition) -> Made:
    network = networks.control_of(unet, hint_channels=condition.spec["hint"].shape[-1])
    steered = networks.controlled(networks.as_apply(network), networks.as_apply(unet))

    def init(key: Any) -> Any:
        return networks.init(network, key, jnp.zeros((1, *base.medium.shape)), condition.zeros())

    def apply(params: Params, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
        trained, frozen = params
        return steered({"controlnet": trained, "unet": frozen["unet"]}, x, noise, cond, **options)

    return init, apply, condition


def _adapter(unet: Any, base: Experiment, condition: Condition) -> Made:
    network, plain = networks.adapter_of(unet), networks.as_apply(unet)

    def init(key: Any) -> Any:
        return jax.jit(network.init)(key, condition.zeros()["hint"])["params"]

    def apply(params: Params, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
        return plain(params[1]["unet"], x, noise, cond, **options)

    def encode(params: Params, cond: Any) -> Any:
        """The hint's features: once per picture, since samplers encode before they take steps."""
        rest = {name: value for name, value in cond.items() if name != "hint"}
        return {**rest, "features": network.apply({"params": params[0]}, cond["hint"])}

    return init, apply, replace(condition, encode=encode)
