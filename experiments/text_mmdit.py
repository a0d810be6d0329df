"""An MMDiT of 8 billion parameters, from texts to latents (Esser et al. 2024, arXiv:2403.03206).

`jaxdiff encode DIRECTORY --source folder:PICTURES --prompt "a {}" --out latents/texts` writes what it learns from, with
Stable Diffusion 3's autoencoder and text encoders.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, interop, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, File, Natural, Seed


def experiment(
    steps: Count = 500_000,
    batch: Count = 4096,
    lr: float = 1e-4,
    seed: Seed = 0,
    depth: Count = 38,
    warmup: Natural = 1000,
    drop_rate: float = 0.1,
    ema: float = 0.9999,
    accumulate: Count = 1,
    remat: Literal["none", "dots", "full"] = "dots",
    moments: Literal["float32", "bfloat16"] = "float32",
    shift: float = 1.0,
    source: File = "latents/texts",
    latent: tuple[Count, Count, Count] = (32, 32, 16),
    tokens: tuple[Count, Count] = (333, 4096),
    vector: Count = 2048,
    prompts: File = "",
    autoencoder: File = "",
    preview_every: Count = 10_000,
    mesh: Mesh | None = None,
) -> Experiment:
    """Rectified flow at logit-normal times, with classifier-free guidance.

    Args:
        steps: updates of the parameters.
        batch: images in an update.
        lr: learning rate after its warm-up.
        seed: of parameters, training noise and data order.
        depth: of the network: blocks, heads, and its width over 64.
        warmup: steps of linear warm-up.
        drop_rate: share of images trained without their text.
        ema: decay of the parameters' average.
        accumulate: microbatches in an update.
        remat: what the backward pass computes again: none, dots (all but products) or full (each block).
        moments: what the gradients' average is stored as.
        shift: of the times towards noise, 1 for images of 256 pixels, 3 for 1024.
        source: folder of .npz files of mean, std, tokens and vector.
        latent: height, width and channels of the latents.
        tokens: number and width of a text's tokens, by default 77 of CLIP and 256 of T5.
        vector: width of its pooled vector.
        prompts: .npz file of tokens and vector, a row for each text of the previews, and a last one that says nothing,
            as where training drops a text; by default that is 0, and previews are of no text.
        autoencoder: folder of the autoencoder that decodes samples; without it they are latents.
        preview_every: steps between two grids of samples.
        mesh: where the autoencoder and the prompts lie; None is the default device.
    """
    of_latent = jax.ShapeDtypeStruct(latent, jnp.float32)
    of_text = {
        name: jax.ShapeDtypeStruct(one, jnp.float16) for name, one in (("tokens", tokens), ("vector", (vector,)))
    }
    example = {"mean": of_latent, "std": of_latent, **of_text}
    images = data.Shards(source, example)
    nothing = {name: np.zeros((1, *one.shape), one.dtype) for name, one in of_text.items()}
    said = data.open_table(prompts) if prompts else nothing
    silent = len(said["vector"]) - 1
    network = networks.stable_diffusion_3(
        depth, token_dim=tokens[1], vector_dim=vector, qk_norm=True, remat=remat, dtype=compute_dtype()
    )
    of_network = networks.as_apply(network)
    place = None if mesh is None else lambda tree: train.shard_params(tree, mesh)
    vae = interop.load(autoencoder, dtype=compute_dtype(), place=place) if autoencoder else None
    process = jd.processes.Flow()
    row = jd.parameterize.time_scaled(jd.parameterize.velocity)

    def apply(params: Any, x: Any, noise: Any, cond: Any, **options: Any) -> Any:
        if "tokens" not in cond:  # samples know the number of their prompt
            label = cond.get("label", jnp.full((len(x),), silent))
            cond = {name: rows[label] for name, rows in params[1]["said"].items()}
        return of_network(params[0], x, noise, cond, **options)

    loss = jd.losses.denoising_loss(
        apply,
        process,
        row,
        times=jd.times.logit_normal(mean=math.log(shift)),  # the logit of a shifted time is larger by log(shift)
        null={name: rows[-1:] for name, rows in said.items()},
        drop_rate=drop_rate,
    )
    return Experiment(
        init=lambda key: networks.init(
            network, key, jnp.zeros((1, *latent)), {name: rows[-1:] for name, rows in said.items()}
        ),
        apply=apply,
        frozen={
            "said": jax.device_put(said, None if place is None else place(said)),
            "vae": {} if vae is None else vae.params,
        },
        decode=(lambda params, z: z) if vae is None else lambda params, z: vae.apply.to_images(params[1]["vae"], z),
        process=process,
        row=row,
        loss=jd.losses.latent_loss(loss),
        optimizer=train.adamw(lr, warmup=warmup, mu_dtype=jnp.dtype(moments)),
        ema=train.ema.warmup(ema),
        batches=lambda start, rows=None: data.batches(images, batch, seed=seed, start=start, rows=rows),
        batch=batch,
        example=example,
        steps=steps,
        seed=seed,
        shape=latent,
        grid=lambda n: jd.grids.shifted(process, n, shift),
        solver=jd.solvers.euler(),
        sample_steps=50,
        accumulate=accumulate,
        preview_every=preview_every,
        preview=10,
        num_classes=silent,
        null_label=silent,
        guidance=5.0,
    )
