"""The parts of an experiment that fine-tunes a network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import interop, losses, media
from jaxdiff.experiment import Model
from jaxdiff.finetune.asked import Asked
from jaxdiff.finetune.origin import Origin
from jaxdiff.finetune.tuned import Tuned
from jaxdiff.guidance import drop_condition
from jaxdiff.losses import Loss
from jaxdiff.media import Medium
from jaxdiff.processes import Discrete

__all__ = ["make_loss", "make_medium", "make_model"]


def make_model(origin: Origin, asked: Asked, tuned: Tuned, scheduler: interop.Scheduler) -> Model:
    """Make the model: what is trained, with frozen {"base", "cond", "vae"}.

    Args:
        origin: the network.
        asked: the condition, whose tables take the place of labels.
        tuned: what is trained.
        scheduler: what noises the data, and what the network predicts.
    """

    def apply(params: Any, x: Any, noise: Any, cond: Any = None, **options: Any) -> Any:
        trained, frozen = params
        if frozen["cond"]:
            label, rest = cond["label"], {name: value for name, value in cond.items() if name != "label"}
            cond = rest | {name: table[label] for name, table in frozen["cond"].items()}
        return tuned.apply((trained, frozen["base"]), x, noise, cond, **options)

    vae = origin.autoencoder
    return Model(
        init=tuned.init,
        apply=apply,
        process=scheduler.process,
        prediction=scheduler.prediction,
        learned_variance=origin.learned_variance,
        frozen={"base": tuned.base, "cond": asked.tables, "vae": vae.params if vae else {}},
        pretrained=tuned.pretrained,
        export=tuned.export,
    )


def make_loss(model: Model, origin: Origin, asked: Asked, cond_dropout: float) -> Loss:
    """Make the loss of images: denoising, or the hybrid loss for a learned variance.

    Args:
        model: from `make_model`.
        origin: the network, whose autoencoder encodes the images.
        asked: the condition.
        cond_dropout: share of images trained without their class.
    """
    hybrid = model.learned_variance and isinstance(model.process, Discrete)
    make: Any = losses.hybrid_loss if hybrid else losses.denoising_loss
    loss = make(model.apply, model.process, model.prediction)
    if asked.null_label is not None:
        loss = _drop_label(loss, asked.null_label, cond_dropout)
    return loss if origin.autoencoder is None else _encoded(loss, origin.autoencoder.apply)


def make_medium(origin: Origin, shape: tuple[int, ...], source: str) -> Medium:
    """Make the medium: images, decoded where the network is of latents.

    Args:
        origin: the network.
        shape: of one example as the network gets it.
        source: of the data.
    """
    if origin.autoencoder is not None:
        codec = origin.autoencoder.apply
        return media.images(shape, decode=lambda params, z: codec.decode_latents(params[1]["vae"], z), preview=8)
    return media.images(shape, source=source) if shape[-1] in (1, 3) else media.latents(shape)


def _drop_label(loss: Loss, null: int, rate: float) -> Loss:
    """The loss of examples some of which have lost their class, but nothing else."""

    def dropped(params: Any, key: Any, batch: dict[str, Any]) -> Any:
        drop_key, key = jax.random.split(key)
        label = drop_condition(drop_key, batch["label"], jnp.full((1,), null), rate)
        return loss(params, key, {**batch, "label": label})

    return dropped


def _encoded(loss: Loss, codec: Any) -> Loss:
    """The loss of latents, drawn from the autoencoder's posterior, as a loss of images."""
    drawn = losses.latent_loss(loss)

    def of_images(params: Any, key: Any, batch: dict[str, Any]) -> Any:
        mean, std = codec.posterior(params[1]["vae"], batch["x"])
        rest = {name: value for name, value in batch.items() if name != "x"}
        return drawn(params, key, {**rest, "mean": mean, "std": std})

    return of_images
