"""An autoencoder for the latents of diffusion models: a small one from scratch in minutes, or another project's."""

from jax.sharding import Mesh

from jaxdiff import data, first_stage, train
from jaxdiff.experiment import Experiment
from jaxdiff.options import Decay, Natural, Run, Source


def experiment(
    architecture: first_stage.Architecture = first_stage.Architecture(),
    objective: first_stage.Objective = first_stage.Objective(),
    run: Run = Run(steps=1500, batch=32, lr=2e-3, preview_every=500),
    source: Source = "fashion_mnist",
    split: str = "test",
    size: Natural = 0,
    channels: Natural = 0,
    ema: Decay = 0.995,
    mesh: Mesh | None = None,
) -> Experiment:
    """The first stage of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), with a KL term or a codebook.

    `jaxdiff sample` shows reconstructions next to their originals, `jaxdiff eval` measures them, and `jaxdiff convert`
    writes the autoencoder as a folder for diffusers, with the scale of its latents.

    Args:
        split: of the data, whose reconstructions are shown and measured.
        size: of the images; by default their own.
        channels: of the images, 1 or 3; by default their own.
        mesh: where parameters that are read lie; None is the default device.
    """
    fitted = {"size": size or None, "channels": channels or None}
    images = data.open_dataset(source, **fitted)
    return first_stage.make_experiment(
        first_stage.open_origin(architecture, images.shape, mesh),
        objective,
        run,
        images,
        shown=lambda: data.open_dataset(source, split, **fitted),
        # Both players have the betas of Esser et al. 2021.
        optimizer=lambda n: train.adamw(
            run.lr, warmup_steps=min(50, n // 10), steps=n, schedule="cosine", b1=0.5, b2=0.9
        ),
        ema=train.ema.warmup(ema),
    )
