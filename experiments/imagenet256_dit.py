"""DiT-XL/2 on the latents of ImageNet 256x256 (Peebles and Xie 2022, arXiv:2212.09748): 675 million parameters.

`jaxdiff encode DIRECTORY --out latents/imagenet256` writes the latents, with Stable Diffusion's autoencoder.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import conditions, data, models, networks, train, training
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import Autoencoder, CondDropout, Count, Decay, File, Remat, Run


def experiment(
    run: Run = Run(steps=7_000_000, batch=256, lr=1e-4, preview_every=10_000),
    width: Count = 1152,
    layers: Count = 28,
    num_heads: Count = 16,
    patch_size: Count = 2,
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.9999,
    remat: Remat = "dots",
    unroll: Count = 1,
    source: File = "latents/imagenet256",
    latent: tuple[Count, Count, Count] = (32, 32, 4),
    num_classes: Count = 1000,
    autoencoder: Autoencoder = "",
    mesh: Mesh | None = None,
) -> Experiment:
    """Eps predictions with learned variance on 1000 linear betas, sampled by 250 ancestral steps.

    Args:
        width: of the tokens.
        layers: blocks.
        num_heads: of the attention.
        patch_size: edge of a patch, in latents.
        unroll: blocks per turn of the loop over them; all compile for minutes, and save a GPU a third of its writes.
        source: folder of .npz files of mean, std and label.
        latent: height, width and channels of the latents.
        num_classes: of the labels.
        mesh: where the autoencoder lies; None is the default device.
    """
    condition, vae = conditions.label(num_classes), models.load_autoencoder(autoencoder, mesh)
    moments = jax.ShapeDtypeStruct(latent, jnp.float32)
    network = networks.dit_xl_2(
        width=width, layers=layers, num_heads=num_heads, patch_size=patch_size, num_classes=num_classes, remat=remat,
        unroll=unroll, dtype=compute_dtype(),
    )  # fmt: skip
    process, eps = jd.processes.Discrete.linear(), jd.parameterize.zero_based(jd.parameterize.eps)
    model = models.of(network, process, eps, shape=latent, condition=condition, learned_variance=True, autoencoder=vae)
    hybrid = jd.losses.hybrid_loss(model.apply, process, eps, null_cond=condition.null, cond_dropout=cond_dropout)
    learning = training.of(
        run, data.NpzShards(source, {"mean": moments, "std": moments, **condition.spec}), condition,
        loss=jd.losses.latent_loss(hybrid), optimizer=train.adamw(run.lr, clip_norm=None), ema=train.ema.constant(ema),
    )  # fmt: skip
    sampling = Sampling(lambda n: jd.grids.ddpm(process, n), jd.solvers.ddpm("learned"), steps=250, guidance=1.5)
    return Experiment(model, learning, sampling, condition, models.latent_medium(latent, vae), run.seed)
