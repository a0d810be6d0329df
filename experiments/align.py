"""A trained run of pictures towards what a classifier recognizes: `--base runs/fashion --kl 0.1`."""

from typing import Annotated

from jaxdiff import alignment, train
from jaxdiff.experiment import Experiment
from jaxdiff.options import File, Finite, Run, Steps


def experiment(
    base: File = "fashion",
    run: Run = Run(steps=60, batch=16, lr=1e-3, preview_every=30),
    kl: Annotated[float, Finite(0)] = 0.1,
    last: Steps = 8,
) -> Experiment:
    """DRaFT-K (Clark et al. 2023, arXiv:2309.17400) with a KL penalty; the reward is log p(label | picture).

    Args:
        base: the folder of the trained run, or fashion.
        kl: nats of reward that a nat of divergence from the run costs.
        last: steps of the 8 of a sample through which the gradient goes.
    """
    original = alignment.load_base(base, run)
    optimizer = train.muon(run.lr, warmup_steps=min(10, run.steps // 10), steps=run.steps, schedule="cosine")
    return alignment.experiment_of(original, alignment.loss_of(original, kl, last), run, optimizer=optimizer)
