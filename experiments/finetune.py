"""Go on training another project's network: all of it, a part, low-rank adapters, or a ControlNet that steers it."""

from dataclasses import replace

from jax.sharding import Mesh

from jaxdiff import finetune, train, training
from jaxdiff.experiment import Experiment
from jaxdiff.options import CondDropout, Count, Decay, Run


def experiment(
    network: finetune.Network,
    pictures: finetune.Pictures = finetune.Pictures(),
    run: Run = Run(steps=1000, batch=32, lr=1e-4),
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.999,
    guidance: float = 1.0,
    sample_steps: Count = 50,
    mesh: Mesh | None = None,
) -> Experiment:
    """Fine-tuning, of all parameters, low-rank adapters (arXiv:2106.09685) or a ControlNet (arXiv:2302.05543).

    What noises the data and what the network predicts is read from scheduler_config.json in the network's folder or in
    "scheduler" beside it. Without one it is DDPM's linear table and the noise, or for SD3 and Flux a flow and its
    velocity.

    Args:
        guidance: classifier-free guidance scale of the samples; or what a network made for it is given, always.
        sample_steps: steps of a sample.
        mesh: where the network's own parameters lie; None is the default device.
    """
    origin = finetune.read_origin(network, mesh)
    asked = finetune.open_condition(origin, pictures, guidance=guidance, hints=network.mode == "control")
    shape = origin.shape(asked.images.shape)
    hint = asked.condition.spec["hint"].shape if network.mode == "control" else ()
    scheduler = origin.scheduler(shape)
    tuned = finetune.tune(origin, network, seed=run.seed, shape=shape, hint=hint)
    model = finetune.make_model(origin, asked, tuned, scheduler)
    learning = training.of(
        run,
        asked.images,
        asked.condition,
        loss=finetune.make_loss(model, origin, asked, cond_dropout),
        optimizer=train.adamw(run.lr, warmup_steps=min(100, run.steps // 10)),
        ema=train.ema.warmup(ema),
    )
    return Experiment(
        model,
        learning,
        replace(scheduler.sampling, steps=sample_steps, guidance=1.0 if origin.distilled else guidance),
        asked.condition,
        finetune.make_medium(origin, shape, pictures.source),
        run.seed,
    )
