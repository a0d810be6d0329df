"""The prior: from a text's embedding to that of a picture, by diffusion or in one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import networks, parameterize, train
from jaxdiff.conditions import Cond, Condition, prompts
from jaxdiff.data import Pairs
from jaxdiff.drawing import parameters
from jaxdiff.experiment import Model, UserError
from jaxdiff.losses import Loss
from jaxdiff.media import Medium, Report, Samples, embeddings
from jaxdiff.metrics import recall_at_1
from jaxdiff.noise import check_key
from jaxdiff.parameterize import denoiser
from jaxdiff.processes import Process
from jaxdiff.recipe import load_run
from jaxdiff.sampler import solve
from jaxdiff.text_encoders import rephrase
from jaxdiff.types import Batch, Metrics, Params
from jaxdiff.unclip.embedders import Embedder
from jaxdiff.unclip.encoders import AMONG, by_part, format_shares

__all__ = ["Prior", "direct_prior", "load_prior", "of_texts", "prior", "prior_medium", "prior_sampler"]


def of_texts(embedder: Embedder, pairs: Pairs | None = None) -> Condition:
    """Make the condition of prompts, of which a prior gets the embedding.

    Args:
        embedder: whose parameters are the model's frozen["image_text"].
        pairs: whose captions are shown and measured; None: there are none, and prompts alone are parsed.
    """
    words, captions = embedder.model.vocabulary, pairs.captions if pairs else ()
    seen = len(captions) - (pairs.held_out if pairs else 0)

    def encode(params: Params, cond: Cond) -> Cond:
        return {"vector": embedder.texts(params[1]["image_text"], cond)}

    return prompts(
        words.tokenize, encode, captions=captions[:seen], held_out=captions[seen:],
        rephrase=lambda prompt: rephrase(prompt, words), vocabulary=words.words,
    )  # fmt: skip


def prior(network: Any, process: Process, embedder: Embedder) -> Model:
    """Make the model of a diffusion prior, which predicts x_0 (Ramesh et al. 2022, arXiv:2204.06125, sec. 2.2).

    Its x is the picture's embedding, sqrt(D) long: unit vectors would drown in noise of unit variance.

    Args:
        network: a Flax module that takes x [B, D] and {"vector": [B, D]}.
        process: what noises the embeddings.
        embedder: the image-text model.
    """
    apply = networks.as_apply(network)

    @wraps(apply)
    def of_network(params: Params, *inputs: Any, **options: Any) -> Array:
        return apply(params[0], *inputs, **options)

    return Model(
        init=_init(network, embedder),
        apply=of_network,
        process=process,
        prediction=parameterize.with_network_time(parameterize.x0, process, apply),
        frozen={"image_text": embedder.params},
        network=network,
    )


def direct_prior(network: Any, condition: Condition, embedder: Embedder) -> tuple[Model, Loss]:
    """Make the model of a prior that is a regression: of all pictures of a text it learns the mean embedding.

    Args:
        network: as for `prior`; its x is the text's embedding, too, and its noise level is 0.
        condition: from `of_texts`.
        embedder: the image-text model.

    Returns:
        (the model; the squared error of a batch whose "x" are embeddings).
    """
    apply = networks.as_apply(network)

    def mean(params: Params, cond: Cond) -> Array:
        count = cond["vector"].shape[0]  # which may be symbolic
        return apply(params[0], cond["vector"], jnp.zeros(count), cond)  # of an x of zeros nothing is learned

    def loss(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        check_key(key)
        tokens = {name: batch[name] for name in condition.spec}
        return jnp.mean(jnp.square(mean(params, condition.encode(params, tokens)) - batch["x"])), {}

    model = Model(
        init=_init(network, embedder),
        generate=lambda params, keys, cond: mean(params, cond),
        frozen={"image_text": embedder.params},
    )
    return model, loss


def prior_medium(embedder: Embedder, pairs: Pairs) -> Medium:
    """Make the medium of a prior's embeddings, which are compared with those of the captions' pictures.

    Args:
        embedder: the image-text model.
        pairs: those of the condition.
    """

    def measure(samples: Samples) -> Report:
        numbers = np.arange(len(samples.x)) % len(pairs.captions)
        pictures, texts = embedder.embed_pictures(pairs.read(numbers)), embedder.embed_texts(samples.names)
        found = {}
        for part, index in by_part(samples).items():
            names = [samples.names[i] for i in index]
            target, drawn, text = pictures[index], _unit(samples.x[index]), _unit(texts[index])
            found[part] = {
                "found": recall_at_1(drawn, target, names, of=AMONG),
                "cosine": _cosine(drawn, target),
                "found by text": recall_at_1(text, target, names, of=AMONG),
                "cosine of text": _cosine(text, target),
            }
        return Report({"samples": found}, format_shares(found, f"pictures, of {AMONG}"))

    return embeddings((embedder.width,), measure)


class Prior(NamedTuple):
    """A trained prior.

    Attributes:
        params: its parameters and those of its image-text model.
        condition: of its prompts.
        draw: (params, standard normal noise [B, D], condition) -> embeddings [B, D] of pictures, sqrt(D) long.
    """

    params: Params
    condition: Condition
    draw: Callable[[Params, Array, Cond], Array]


def load_prior(path: str | Path, image_text: str, mesh: Mesh | None = None) -> Prior:
    """Load the run of a prior.

    Args:
        path: its folder.
        image_text: folder of the image-text model of whose embeddings it must be.
        mesh: where its parameters lie; None is the default device.

    Raises:
        UserError: the run is no prior of these embeddings.
        ValueError: there is no run.
    """
    experiment, knobs = load_run(path, mesh=mesh), train.read_knobs(path)
    if knobs.get("part") not in ("prior", "direct"):
        raise UserError(f"{path} is no prior: `jaxdiff train unclip --part prior --image-text RUN` makes one")
    if os.path.realpath(knobs["image_text"]) != os.path.realpath(image_text):
        raise UserError(
            f"the prior {path} is of the embeddings of {knobs['image_text']}, and these are of {image_text}"
        )
    params = experiment.model.merge_frozen(parameters(experiment, path, mesh=mesh))
    return Prior(
        params, experiment.condition, prior_sampler(experiment.model, experiment.sampling, experiment.condition)
    )


def prior_sampler(model: Model, sampling: Any, condition: Condition) -> Callable[[Params, Array, Cond], Array]:
    """Make the function that draws embeddings; see `Prior.draw`.

    Args:
        model: a prior's.
        sampling: its settings, of a solver that adds no noise and without guidance; None for a direct prior.
        condition: of its prompts.
    """

    def draw(params: Params, noise: Array, cond: Cond) -> Array:
        encoded = condition.encode(params, cond)
        if sampling is None:
            z = model.generate(params, None, encoded)  # type: ignore[misc, arg-type]
        else:
            denoise = denoiser(model.apply, params, model.prediction, encoded)
            key = jax.random.key(0)  # of no noise but the first, which is given
            z = solve(denoise, sampling, key, noise.shape, prepared=sampling.prepare(), noise=noise)
        length = jnp.sqrt(jnp.maximum(jnp.square(z).sum(-1, keepdims=True), 1e-12))
        return z.shape[-1] ** 0.5 * z / length  # as all embeddings of pictures are

    return draw


def _init(network: Any, embedder: Embedder) -> Callable[[Array], Any]:
    x = jax.ShapeDtypeStruct((1, embedder.width), jnp.float32)
    return lambda key: networks.init(network, key, x, {"vector": x})


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(np.mean(np.sum(_unit(u) * _unit(v), axis=-1)))
