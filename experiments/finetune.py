"""Go on training another project's network, or distil it: all of it, a part, low-rank adapters, or a ControlNet."""

from typing import Annotated

from jax.sharding import Mesh

from jaxdiff import finetune, train, training
from jaxdiff.experiment import Experiment
from jaxdiff.options import CondDropout, Decay, Range, Run, Scale, refuse_unused


def experiment(
    network: finetune.Network,
    pictures: finetune.Pictures = finetune.Pictures(),
    run: Run = Run(steps=1000, batch=32, lr=1e-4),
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.999,
    guidance: Scale = 1.0,
    sample_steps: Annotated[int, Range(0, 100_000)] = 0,
    mesh: Mesh | None = None,
) -> Experiment:
    """Fine-tuning, of all parameters, low-rank adapters (arXiv:2106.09685) or a ControlNet (arXiv:2302.05543).

    Distillation into few steps is that of latent consistency models (arXiv:2310.04378), with adapters LCM-LoRA
    (arXiv:2311.05556); into a network that is given the guidance scale, arXiv:2210.03142, stage one.

    What noises the data and what the network predicts is read from scheduler_config.json in the network's folder or in
    "scheduler" beside it. Without one it is DDPM's linear table and the noise, or for SD3 and Flux a flow and its
    velocity.

    Args:
        guidance: classifier-free guidance scale of the samples, or of the teacher where that is distilled; or what a
            network made for it is given, always.
        sample_steps: steps of a sample; 0: 50, or 4 of a consistency model.
        mesh: where the network's own parameters lie; None is the default device.
    """
    origin = finetune.read_origin(network, mesh)
    asked = finetune.open_condition(origin, pictures, network, guidance=guidance)
    if network.distill != "none" or asked.null_label is None:
        why = f"--distill {network.distill}" if network.distill != "none" else "a network without a null condition"
        refuse_unused(experiment, why, cond_dropout=cond_dropout)
    shape = origin.shape(asked.images.shape)
    hint = asked.condition.spec["hint"].shape if network.mode == "control" else ()
    scheduler = origin.scheduler(shape)
    tuned = finetune.tune(origin, network, seed=run.seed, shape=shape, hint=hint)
    model = finetune.make_model(origin, asked, tuned, scheduler)
    sampling = finetune.make_sampling(origin, scheduler, network, steps=sample_steps, guidance=guidance)
    learning = training.of(
        run,
        asked.images,
        asked.condition,
        optimizer=train.adamw(run.lr, warmup_steps=min(100, run.steps // 10)),
        ema=train.ema.warmup(ema),
        **finetune.make_objective(
            model, origin, asked, sampling, network=network, guidance=guidance, cond_dropout=cond_dropout
        ),
    )
    medium = finetune.make_medium(origin, shape, pictures.source)
    return Experiment(model, learning, sampling, asked.condition, medium, run.seed)
