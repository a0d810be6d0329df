"""Models made of Flax networks, their text encoders, and the autoencoders of their latents."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxdiff import data, interop, latents, media, networks
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Model
from jaxdiff.first_stage import image_features
from jaxdiff.interop.models.efficientnet import INSTALL, is_installed
from jaxdiff.media import Medium
from jaxdiff.parameterize import Prediction, with_network_time
from jaxdiff.processes import Process
from jaxdiff.text_encoders import TextEncoder
from jaxdiff.types import Params

__all__ = ["latent_medium", "load_autoencoder", "of", "picture_medium"]


def of(
    network: Any,
    process: Process,
    prediction: Prediction,
    *,
    shape: tuple[int, ...],
    condition: Condition,
    learned_variance: bool = False,
    autoencoder: interop.Pretrained | None = None,
    text: TextEncoder | None = None,
) -> Model:
    """Make a model of a Flax network that is called as network(x, noise, cond, train=...).

    Args:
        network: a module of `jaxdiff.networks`, or one like those.
        process: what noises the data.
        prediction: what the network predicts. If it is e.g. `velocity` itself, the network is given the time that it
            was made for, by `parameterize.with_network_time`: losses take the model's prediction.
        shape: of one example.
        condition: what the network is given besides x and the noise level.
        learned_variance: whether it returns (F, frac).
        autoencoder: what decodes its samples, whose parameters become the model's frozen["vae"].
        text: what encodes its prompts, whose `encode` is the condition's. The parameters of a pretrained one become the
            model's frozen["text"]; with those of one to be trained the model's are {"network": ..., "text": ...}.

    Returns:
        the model.
    """
    apply, joint = networks.as_apply(network), text is not None and text.init is not None
    frozen: dict[str, Any] = {} if autoencoder is None else {"vae": autoencoder.params}
    if text is not None and not joint:
        frozen["text"] = text.params

    @wraps(apply)
    def of_network(params: Params, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
        trained = params[0] if frozen else params
        return apply(trained["network"] if joint else trained, x, noise, cond, **options)

    def init(key: Array) -> Any:
        x = jnp.zeros((1, *shape))
        if text is None:
            return networks.init(network, key, x, condition.zeros())
        of_text = {"text": text.init(jax.random.fold_in(key, 1))} if text.init is not None else {}
        encoded = jax.eval_shape(condition.encode, (of_text, frozen) if frozen else of_text, condition.zeros())
        of_x = networks.init(network, key, x, encoded)
        return {"network": of_x, **of_text} if joint else of_x

    return Model(
        init=init,
        apply=of_network if frozen or joint else apply,
        process=process,
        prediction=with_network_time(prediction, process, apply),
        learned_variance=learned_variance,
        frozen=frozen or None,
        network=network,
        network_key="network" if joint else None,
    )


def load_autoencoder(path: str | Path, mesh: Mesh | None = None) -> interop.Pretrained | None:
    """Read an autoencoder, see `latents.load_autoencoder`; None where there is no path."""
    return latents.load_autoencoder(path, mesh) if path else None


def latent_medium(
    shape: tuple[int, ...], autoencoder: interop.Pretrained | None, pictures: Medium | None = None
) -> Medium:
    """Make the medium of a network of latents: pictures, or latents in false colours without an autoencoder.

    Args:
        shape: of one example's latents.
        autoencoder: what decodes them; its parameters are the model's frozen["vae"].
        pictures: the medium of the pictures that are decoded; None: a grid of ten, which are not measured.
    """
    if autoencoder is None:
        return media.latents(shape)
    codec = autoencoder.apply

    def decode(params: Params, z: Array) -> Array:
        return codec.decode_latents(params[1]["vae"], z)

    def encode(params: Params, images: Array) -> Array:
        return codec.posterior(params[1]["vae"], images)[0]

    if pictures is None:
        return media.images(shape, decode=decode, encode=encode, preview=10)
    return replace(pictures, shape=shape, decode=decode, encode=encode)


def picture_medium(pictures: data.Dataset, source: str) -> Medium:
    """Make the medium of a source's pictures, measured as their captions or classes allow.

    Args:
        pictures: from `data.open_dataset`, opened with captions where it has them.
        source: its name.
    """
    if isinstance(pictures, data.Compositions):
        return media.compositions(subset=pictures.subset)
    if getattr(pictures, "captions", None):
        features = image_features if is_installed() else None
        return media.captioned(pictures, features=features, missing=INSTALL)
    if getattr(pictures, "reads_captions", False):  # what a sample is of is a caption, whose picture nobody knows
        return media.images(pictures.shape, preview=20, captions=True)
    return media.images(pictures.shape, source=source if pictures.num_classes else None)
