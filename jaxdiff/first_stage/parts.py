"""The experiment of an autoencoder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import conditions, data, distill, media, networks, train, training
from jaxdiff.autoencoders import Codec
from jaxdiff.experiment import Experiment, Model, compute_dtype
from jaxdiff.first_stage.knobs import Objective
from jaxdiff.first_stage.losses import autoencoder_losses, kl_latents, vq_latents
from jaxdiff.first_stage.origin import Origin
from jaxdiff.first_stage.perceptual import Perceptual, as_rgb, image_features, perceptual_of
from jaxdiff.interop.models.efficientnet import INSTALL, is_installed
from jaxdiff.options import Run, refuse_unused
from jaxdiff.seeds import seed_key
from jaxdiff.sharding import shard_params
from jaxdiff.types import Params

__all__ = ["make_experiment"]

MEASURED, AT_ONCE = 512, 64  # pictures that give the scale of the latents, and how many are encoded at a time
MISSING = f"distances of features are off: {INSTALL}"
PIXELS: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "l2": jnp.square}


def make_experiment(
    origin: Origin, objective: Objective, run: Run, images: data.Dataset, shown: Callable[[], data.Dataset],
    *, optimizer: Callable[[int], Any], ema: Any,
) -> Experiment:  # fmt: skip
    """Make the experiment that trains an autoencoder.

    Args:
        origin: the autoencoder.
        objective: what it minimizes.
        run: the common knobs.
        images: what it learns from.
        shown: opens the pictures whose reconstructions are shown and measured, when they are.
        optimizer: number of updates -> an optax optimizer, for the autoencoder and for its critic.
        ema: decay of the average.

    Returns:
        the experiment. Its examples are reconstructions, of the posterior's means or the nearest codes.

    Raises:
        ValueError: an autoencoder with a codebook has no divergence to weigh.
    """
    critic = None
    if not isinstance(origin.codec, Codec):
        refuse_unused(Objective, "an autoencoder with a codebook", kl_weight=objective.kl_weight)
    if objective.critic_weight:
        critic = networks.PatchCritic(objective.critic_channels, objective.critic_layers, dtype=compute_dtype())
    perceptual = perceptual_of(objective)
    game = _game(origin, objective, run, critic=critic, perceptual=perceptual, optimizer=optimizer)
    condition = conditions.picture(images.shape, _reader(shown))
    learning = training.of(
        run, images, condition, loss=game.loss, optimizer=game.optimizer, ema=ema, given=game.given,
        frozen=lambda mesh: _frozen(objective, perceptual, run, mesh),
        averaged=lambda params: {"autoencoder": params["autoencoder"]},
    )  # fmt: skip
    features = image_features if is_installed() else None
    medium = media.reconstructions(tuple(images.shape), features=features, missing=MISSING)
    model = _model(origin, critic, images, seed=run.seed)
    sampling: Any = None  # a reconstruction is one call
    return Experiment(model, learning, sampling, condition, medium, run.seed)


def _game(
    origin: Origin, objective: Objective, run: Run, *, critic: Any, perceptual: Perceptual | None, optimizer: Any
) -> train.Game:
    codec, pixel, start = origin.codec, PIXELS[objective.pixel], objective.critic_start

    def distance(frozen: Any, a: Array, b: Array) -> Array:
        pixels = jnp.mean(pixel(a - b), axis=(1, 2, 3))
        if perceptual is None:
            return pixels
        return pixels + objective.perceptual_weight * perceptual.apply(frozen["perceptual"], as_rgb(a), as_rgb(b))

    losses = autoencoder_losses(
        codec.decode,
        kl_latents(codec, objective.kl_weight) if isinstance(codec, Codec) else vq_latents(codec),
        distance,
        critic=None if critic is None else networks.as_apply(critic),
        start=start,
        critic_weight=objective.critic_weight,
        equivariance=objective.equivariance,
    )
    updates = {"autoencoder": run.steps, "critic": max(run.steps - start, 1)}
    turns = {"autoencoder": lambda made: True, "critic": lambda made: made >= start}
    each = {name: train.Player(loss, optimizer(updates[name])) for name, loss in losses.items()}
    turn = lambda made: {name: jnp.asarray(turns[name](made)) for name in losses}  # noqa: E731
    return train.players(each, turn, given=distill.context())


def _model(origin: Origin, critic: Any, images: data.Dataset, *, seed: int) -> Model:
    codec = origin.codec

    def begin(key: Array, network: Any) -> Any:
        scalar = {"log_variance": jnp.zeros(())} if isinstance(codec, Codec) else {}
        players = {"autoencoder": {"network": network, **scalar}}
        if critic is not None:
            players["critic"] = networks.init(critic, jax.random.fold_in(key, 1), jnp.zeros((1, *images.shape)))
        return players

    def generate(params: Params, keys: Array, cond: Any) -> Array:
        network = params["autoencoder"]["network"]
        latents = codec.encode(network, cond["x"])
        return codec.decode(network, latents[0] if isinstance(latents, tuple) else latents)

    def export(params: Params, out: Path) -> None:
        network = params["autoencoder"]["network"]
        # That of a loaded one stays, for the diffusion models of its latents.
        scale = None if origin.folder else 1 / _latent_std(codec, network, images)
        origin.save(network, out, scale=scale)

    return Model(
        init=lambda key: begin(key, origin.init(key)),
        pretrained=(lambda: begin(seed_key(seed), origin.read())) if origin.folder else None,
        export={"model": export},
        generate=generate,
    )


def _frozen(objective: Objective, perceptual: Perceptual | None, run: Run, mesh: Mesh | None) -> Any:
    """What the loss is given, which is read when a training begins; says what of the objective has no effect on it."""
    if objective.critic_weight and run.steps <= objective.critic_start:
        _say(f"the critic has no effect: it begins after {objective.critic_start} updates, and there are {run.steps}")
    if perceptual is None:
        if objective.perceptual == "efficientnet" and objective.perceptual_weight:
            _say(MISSING)
        return {}
    params = perceptual.read()
    return {"perceptual": params if mesh is None else jax.device_put(params, shard_params(params, mesh))}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(f"jaxdiff: {text}", file=sys.stderr)


def _reader(shown: Callable[[], data.Dataset]) -> Callable[[np.ndarray], np.ndarray]:
    """Read pictures by number, in a random order that is always the same: folders are sorted by class."""

    @functools.cache
    def opened() -> tuple[data.Dataset, np.ndarray]:
        source = shown()
        return source, np.random.default_rng(0).permutation(len(source))

    def read(index: np.ndarray) -> np.ndarray:
        source, order = opened()
        chosen = [int(order[i % len(order)]) for i in index]
        return data.to_float(np.stack([e["x"] for part in data.read_ahead(source, 64, chosen) for e in part]))

    return read


def _latent_std(codec: Any, params: Params, images: data.Dataset) -> float:
    """Standard deviation of the latents of training images, drawn from their posteriors."""
    encode, sums = jax.jit(codec.encode), []
    x = data.to_float(data.load_arrays(images, min(MEASURED, len(images)))["x"])
    for start in range(0, len(x), AT_ONCE):
        encoded = encode(params, x[start : start + AT_ONCE])
        mean, std = encoded if isinstance(encoded, tuple) else (encoded, 0.0)
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        sums.append([mean.size, mean.sum(), np.sum(mean**2 + std**2)])
    count, total, squares = np.sum(sums, axis=0)
    return float(np.sqrt(squares / count - (total / count) ** 2))
