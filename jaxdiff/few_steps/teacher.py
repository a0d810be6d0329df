"""The trained run of which a few-step model is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxdiff import distill, networks, train
from jaxdiff.conditions.base import unaugmented
from jaxdiff.experiment import Experiment, UserError
from jaxdiff.options import Run
from jaxdiff.parameterize import Prediction
from jaxdiff.pretrained import open_run
from jaxdiff.processes import Process
from jaxdiff.recipe import load_run
from jaxdiff.times import default_times, on_grid
from jaxdiff.types import Denoiser, TimeSampler

__all__ = ["Teacher", "load_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A trained run.

    Attributes:
        path: its folder.
        experiment: its experiment, with the batch size and the seed of the student's training.
        guidance: the scale that is distilled into the student; 1: none.
    """

    path: Path
    experiment: Experiment
    guidance: float

    @property
    def network(self) -> Any:
        """The Flax module."""
        return self.experiment.model.network

    @property
    def process(self) -> Process:
        """What noises the data."""
        return self.experiment.model.process

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return self.experiment.model.prediction

    @property
    def null_cond(self) -> Any:
        """The null condition, or None."""
        return self.experiment.condition.null

    @property
    def times(self) -> TimeSampler:
        """Times to learn at: of the process, or where these hardly reach its noisiest ones, of the sampler's steps."""
        if getattr(self.process, "t_max", None) is not None:
            return default_times(self.process)
        return on_grid(self.experiment.sampling.grid(1000))

    def parameters(self, mesh: Mesh | None = None) -> Any:
        """Read its averaged parameters.

        Args:
            mesh: where they lie; None is the default device.
        """
        return train.load_params(self.path, "ema", mesh=mesh)

    def init(self, network: Any, key: Array) -> Any:
        """Draw the parameters of another network of the same data and condition.

        Args:
            network: a Flax module; "next_noise" and "guidance" are added to the condition where it takes them.
            key: random key.
        """
        cond = {**self.experiment.condition.zeros()}
        if getattr(network, "next_noise", False):
            cond["next_noise"] = jnp.zeros(1)
        if getattr(network, "guidance_dim", None) is not None:
            cond["guidance"] = jnp.ones(1)
        return networks.init(network, key, jnp.zeros((1, *self.experiment.medium.shape)), cond)

    def denoiser(self, *, guided: bool = True) -> distill.Teacher:
        """Make its denoiser, whose parameters are `context.frozen["teacher"]`.

        Args:
            guided: with the guidance that is distilled, where there is any.
        """
        apply = networks.as_apply(self.network)
        if not guided or self.guidance == 1:
            return distill.teacher(apply, self.prediction)
        return distill.teacher(apply, self.prediction, guide=self.guide, null_cond=self.null_cond)

    def guide(self, cond: Denoiser, uncond: Denoiser) -> Denoiser:
        """Guide as the run's sampler does."""
        return self.experiment.sampling.guide(cond, uncond, self.guidance)

    @property
    def max_guidance(self) -> float:
        """The largest scale that a network learns which takes it as an input."""
        return max(2.0, 1.5 * self.guidance)


def load_teacher(path: str, run: Run, guidance: float | None = None) -> Teacher:
    """Load the run that a few-step model is made of.

    Args:
        path: its folder.
        run: the knobs of the student's training.
        guidance: the scale to distil; None is that of the run's samples.

    Raises:
        UserError: it has prompts, a condition that is noised, a learned variance, an autoencoder, a network that
            `models.of` has not made, or it is a few-step model that cannot be a teacher.
        ValueError: guidance of a model without a null condition.
    """
    changes = {name: getattr(run, name) for name in ("steps", "batch", "seed", "grad_accum_steps", "preview_every")}
    experiment = load_run(open_run(Path(path)), changes=changes)
    model = experiment.model
    texts = experiment.condition.vocabulary or (isinstance(model.frozen, dict) and "text" in model.frozen)
    refused = {
        "noise on its condition": experiment.condition.augment is not unaugmented,
        "prompts, which a text encoder reads": texts,
        "a learned variance": model.learned_variance,
        "frozen arrays, such as an autoencoder's": model.frozen is not None,
        "a network that models.of has not made": model.network is None,
        "a network that is given both ends of a step": getattr(model.network, "next_noise", False),
        "a network that is given the scale of its guidance": getattr(model.network, "guidance_dim", None) is not None,
        "several players": experiment.training.averaged is not None,
    }
    for what, found in refused.items():
        if found:
            raise UserError(f"a few-step model is not made of a run with {what}, as {path} is")
    scale = experiment.sampling.guidance if guidance is None else guidance
    if scale != 1:
        experiment.condition.check_null()
    return Teacher(Path(path), experiment, scale)
