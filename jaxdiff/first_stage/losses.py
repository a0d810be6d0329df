"""What an autoencoder and its critic minimize (Esser et al. 2021, arXiv:2012.09841; Rombach et al. 2022, app. G)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from jaxdiff import trees
from jaxdiff.autoencoders import Codec, VQCodec, codebook_loss, commitment_loss, kl_loss
from jaxdiff.distill import hinge
from jaxdiff.distill.base import split_inputs
from jaxdiff.first_stage.equivariance import transform_pair
from jaxdiff.types import Loss, Metrics, Params

__all__ = ["COMMITMENT", "LAST", "Latents", "adaptive_weight", "autoencoder_losses", "kl_latents", "vq_latents"]

COMMITMENT = 0.25  # beta of van den Oord et al. 2017, eq. 3
LAST = ("decoder", "conv_out", "kernel")  # the decoder's last convolution

Distance = Callable[[Any, Array, Array], Array]  # (frozen parameters, image, target) -> [B]


class Latents(NamedTuple):
    """What a training draws of an autoencoder's latents.

    Attributes:
        z: [B, h, w, D], for the decoder.
        penalty: what the latents add to the loss, a scalar.
        metrics: scalars.
    """

    z: Array
    penalty: Array
    metrics: Metrics


def kl_latents(codec: Codec, weight: float) -> Callable[[Params, Array, Array], Latents]:
    """Draw latents from the posterior; their penalty is its divergence from a standard normal.

    Args:
        codec: the autoencoder.
        weight: of the divergence, which is summed over an example's latents.

    Returns:
        (params, images, key) -> Latents.
    """

    def draw(params: Params, x: Array, key: Array) -> Latents:
        mean, std = codec.encode(params, x)
        divergence = kl_loss(mean, std)
        z = mean + std * jax.random.normal(key, mean.shape, mean.dtype)
        return Latents(z, weight * divergence, {"kl": divergence})

    return draw


def vq_latents(codec: VQCodec) -> Callable[[Params, Array, Array], Latents]:
    """Encode to latents, which the decoder quantizes; their penalty moves the codes to them, and them to the codes.

    Args:
        codec: the autoencoder.

    Returns:
        (params, images, key) -> Latents. The metric "perplexity" is how many codes a batch uses, exp(entropy).
    """

    def draw(params: Params, x: Array, key: Array) -> Latents:
        z = codec.encode(params, x)
        quantized = codec.quantize(params, z)
        penalty = codebook_loss(z, quantized.codes) + COMMITMENT * commitment_loss(z, quantized.codes)
        shares = jnp.bincount(quantized.indices.ravel(), length=_num_codes(params)) / quantized.indices.size
        perplexity = jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))
        return Latents(z, penalty, {"codebook": penalty, "perplexity": perplexity})

    return draw


def adaptive_weight(of_likelihood: Array, of_critic: Array) -> Array:
    """The weight that makes both gradients equally long: clip(|a| / (|b| + 1e-4), 0, 1e4) (Esser et al. 2021, eq. 7).

    Args:
        of_likelihood: gradient of the reconstruction's loss by the decoder's last kernel.
        of_critic: gradient of the critic's term by the same kernel.

    Returns:
        a scalar, without a gradient.
    """
    norm = lambda g: jnp.sqrt(jnp.sum(jnp.square(g)))  # noqa: E731
    return stop_gradient(jnp.clip(norm(of_likelihood) / (norm(of_critic) + 1e-4), 0.0, 1e4))


def autoencoder_losses(
    decode: Callable[[Params, Array], Array],
    latents: Callable[[Params, Array, Array], Latents],
    distance: Distance,
    *,
    critic: Callable[..., Array] | None = None,
    start: int = 0,
    critic_weight: float = 0.5,
    equivariance: float = 0.0,
) -> dict[str, Loss]:
    """The losses of an autoencoder and of its critic, for `train.players`.

    The autoencoder minimizes its reconstruction's negative log-likelihood, the latents' penalty and, after `start`
    updates, -D of the reconstruction times `critic_weight` and the adaptive weight; the critic minimizes the hinge
    loss. With a trained "log_variance" s the negative log-likelihood is distance / exp(s) + s, summed over an example's
    pixels; without, it is the distance itself, their mean.

    Args:
        decode: (params, latents) -> images, whose last layer has the kernel `LAST`.
        latents: `kl_latents` or `vq_latents`.
        distance: (frozen, image, target) -> [B], the mean over pixels.
        critic: (params, x, noise) -> logits [B, ...]; None: there is none.
        start: updates before the critic begins; use the same in the players' turns.
        critic_weight: of the critic's term.
        equivariance: weight of distance(decode(T z), T x), with the transforms of `transform_pair`.

    Returns:
        {"autoencoder": loss, "critic": loss}, or the first alone; each is ((params of all, Context), key, batch) ->
        (loss, metrics). The autoencoder's parameters are {"network": ...}, with a scalar "log_variance" or without.
    """
    game = _Game(decode, latents, distance, critic, start, critic_weight, equivariance)
    return {"autoencoder": game.of_autoencoder} | ({} if critic is None else {"critic": game.of_critic})


class _Game(NamedTuple):
    """The arguments of `autoencoder_losses`."""

    decode: Callable[[Params, Array], Array]
    latents: Callable[[Params, Array, Array], Latents]
    distance: Distance
    critic: Any
    start: int
    critic_weight: float
    equivariance: float

    def of_autoencoder(self, inputs: Any, key: Array, batch: Any) -> tuple[Array, Metrics]:
        params, context = split_inputs(inputs)
        own, x = params["autoencoder"], batch["x"]
        network = own["network"]
        z_key, transform_key = jax.random.split(key)
        drawn = self.latents(network, x, z_key)
        # The pull-back to the last kernel needs that convolution alone, whose input is there already.
        with_kernel = lambda kernel: self.decode(_replaced(network, kernel), drawn.z)  # noqa: E731
        x_hat, pull = jax.vjp(with_kernel, trees.get(network, LAST))
        likelihood = _likelihood(own, x_hat, lambda image: jnp.mean(self.distance(context.frozen, image, x)))
        loss, slope, precision = likelihood.value + drawn.penalty, likelihood.slope, likelihood.precision
        metrics = {**likelihood.metrics, **drawn.metrics}
        if self.equivariance:
            moved, target = transform_pair(transform_key, drawn.z, x)
            gap = jnp.mean(self.distance(context.frozen, self.decode(network, moved), target))
            loss, metrics["equivariance"] = loss + self.equivariance * precision * gap, gap
        if self.critic is not None:
            on = context.step >= self.start
            term, push = self.judged(params["critic"], stop_gradient(x_hat), on)
            weight = self.critic_weight * jnp.where(on, adaptive_weight(pull(slope)[0], pull(push)[0]), 0.0)
            loss, slope = loss + weight * term, slope + weight * push
            metrics |= {"critic": term, "weight": weight}
        return loss + _sloping(x_hat, slope), metrics

    def judged(self, params: Params, image: Array, on: Array) -> tuple[Array, Array]:
        """-D of images, the batch's mean, and its gradient with respect to them; zeros before the start."""
        value = lambda image: -jnp.mean(self.critic(params, image, None))  # noqa: E731
        absent = lambda: (jnp.zeros((), image.dtype), jnp.zeros_like(image))  # noqa: E731
        return jax.lax.cond(on, lambda: jax.value_and_grad(value)(image), absent)

    def of_critic(self, inputs: Any, key: Array, batch: Any) -> tuple[Array, Metrics]:
        params, _ = split_inputs(inputs)
        network, x = params["autoencoder"]["network"], batch["x"]
        x_hat = stop_gradient(self.decode(network, self.latents(network, x, key).z))
        real, fake = (self.critic(params["critic"], image, None) for image in (x, x_hat))
        return jnp.mean(hinge.critic(real, fake)), {"real": jnp.mean(real), "fake": jnp.mean(fake)}


