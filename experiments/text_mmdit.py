"""An MMDiT of 8 billion parameters, from texts to latents (Esser et al. 2024, arXiv:2403.03206).

`jaxdiff encode DIRECTORY --source folder:PICTURES --prompt "a {}" --out latents/texts` writes the data.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import conditions, data, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import Autoencoder, CondDropout, Count, Decay, File, Finite, Natural, Remat, Run


def experiment(
    run: Run = Run(steps=500_000, batch=4096, lr=1e-4, preview_every=10_000),
    depth: Count = 38,
    warmup: Natural = 1000,
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.9999,
    remat: Remat = "dots",
    moments: Literal["float32", "bfloat16"] = "float32",
    shift: Annotated[float, Finite(0.01)] = 1.0,
    source: File = "latents/texts",
    latent: tuple[Count, Count, Count] = (32, 32, 16),
    tokens: tuple[Count, Count] = (333, 4096),
    vector: Count = 2048,
    prompts: File = "",
    autoencoder: Autoencoder = "",
    mesh: Mesh | None = None,
) -> Experiment:
    """Rectified flow at logit-normal times, with classifier-free guidance.

    Args:
        depth: of the network: blocks, heads, and its width over 64.
        warmup: steps of linear warm-up.
        moments: what the gradients' average is stored as.
        shift: of the times towards noise, 1 for images of 256 pixels, 3 for 1024.
        source: folder of .npz files of mean, std, tokens and vector.
        latent: height, width and channels of the latents.
        tokens: number and width of a text's tokens, by default 77 of CLIP and 256 of T5.
        vector: width of its pooled vector.
        prompts: .npz file of tokens and vector: one row per preview prompt, and last the null prompt; else zeros.
        mesh: where the autoencoder lies; None is the default device.
    """
    empty = {"tokens": np.zeros((1, *tokens), np.float16), "vector": np.zeros((1, vector), np.float16)}
    condition = conditions.text(data.load_embeddings(prompts) if prompts else empty)
    moment, vae = jax.ShapeDtypeStruct(latent, jnp.float32), models.load_autoencoder(autoencoder, mesh)
    network = networks.stable_diffusion_3(
        depth, context_dim=tokens[1], pooled_dim=vector, qk_norm=True, remat=remat, dtype=compute_dtype()
    )
    process = jd.processes.Flow()
    model = models.of(network, process, jd.parameterize.velocity, shape=latent, condition=condition, autoencoder=vae)
    times = jd.times.logit_normal(mean=math.log(shift))  # the logit of a shifted time is larger by log(shift)
    flow = jd.losses.denoising_loss(
        model.apply, process, model.prediction, times=times, null_cond=condition.null, cond_dropout=cond_dropout
    )
    learning = training.of(
        run, data.NpzShards(source, {"mean": moment, "std": moment, **conditions.text(empty).spec}), condition,
        loss=jd.losses.latent_loss(flow), ema=train.ema.warmup(ema),
        optimizer=train.adamw(run.lr, warmup_steps=warmup, mu_dtype=jnp.dtype(moments)),
    )  # fmt: skip
    sampling = Sampling(lambda n: jd.grids.shifted(process, n, shift), jd.solvers.euler(), steps=50, guidance=5.0)
    return Experiment(model, learning, sampling, condition, models.latent_medium(latent, vae), run.seed)
