"""The parts of an experiment that fine-tunes a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxdiff import interop, losses, media, models
from jaxdiff.distill import Context
from jaxdiff.experiment import Model
from jaxdiff.finetune.asked import Asked, network_cond
from jaxdiff.finetune.distilled import few_step_sampling, make_distillation
from jaxdiff.finetune.knobs import Network
from jaxdiff.finetune.origin import Origin
from jaxdiff.finetune.tuned import Tuned
from jaxdiff.losses import Loss
from jaxdiff.media import Medium
from jaxdiff.processes import Discrete
from jaxdiff.sampling import Sampling
from jaxdiff.types import Params

__all__ = ["make_medium", "make_model", "make_objective", "make_sampling"]


def make_model(origin: Origin, asked: Asked, tuned: Tuned, scheduler: interop.Scheduler) -> Model:
    """Make the model: what is trained, with frozen {"base", "cond", "vae"}.

    Args:
        origin: the network.
        asked: the condition, whose tables take the place of labels.
        tuned: what is trained.
        scheduler: what noises the data, and what the network predicts.
    """

    def apply(params: Params, x: Any, noise: Any, cond: Any = None, **options: Any) -> Any:
        trained, frozen = params
        cond = network_cond(frozen["cond"], cond)
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


def make_sampling(
    origin: Origin, scheduler: interop.Scheduler, network: Network, *, steps: int, guidance: float
) -> Sampling:
    """Make the sampling: the scheduler's, or that of a consistency model.

    Args:
        origin: the network.
        scheduler: the network's.
        network: its knobs.
        steps: of a sample; 0: 50, or 4 of a consistency model.
        guidance: scale of classifier-free guidance, of a network whose guidance is not distilled.
    """
    if network.distill == "consistency":
        return replace(few_step_sampling(scheduler), steps=steps or 4)
    return replace(scheduler.sampling, steps=steps or 50, guidance=1.0 if origin.distilled else guidance)


def make_objective(
    model: Model, origin: Origin, asked: Asked, sampling: Sampling, *, network: Network, guidance: float,
    cond_dropout: float,
) -> dict[str, Any]:  # fmt: skip
    """Make the loss of images: denoising, the hybrid loss for a learned variance, or a distillation.

    Args:
        model: from `make_model`.
        origin: the network, whose autoencoder encodes the images.
        asked: the condition.
        sampling: from `make_sampling`.
        network: the network's knobs.
        guidance: scale of the guidance that is distilled.
        cond_dropout: share of images trained without their class; of a distillation none are.

    Returns:
        attributes of `Training`: `loss`, and of a distillation `given` and `frozen`.
    """
    if network.distill == "none":
        objective: dict[str, Any] = {"loss": _denoising(model, asked, cond_dropout)}
    else:
        objective = make_distillation(model, origin, asked, sampling, network=network, guidance=guidance)
    if origin.autoencoder is not None:
        objective["loss"] = _encoded(objective["loss"], origin.autoencoder.apply)
    return objective


def make_medium(origin: Origin, shape: tuple[int, ...], source: str) -> Medium:
    """Make the medium: images, decoded where the network is of latents.

    Args:
        origin: the network.
        shape: of one example as the network gets it.
        source: of the data.
    """
    if origin.autoencoder is not None:
        return replace(models.latent_medium(shape, origin.autoencoder), preview=8)
    return media.images(shape, source=source) if shape[-1] in (1, 3) else media.latents(shape)


def _denoising(model: Model, asked: Asked, cond_dropout: float) -> Loss:
    hybrid = model.learned_variance and isinstance(model.process, Discrete)
    make: Any = losses.hybrid_loss if hybrid else losses.denoising_loss
    if asked.null_label is None:
        return make(model.apply, model.process, model.prediction)
    null = {"label": jnp.full((1,), asked.null_label)}  # a hint stays
    return make(model.apply, model.process, model.prediction, null_cond=null, cond_dropout=cond_dropout)


def _encoded(loss: Loss, codec: Any) -> Loss:
    """The loss of latents, drawn from the autoencoder's posterior, as a loss of images."""
    drawn = losses.latent_loss(loss)

    def of_images(params: Params, key: Any, batch: dict[str, Any]) -> Any:
        frozen = params[1].frozen if isinstance(params[1], Context) else params[1]
        mean, std = codec.posterior(frozen["vae"], batch["x"])
        rest = {name: value for name, value in batch.items() if name != "x"}
        return drawn(params, key, {**rest, "mean": mean, "std": std})

    return of_images
