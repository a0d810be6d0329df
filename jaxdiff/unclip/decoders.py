"""The decoder: pictures of an embedding, and of a prompt where there is a prior."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import networks
from jaxdiff.conditions import Cond, Condition
from jaxdiff.data import Pairs
from jaxdiff.drawing import Asked, Drawer
from jaxdiff.experiment import Experiment, Model
from jaxdiff.media import Samples
from jaxdiff.noise import normal_like
from jaxdiff.parameterize import Prediction, with_network_time
from jaxdiff.processes import Process
from jaxdiff.types import Apply, Params
from jaxdiff.unclip.embedders import Embedder
from jaxdiff.unclip.priors import Prior

__all__ = ["TOKENS", "Decoder", "decoder", "of_embeddings"]

TOKENS = 4  # of the cross-attention (Ramesh et al. 2022, sec. 2.1)


def decoder(
    network: Any, process: Process, prediction: Prediction, embedder: Embedder, given: Prior | None = None
) -> tuple[Model, Apply]:
    """Make the model of a decoder.

    Its parameters are {"network": ..., "tokens": ...}, the latter of the linear map from an embedding to four tokens.

    Args:
        network: a Flax module that takes {"vector": [B, D], "tokens": [B, 4, D]}.
        process: what noises the pictures.
        prediction: what the network predicts.
        embedder: the image-text model.
        given: the prior of its prompts.

    Returns:
        (the model; the network of {"embedding": [B, D]}, for a loss).
    """
    apply, width = networks.as_apply(network), embedder.width
    frozen = {"image_text": embedder.params} | ({} if given is None else {"prior": given.params})

    def init(key: Array) -> Any:
        tokens = {
            "kernel": jax.random.normal(jax.random.fold_in(key, 1), (width, TOKENS * width)) / width**0.5,
            "bias": jnp.zeros(TOKENS * width),
        }
        cond = jax.eval_shape(_expand, tokens, jax.ShapeDtypeStruct((1, width), jnp.float32))
        x = jax.ShapeDtypeStruct((1, *embedder.model.shape), jnp.float32)
        return {"network": networks.init(network, key, x, cond), "tokens": tokens}

    @wraps(apply)
    def of_network(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
        return apply(params[0]["network"], x, noise, cond, **options)

    @wraps(apply)
    def of_embedding(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Array:
        return of_network(params, x, noise, _expand(params[0]["tokens"], cond["embedding"]), **options)

    made = with_network_time(prediction, process, apply)
    model = Model(init, of_network, process, made, frozen=frozen, network=network, network_key="network")
    return model, of_embedding


def of_embeddings(embedder: Embedder, pairs: Pairs, given: Prior | None = None) -> Condition:
    """Make a decoder's condition: an embedding; with a prior also a prompt, whose embedding each sample draws anew.

    Args:
        embedder: the image-text model.
        pairs: whose pictures previews draw again from their embeddings; with a prior, whose captions they draw.
        given: the prior.

    Returns:
        the condition {"embedding": [B, D]}, with a prior also its tokens and {"given": bool [B]}, whether the embedding
        is given. Its null condition is an embedding of zeros.
    """
    width, count = embedder.width, len(pairs.captions)
    spec: dict[str, jax.ShapeDtypeStruct] = {"embedding": jax.ShapeDtypeStruct((width,), jnp.float32)}
    if given is not None:
        spec |= given.condition.spec
        spec["given"] = jax.ShapeDtypeStruct((), jnp.bool_)
        # The prior's own captions are others: it shows more of them.
        each = [given.condition.parse(caption) for caption in pairs.captions]
        tokens_of = {name: np.concatenate([tokens[name] for tokens in each]) for name in given.condition.spec}

    def choose(index: np.ndarray) -> Cond:
        numbers = np.asarray(index) % count
        if given is None:
            return {"embedding": embedder.embed_pictures(pairs.read(numbers))}
        return _of_prompts({name: tokens[numbers] for name, tokens in tokens_of.items()}, width)

    def parse(words: str) -> Cond:
        if given is None:
            raise ValueError("a decoder draws prompts with a prior: name the run of one with --prior")
        return _of_prompts(given.condition.parse(words), width)

    def augment(key: Array, cond: Cond) -> Cond:
        return cond if given is None else {**cond, "noise": normal_like(key, cond["embedding"])}

    def encode(params: Params, cond: Cond) -> Cond:
        trained, frozen = params
        z = cond["embedding"]
        if given is not None and "given" in cond:  # batches have no prompts
            tokens = {name: cond[name] for name in given.condition.spec}
            z = jnp.where(cond["given"][:, None], z, given.draw(frozen["prior"], cond["noise"], tokens))
        return _expand(trained["tokens"], z)

    null: dict[str, Array] = {"embedding": jnp.zeros((1, width))}
    return Condition(
        spec,
        choose,
        parse,
        choices=count,
        names=pairs.captions,
        held_out=tuple(range(count - pairs.held_out, count)),
        vocabulary=() if given is None else given.condition.vocabulary,
        null=null if given is None else null | {"given": jnp.ones(1, bool)},
        augment=augment,
        encode=encode,
    )


class Decoder:
    """A decoder's sampler of embeddings, compiled once for each size of a batch."""

    def __init__(self, experiment: Experiment, mesh: Mesh | None = None):
        """Make the sampler.

        Args:
            experiment: a decoder's; `hooks.change_sampling` changes its sampling.
            mesh: where the parameters lie; samples are split over it.

        Raises:
            ValueError: the model is no decoder.
        """
        if "embedding" not in experiment.condition.spec:
            raise ValueError("this run draws no embeddings: it is no decoder of the experiment unclip")
        self._spec, self._draw = experiment.condition.spec, Drawer(experiment, mesh)

    def __call__(
        self, params: Params, z: np.ndarray, num: int | None = None, *, seed: int = 0, batch: int | None = None,
        names: Sequence[str] = (),
    ) -> Samples:  # fmt: skip
        """Draw pictures of embeddings.

        Args:
            params: the decoder's parameters, e.g. from `drawing.parameters`.
            z: float [N, D]; sample i is of embedding i modulo N.
            num: number of samples; None: one of each.
            seed: sample i depends on the seed, i and its embedding.
            batch: samples at a time; None: as in a preview.
            names: of the embeddings.

        Returns:
            the samples, on the host.

        Raises:
            ValueError: embeddings of another length.
        """
        length = self._spec["embedding"].shape
        if z.ndim != 2 or z.shape[1:] != length or not len(z):
            raise ValueError(f"embeddings must be [N, {length[0]}], got {list(z.shape)}")
        cond = {name: np.zeros((len(z), *leaf.shape), leaf.dtype) for name, leaf in self._spec.items()}
        cond["embedding"] = z.astype(np.float32)
        if "given" in cond:
            cond["given"][:] = True
        return self._draw(params, len(z) if num is None else num, Asked(cond, tuple(names)), seed=seed, batch=batch)

    def along(self, params: Params, z: np.ndarray, *, seed: int = 0, names: Sequence[str] = ()) -> Samples:
        """Draw a picture of each embedding on a path, all by the same noise, so that the embedding alone changes.

        Args:
            params: the decoder's parameters.
            z: float [N, D].
            seed: of the noise.
            names: of the embeddings.

        Returns:
            the samples, on the host.
        """
        each = [self(params, z[i : i + 1], seed=seed, names=names[i : i + 1]) for i in range(len(z))]
        x = np.concatenate([samples.x for samples in each])
        cond = {name: np.concatenate([samples.cond[name] for samples in each]) for name in each[0].cond}
        return Samples(x, cond, names=tuple(names))


def _expand(params: Params, z: Array) -> Cond:
    """What the network is given of embeddings [B, D]."""
    tokens = z @ params["kernel"].astype(z.dtype) + params["bias"][None]
    return {"vector": z, "tokens": tokens.reshape(z.shape[0], TOKENS, -1)}


def _of_prompts(tokens: Cond, width: int) -> Cond:
    count = len(tokens["ids"])
    return {"embedding": np.zeros((count, width), np.float32), "given": np.zeros(count, bool), **tokens}
