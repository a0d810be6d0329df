"""An experiment that has what a run may have beside its network, all as small as can be.

Points of captions: a text encoder that learns with the network, a frozen autoencoder, and a learned variance.
"""

from collections.abc import Iterator
from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import interop, latents, losses, media, models, networks, text, text_encoders, train
from jaxdiff.autoencoders import Codec
from jaxdiff.conditions import prompts
from jaxdiff.experiment import Experiment, Sampling, Training
from jaxdiff.options import Run

CAPTIONS = ("left", "right", "left up", "right up")
GUIDANCE = 2.0


class WithVariance(networks.MLP):
    """An MLP that returns (F, frac)."""

    @nn.compact
    def __call__(self, x, noise, cond=None, *, train=False):
        frac = self.param("frac", nn.initializers.ones, x.shape[-1:])
        return super().__call__(x, noise, cond, train=train), frac[None] * (1 + jnp.abs(x))


def autoencoder():
    """Latents are the data times a parameter, which is 3."""
    encode = lambda params, x: (params * x, 0.1 * jnp.ones_like(x))  # noqa: E731
    return interop.Pretrained(Codec(encode, lambda params, z: z / params, 1, 2, 1.0, 0.0), jnp.float32(3), {})


def experiment(run: Run = Run(8, batch=8, lr=1e-2, preview_every=0)) -> Experiment:
    """Flow matching of latents that are encoded in each step."""
    own = text_encoders.own(text.Vocabulary.of(CAPTIONS, length=4), width=8, layers=1, num_heads=2)
    vae, process = autoencoder(), jd.processes.Flow()

    def encode(params, cond):
        return {"vector": own.encode(params, cond)["vector"]}

    condition = prompts(own.tokenize, encode, captions=CAPTIONS, vocabulary=own.vocabulary.words)
    model = models.of(
        WithVariance(width=8, num_blocks=1, pooled_dim=8), process, jd.parameterize.velocity, shape=(2,),
        condition=condition, learned_variance=True, autoencoder=vae, text=own,
    )  # fmt: skip
    tokens, places = own.tokenize(CAPTIONS), np.array([[-1, 0], [1, 0], [-1, 1], [1, 1]], np.float32)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, run.steps):
            i = np.random.default_rng(step).integers(0, 4, run.batch)[slice(None) if rows is None else rows]
            yield {"x": places[i], **{name: a[i] for name, a in tokens.items()}}

    def of_batches(loss):
        return latents.encoding_loss(losses.latent_loss(loss), vae)

    denoising = losses.denoising_loss(
        condition.encoded(model.apply), process, model.prediction, null_cond=condition.null, cond_dropout=0.1
    )
    training = Training(
        of_batches(denoising), train.adamw(run.lr), train.ema.warmup(0.9), batches, batch=run.batch, steps=run.steps,
        preview_every=run.preview_every, of_batches=of_batches,
    )  # fmt: skip
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.ddpm("learned"), steps=4, guidance=GUIDANCE)
    decode = lambda params, z: vae.apply.decode_latents(params[1]["vae"], z)  # noqa: E731
    medium = replace(media.points(preview=8), path=False, decode=decode)
    return Experiment(model, training, sampling, condition, medium, run.seed)