class _Likelihood(NamedTuple):
    """The negative log-likelihood of a reconstruction, differentiated once: for the weight and for the gradient.

    Attributes:
        value: a scalar, whose gradient is that of the log-variance alone.
        slope: its gradient with respect to the reconstruction.
        precision: factor of the mean distance.
        metrics: scalars.
    """

    value: Array
    slope: Array
    precision: Array
    metrics: Metrics


def _likelihood(own: Params, x_hat: Array, error: Callable[[Array], Array]) -> _Likelihood:
    mean, slope = jax.value_and_grad(error)(stop_gradient(x_hat))
    if "log_variance" not in own:
        return _Likelihood(mean, slope, jnp.ones(()), {"distance": mean})
    log_variance, count = own["log_variance"], math.prod(x_hat.shape[1:])
    precision = count * jnp.exp(-log_variance)
    value = mean * precision + count * log_variance
    metrics = {"distance": mean, "log_variance": log_variance}
    precision = stop_gradient(precision)
    return _Likelihood(value, precision * slope, precision, metrics)


def _replaced(network: Params, kernel: Array) -> Params:
    """The parameters with another kernel of the last convolution."""
    decoder, conv = network[LAST[0]], network[LAST[0]][LAST[1]]
    return {**network, LAST[0]: {**decoder, LAST[1]: {**conv, LAST[2]: kernel}}}


def _sloping(x: Array, slope: Array) -> Array:
    """Zero, whose gradient with respect to x is `slope`."""
    product = jnp.sum(x * stop_gradient(slope))
    return product - stop_gradient(product)


def _num_codes(params: Params) -> int:
    return params["quantize.embedding"]["embedding"].shape[0]
