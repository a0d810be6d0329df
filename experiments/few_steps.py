"""A model of one to a few steps, made of a trained run: `--teacher runs/fashion --method consistency`."""

from typing import Any, Literal

from jax.sharding import Mesh

from jaxdiff import few_steps, train
from jaxdiff.experiment import Experiment
from jaxdiff.options import File, Run, Scale, Steps

Method = Literal[
    "adversarial", "consistency", "continuous_consistency", "distribution_matching", "ect", "eulerian", "gan",
    "guidance", "lagrangian", "latent_adversarial", "mean_flow", "progressive", "reflow", "semigroup", "shortcut",
    "trajectory",
]  # fmt: skip


def experiment(
    teacher: File,
    method: Method = "consistency",
    run: Run = Run(steps=600, batch=32, lr=2e-3, preview_every=300),
    guidance: Scale | None = None,
    sample_steps: Steps | None = None,
    mesh: Mesh | None = None,
) -> Experiment:
    """Few-step training, from the weights of a trained run; each method of `jaxdiff.distill`.

    Args:
        teacher: the folder of the trained run, or emoji or fashion, which come with the package.
        method: how the student learns.
        guidance: classifier-free guidance scale that is distilled into the student; by default that of the run's
            samples.
        sample_steps: steps of a sample, for which some methods train; by default 1, of `guidance` those of the run.
        mesh: where the arrays lie that teacher and student share; None is the default device.
    """

    def optimizer(updates: int, rate: float) -> Any:
        options: Any = {"warmup_steps": min(20, updates // 10), "steps": updates, "schedule": "cosine"}
        if method == "gan":  # without momentum, as Huang et al. 2024
            return train.adamw(rate * run.lr, b1=0.0, b2=0.95, **options)
        return train.muon(rate * run.lr, **options)

    original = few_steps.load_teacher(teacher, run, guidance, mesh)
    chosen = few_steps.choose(original, run, method, guidance=guidance, steps=sample_steps)
    return few_steps.experiment_of(original, chosen, run, optimizer=optimizer)
