"""Edges to pictures: a ControlNet, or an adapter, for a trained run whose weights stay as they are."""

from typing import Any

from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import conditions, control, data, media, train, training
from jaxdiff.experiment import Experiment
from jaxdiff.options import CondDropout, Decay, File, Natural, Run, Source, refuse_unused


def experiment(
    base: File = "fashion",
    kind: control.Kind = "controlnet",
    run: Run = Run(steps=600, batch=32, lr=4e-3, preview_every=200),
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.98,
    snapshot_every: Natural = 50,
    source: Source = "fashion_mnist",
    mesh: Mesh | None = None,
) -> Experiment:
    """ControlNet (Zhang et al. 2023, arXiv:2302.05543) or T2I-Adapter (Mou et al. 2023, arXiv:2302.08453).

    Args:
        base: the folder of the trained run, or fashion.
        kind: a ControlNet, evaluated at every step, or an adapter, evaluated once per picture.
        snapshot_every: updates between two averages that are kept, to see when it learns to follow the edges.
        mesh: where the run's own weights lie; None is the default device.
    """
    original = control.load_base(base)
    process, prediction, null = original.model.process, original.model.prediction, original.condition.null
    if not null:
        refuse_unused(experiment, "a base without a null condition", cond_dropout=cond_dropout)
    # Samples are asked for by edges of pictures that training does not see.
    size, _, channels = original.medium.shape
    unseen = data.load_arrays(data.open_hints("edges", data.open_dataset(source, "test", size=size, channels=channels)))
    numbers = unseen["label"] if original.condition.choices else None
    hinted = conditions.hint(original.condition, unseen["hint"], numbers)
    model, condition = control.of_run(base, original, hinted, kind, seed=run.seed, mesh=mesh)
    dropout: Any = {"null_cond": null, "cond_dropout": cond_dropout} if null else {}
    apply, times = condition.encoded(model.apply), jd.times.logit_normal()
    loss = jd.losses.denoising_loss(apply, process, prediction, times=times, **dropout)
    learning = training.of(
        run,
        data.open_hints("edges", data.open_dataset(source, size=size, channels=channels)),
        condition,
        loss=loss,
        optimizer=train.muon(run.lr, warmup_steps=min(20, run.steps // 10), steps=run.steps, schedule="cosine"),
        ema=train.ema.warmup(ema),
        snapshot_every=snapshot_every,
    )
    medium = media.hinted(media.images(original.medium.shape, source=source))
    return Experiment(model, learning, original.sampling, condition, medium, run.seed)
