"""Phantoms of magnetic resonance imaging, a prior for reconstruction, in a quarter of an hour. Not for clinical use.

`benchmarks/mri.py` reconstructs undersampled measurements with it: docs/mri.md.
"""

import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, data, media, models, networks, train, training
from jaxdiff.domains import medical
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import Count, Decay, Run, Width


def experiment(
    run: Run = Run(steps=2000, batch=16, lr=8e-3, preview_every=500),
    size: Count = 64,
    width: Width = 32,
    patch_size: Count = 2,
    ema: Decay = 0.998,
) -> Experiment:
    """Flow matching (Lipman et al. 2022) on random phantoms, drawn as they are needed.

    Args:
        size: side of the pictures.
        patch_size: edge of a patch, in pixels.
    """
    phantoms, condition = medical.Phantoms(size, seed=run.seed), conditions.none()

    def held_out(count: int) -> np.ndarray:
        others = medical.Phantoms(size, seed=run.seed + 1, count=count)
        return data.to_float(data.load_arrays(others)["x"])

    network = networks.UNet(
        widths=(width, 2 * width, 3 * width),
        num_blocks=1,
        attention=(2,),
        resample="pool",
        groups=8,
        patch_size=patch_size,
        scale_shift=True,
        head_dim=width,
        time=networks.Sinusoidal(),
        dtype=compute_dtype(),
    )
    process = jd.processes.Flow()
    model = models.of(network, process, jd.parameterize.velocity, shape=phantoms.shape, condition=condition)
    loss = jd.losses.denoising_loss(model.apply, process, model.prediction, times=jd.times.stratified())
    optimizer = train.muon(run.lr, warmup_steps=min(50, run.steps // 10), steps=run.steps, schedule="cosine")
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=24)
    learning = training.of(run, phantoms, condition, loss=loss, optimizer=optimizer, ema=train.ema.warmup(ema))
    return Experiment(model, learning, sampling, condition, media.unconditional(phantoms.shape, held_out), run.seed)
