"""A trained run of pictures, tuned towards what a classifier recognizes, by its gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import distill, few_steps, sharding, solvers, train
from jaxdiff.distill.base import split_inputs
from jaxdiff.experiment import Experiment, UserError
from jaxdiff.few_steps import Teacher
from jaxdiff.media.classifier import (
    FittedClassifier,
    fit_classifier,
    init_classifier,
    load_classifier,
    save_classifier,
)
from jaxdiff.networks.classifier import Classifier
from jaxdiff.options import Run
from jaxdiff.planning import scratch
from jaxdiff.seeds import seed_key
from jaxdiff.train.checkpoint.together import first_does
from jaxdiff.types import Cond, Loss, Params

__all__ = ["REWARD", "experiment_of", "load_base", "load_reward", "log_probability", "loss_of"]

REWARD = "reward.npz"  # in the folder of the run that is tuned
SEED = 2**20  # of the reward's classifier: that of `jaxdiff eval` has another, or it would measure its own errors
PICTURES = 10_000  # of training, to fit it
STEPS = 8  # of a sample in training


def load_base(path: str, run: Run) -> Teacher:
    """Load the run that shall be tuned.

    Args:
        path: its folder.
        run: the knobs of the tuning.

    Raises:
        UserError: it is not one of pictures with classes, has a text encoder, an autoencoder or a learned variance, or
            as `few_steps.load_teacher` does.
    """
    # Of steps as many as the classifier's pictures take: the data may end with them.
    enough = replace(run, steps=max(run.steps, -(-PICTURES // run.batch)))
    base = few_steps.load_teacher(path, enough, guidance=1.0)
    model = base.experiment.model
    if model.frozen is not None or model.network_key is not None or model.learned_variance:
        raise UserError(
            f"what is tuned is a network without text encoder, autoencoder and learned variance; {path} has one"
        )
    spec, shape = base.experiment.training.batch_spec, base.experiment.medium.shape
    if spec.keys() != {"x", "label"} or len(shape) != 3 or base.experiment.condition.choices < 2:
        raise UserError(f"a reward by a classifier needs a run of pictures with two classes or more; {path} is none")
    return base


def load_reward(base: Teacher) -> FittedClassifier:
    """Read the classifier in the run's folder; fit it to the run's training data if there is none yet.

    Within `planning`, which asks for shapes alone, it is not fitted.

    Args:
        base: the run.

    Raises:
        UserError: the classifier there takes other pictures or knows other classes.
    """
    path, experiment = base.path / REWARD, base.experiment
    shape, classes = experiment.medium.shape, experiment.condition.choices
    if scratch() is not None and not path.exists():
        return init_classifier(shape, classes, seed_key(SEED))
    first_does("reward", lambda: None if path.exists() else _fit(path, experiment))
    classifier = load_classifier(path)
    found = *classifier.shape, classifier.params["head"]["bias"].size
    wanted = *shape, classes
    if found != wanted:
        raise UserError(
            f"{path} is for pictures and classes (height, width, channels, classes) {found}, and the run has {wanted}: "
            "delete it to fit another"
        )
    return classifier


def _fit(path: Path, experiment: Experiment) -> None:
    """Fit the classifier to the first of the run's training data, and write it."""
    size = experiment.training.batch
    batches = list(islice(experiment.training.batches(0, np.arange(size)), -(-PICTURES // size)))
    x, label = (np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in ("x", "label"))
    classes = experiment.condition.choices
    save_classifier(path, fit_classifier(x, label, num_classes=classes, seed=SEED, progress=True))


def log_probability(params: Params, x0: Array, cond: Cond) -> Array:
    """The reward: log p(label | picture), at most 0.

    Args:
        params: of the classifier.
        x0: [B, H, W, C]; what lies outside of [-1, 1] counts as it is shown.
        cond: with "label", int [B].

    Returns:
        [B].
    """
    logits, _ = Classifier(params["head"]["bias"].size).apply({"params": params}, jnp.clip(x0, -1, 1))
    return jnp.take_along_axis(jax.nn.log_softmax(logits), cond["label"][:, None], axis=-1)[:, 0]


def loss_of(base: Teacher, kl: float, last: int) -> Loss:
    """Make the loss, whose context has frozen {"teacher", "reward"}.

    Args:
        base: the run.
        kl: factor of the divergence from the run, in nats of reward.
        last: steps of a sample that are differentiated.

    Raises:
        ValueError: `last` is more than the steps of a sample, or 1 with a penalty, which the last step has none of.
    """
    apply, prediction, reference = base.experiment.model.apply, base.prediction, base.denoiser(guided=False)
    levels, solver = base.experiment.sampling.grid(STEPS), solvers.dpmpp_2m()

    def rewarded(reward: Any) -> Loss:
        return distill.reward_loss(
            apply, levels, prediction, reward, solver=solver, last=last, reference=reference, kl=kl
        )

    def loss(inputs: Any, key: Array, batch: Any) -> Any:
        _, context = split_inputs(inputs)
        return rewarded(lambda x0, cond: log_probability(context.frozen["reward"], x0, cond))(inputs, key, batch)

    rewarded(lambda x0, cond: x0)  # refuses numbers that do not fit before anything is fitted
    return loss


def experiment_of(base: Teacher, loss: Loss, run: Run, *, optimizer: Any) -> Experiment:
    """Make the experiment of a run that is tuned; its samples are drawn without guidance.

    Args:
        base: the run, with whose averaged parameters it begins.
        loss: from `loss_of`.
        run: the common knobs.
        optimizer: an optax optimizer.
    """
    given = base.experiment

    def frozen(mesh: Mesh | None) -> Any:
        reward = load_reward(base).params
        where = None if mesh is None else sharding.shard_params(reward, mesh)
        return {"teacher": base.parameters(mesh), "reward": jax.device_put(reward, where)}

    def pretrained() -> Params:
        return jax.tree.map(lambda a: a.astype(jnp.float32), base.parameters())

    training = replace(
        given.training,
        loss=loss,
        optimizer=optimizer,
        ema=train.ema.warmup(0.9),
        steps=run.steps,
        frozen=frozen,
        given=distill.context(),
        snapshot_every=0,
        save_every=None,
    )
    return replace(
        given,
        model=replace(given.model, pretrained=pretrained, export={}),
        training=training,
        sampling=replace(given.sampling, guidance=1.0),
        seed=run.seed,
    )
