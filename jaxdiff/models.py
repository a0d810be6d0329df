"""Models made of Flax networks, their text encoders, and the autoencoders of their latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxdiff import interop, networks
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Model, compute_dtype
from jaxdiff.media import Medium, images, latents
from jaxdiff.parameterize import Prediction
from jaxdiff.processes import Process
from jaxdiff.sharding import shard_params
from jaxdiff.text_encoders import TextEncoder

__all__ = ["latent_medium", "load_autoencoder", "of"]


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
        prediction: what the network predicts.
        shape: of one example.
        condition: what the network is given besides x and the noise level.
        learned_variance: whether it returns (F, frac).
        autoencoder: what decodes its samples, whose parameters become the model's frozen["vae"].
        text: what encodes its prompts, whose `encode` is the condition's. The parameters of a pretrained one become the
            model's frozen["text"]; with those of one to be trained the model's are {"network": ..., "text": ...}.

    Returns:
        The model.
    """
    apply, joint = networks.as_apply(network), text is not None and text.init is not None
    frozen: dict[str, Any] = {} if autoencoder is None else {"vae": autoencoder.params}
    if text is not None and not joint:
        frozen["text"] = text.params

    def of_network(params: Any, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
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
        prediction=prediction,
        learned_variance=learned_variance,
        frozen=frozen or None,
        network=None if joint else network,
    )


def load_autoencoder(path: str | Path, mesh: Mesh | None = None) -> interop.Pretrained | None:
    """Read an autoencoder's folder; None where there is no path.

    Args:
        path: a folder or file that `interop.load` reads.
        mesh: where its parameters lie; None is the default device.
    """
    if not path:
        return None
    place = None if mesh is None else lambda tree: shard_params(tree, mesh)
    return interop.load(path, dtype=compute_dtype(), place=place)


def latent_medium(shape: tuple[int, ...], autoencoder: interop.Pretrained | None, *, preview: int = 10) -> Medium:
    """Make the medium of a network of latents: images, or latents in false colours without an autoencoder.

    Args:
        shape: of one example's latents.
        autoencoder: what decodes them; its parameters are the model's frozen["vae"].
        preview: examples in a preview.
    """
    if autoencoder is None:
        return latents(shape, preview=preview)
    codec = autoencoder.apply
    return images(shape, decode=lambda params, z: codec.decode_latents(params[1]["vae"], z), preview=preview)
