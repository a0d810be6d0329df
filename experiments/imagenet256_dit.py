"""DiT-XL/2 on the latents of ImageNet 256x256 (Peebles and Xie 2023, arXiv:2212.09748): 675 million parameters.

`jaxdiff encode DIRECTORY --out latents/imagenet256` writes the latents, with Stable Diffusion's autoencoder.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, interop, networks, train
from jaxdiff.experiment import Experiment, compute_dtype
from jaxdiff.options import Count, File, Seed


def experiment(
    steps: Count = 7_000_000,
    batch: Count = 256,
    lr: float = 1e-4,
    seed: Seed = 0,
    width: Count = 1152,
    layers: Count = 28,
    heads: Count = 16,
    patch: Count = 2,
    drop_rate: float = 0.1,
    ema: float = 0.9999,
    accumulate: Count = 1,
    remat: Literal["none", "dots", "full"] = "dots",
    source: File = "latents/imagenet256",
    latent: tuple[Count, Count, Count] = (32, 32, 4),
    num_classes: Count = 1000,
    autoencoder: File = "",
    preview_every: Count = 10_000,
    mesh: Mesh | None = None,
) -> Experiment:
    """Eps predictions with learned variance on 1000 linear betas, sampled by 250 ancestral steps.

    Args:
        steps: updates of the parameters.
        batch: images in an update.
        lr: learning rate.
        seed: of parameters, training noise and data order.
        width: of the tokens.
        layers: blocks.
        heads: of the attention.
        patch: edge of a patch, in latents.
        drop_rate: share of images trained without their class, for classifier-free guidance.
        ema: decay of the parameters' average.
        accumulate: microbatches in an update.
        remat: what the backward pass computes again: none, dots (all but products) or full (each block).
        source: folder of .npz files of mean, std and label.
        latent: height, width and channels of the latents.
        num_classes: of the labels.
        autoencoder: folder of the autoencoder that decodes samples; without it they are latents.
        preview_every: steps between two grids of samples.
        mesh: where the autoencoder lies; None is the default device.
    """
    of_latent = jax.ShapeDtypeStruct(latent, jnp.float32)
    example = {"mean": of_latent, "std": of_latent, "label": jax.ShapeDtypeStruct((), jnp.int32)}
    images = data.Shards(source, example)
    network = networks.dit_xl_2(
        width=width,
        layers=layers,
        heads=heads,
        patch=patch,
        num_classes=num_classes,
        remat=remat,
        dtype=compute_dtype(),
    )
    of_network = networks.as_apply(network)
    place = None if mesh is None else lambda tree: train.shard_params(tree, mesh)
    vae = interop.load(autoencoder, dtype=compute_dtype(), place=place) if autoencoder else None
    process = jd.processes.Discrete.linear()
    row = jd.parameterize.zero_based(jd.parameterize.eps)
    apply = lambda params, *args, **options: of_network(params[0], *args, **options)  # noqa: E731
    null = {"label": jnp.full((1,), num_classes)}
    return Experiment(
        init=lambda key: networks.init(network, key, jnp.zeros((1, *latent)), {"label": jnp.zeros((1,), jnp.int32)}),
        apply=apply,
        frozen={"vae": {} if vae is None else vae.params},
        decode=(lambda params, z: z) if vae is None else lambda params, z: vae.apply.to_images(params[1]["vae"], z),
        process=process,
        row=row,
        loss=jd.losses.latent_loss(jd.losses.hybrid_loss(apply, process, row, null=null, drop_rate=drop_rate)),
        optimizer=train.adamw(lr, clip=None),
        ema=train.ema.constant(ema),
        batches=lambda start, rows=None: data.batches(images, batch, seed=seed, start=start, rows=rows),
        batch=batch,
        example=example,
        steps=steps,
        seed=seed,
        shape=latent,
        grid=lambda n: jd.grids.ddpm(process, n),
        solver=jd.solvers.ddpm("learned"),
        sample_steps=250,
        accumulate=accumulate,
        preview_every=preview_every,
        preview=10,
        num_classes=num_classes,
        null_label=num_classes,
        guidance=1.5,
        learned_variance=True,
    )
