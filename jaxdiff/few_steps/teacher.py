"""The trained run of which a few-step model is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxdiff import distill, networks, train
from jaxdiff.conditions.base import unaugmented
from jaxdiff.experiment import Experiment, Model, UserError
from jaxdiff.losses import latent_loss
from jaxdiff.options import Run
from jaxdiff.parameterize import Prediction, mean_output
from jaxdiff.pretrained import open_run
from jaxdiff.processes import Process
from jaxdiff.recipe import check_vocabulary, load_run
from jaxdiff.times import default_times, on_grid
from jaxdiff.types import Apply, Batch, Cond, Denoiser, Loss, Metrics, TimeSampler

__all__ = ["Teacher", "load_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A trained run.

    Attributes:
        path: its folder.
        experiment: its experiment, with the batch size and the seed of the student's training.
        guidance: the scale that is distilled into the student; 1: none.
        frozen: the arrays that student and teacher share, which nobody trains: the model's, and what the run has
            trained with its network, such as a text encoder.
    """

    path: Path
    experiment: Experiment
    guidance: float
    frozen: Any = field(default=None, repr=False)

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
    def null_cond(self) -> Callable[[distill.Context], Cond] | None:
        """The null condition as the network is given it, or None; see `of_batches`."""
        return None if self.experiment.condition.null is None else lambda context: context.frozen["null_cond"]

    @property
    def times(self) -> TimeSampler:
        """Times to learn at: of the process, or where these hardly reach its noisiest ones, of the sampler's steps."""
        if getattr(self.process, "t_max", None) is not None:
            return default_times(self.process)
        return on_grid(self.experiment.sampling.grid(1000))

    def parameters(self, mesh: Mesh | None = None) -> Any:
        """Read the averaged parameters of its network.

        Args:
            mesh: where they lie; None is the default device.
        """
        params, key = train.load_params(self.path, "ema", mesh=mesh), self.experiment.model.network_key
        return params if key is None else params[key]

    def apply(self, network: Any = None) -> Apply:
        """Make its network, or another one with its outputs, a pure function of encoded conditions.

        A learned variance is left out: what is distilled is the mean.
        """
        apply = networks.as_apply(self.network if network is None else network)
        return mean_output(apply) if self.experiment.model.learned_variance else apply

    def encode(self, frozen: Any, cond: Cond) -> Cond:
        """Encode a condition as the run does, with the frozen arrays; the scale of a distilled guidance is kept."""
        scale = {name: a for name, a in cond.items() if name == "guidance"}
        rest = {name: a for name, a in cond.items() if name not in scale}
        return {**self.experiment.condition.encode((frozen, frozen), rest), **scale}

    def encoded_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one encoded condition, leaves [1, ...]."""
        return jax.eval_shape(self.encode, self.frozen, self.experiment.condition.zeros())

    def of_batches(self, loss: Loss) -> Loss:
        """Make the loss of the run's batches of a loss of what its network is given.

        Args:
            loss: of ((params, distill.Context), key, batch), whose batch has an encoded condition, and whose context
                has the null one, encoded likewise, as frozen["null_cond"].

        Returns:
            the loss, whose context has the teacher's parameters as frozen["teacher"] and the shared arrays as
            frozen["model"].
        """
        part, condition = self.experiment.training, self.experiment.condition
        of_latents = latent_loss if "mean" in part.batch_spec else lambda loss: loss
        prepare = of_latents if part.of_batches is None else part.of_batches

        def of_batch(inputs: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
            params, context = inputs
            frozen = context.frozen["model"]

            def of_examples(_: Any, key: Array, batch: Batch) -> tuple[Array, Metrics]:
                data = {name: a for name, a in batch.items() if name in ("x", "eps")}
                cond = {name: a for name, a in batch.items() if name not in data}
                seen = context
                if condition.null is not None:
                    null = self.encode(frozen, _without(cond, condition.null))
                    seen = context._replace(frozen={**context.frozen, "null_cond": null})
                return loss((params, seen), key, {**data, **self.encode(frozen, cond)})

            return prepare(of_examples)(params if frozen is None else (params, frozen), key, batch)

        return of_batch

    def init(self, network: Any, key: Array) -> Any:
        """Draw the parameters of another network of the same data and condition.

        Args:
            network: a Flax module; "next_noise" and "guidance" are added to the condition where it takes them.
            key: random key.
        """
        cond, number = self.encoded_spec(), jax.ShapeDtypeStruct((1,), jnp.float32)
        if getattr(network, "next_noise", False):
            cond["next_noise"] = number
        if getattr(network, "guidance_dim", None) is not None:
            cond["guidance"] = number
        return networks.init(network, key, jnp.zeros((1, *self.experiment.medium.shape)), cond)

    def denoiser(self, *, guided: bool = True) -> distill.Teacher:
        """Make its denoiser, whose parameters are `context.frozen["teacher"]`.

        Args:
            guided: with the guidance that is distilled, where there is any.
        """
        if not guided or self.guidance == 1:
            return distill.teacher(self.apply(), self.prediction)
        return distill.teacher(self.apply(), self.prediction, guide=self.guide, null_cond=self.null_cond)

    def guide(self, cond: Denoiser, uncond: Denoiser) -> Denoiser:
        """Guide as the run's sampler does."""
        return self.experiment.sampling.guide(cond, uncond, self.guidance)

    @property
    def max_guidance(self) -> float:
        """The largest scale that a network learns which takes it as an input."""
        return max(2.0, 1.5 * self.guidance)


def load_teacher(path: str, run: Run, guidance: float | None = None, mesh: Mesh | None = None) -> Teacher:
    """Load the run that a few-step model is made of.

    Args:
        path: its folder, or the name of a run of the package.
        run: the knobs of the student's training.
        guidance: the scale to distil; None is that of the run's samples.
        mesh: where the arrays lie that nobody trains; None is the default device.

    Raises:
        UserError: it has a network that `models.of` has not made, batches or a noised condition that are not what the
            network learns and no `of_batches`, or it is a few-step model that cannot be a teacher.
        ValueError: guidance of a model without a null condition; the run's captions had other words.
    """
    changes = {name: getattr(run, name) for name in ("steps", "batch", "seed", "grad_accum_steps", "preview_every")}
    folder = open_run(Path(path))
    experiment = load_run(folder, changes=changes, mesh=mesh)
    check_vocabulary(folder, experiment.condition)
    model, augments = experiment.model, experiment.condition.augment is not unaugmented
    spec = experiment.training.batch_spec
    strange = "mean" not in spec and spec["x"].shape != experiment.medium.shape  # pictures of a model of latents, say
    plain = experiment.training.of_batches is None
    refused = {
        "no diffusion": model.generate is not None,
        "noise on its condition, without training.of_batches": augments and plain,
        "batches that its network does not learn, without training.of_batches": plain and strange,
        "frozen arrays that are no dict": not isinstance(model.frozen, dict | None),
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
    return Teacher(folder, experiment, scale, _shared(folder, model, mesh))


def _shared(folder: Path, model: Model, mesh: Mesh | None) -> Any:
    """All arrays but the network's: those that the run did not train, and those that it trained with the network."""
    if model.network_key is None:
        return model.frozen
    trained = train.load_params(folder, "ema", mesh=mesh)
    return {**(model.frozen or {}), **{name: tree for name, tree in trained.items() if name != model.network_key}}


def _without(cond: Cond, null: Mapping[str, Any]) -> Cond:
    """The null condition of a batch, whose entries that have no null are kept; of one example, if none is kept."""
    absent = {name: jnp.asarray(null[name], a.dtype) for name, a in cond.items() if name in null}
    kept = {name: a for name, a in cond.items() if name not in null}
    if not kept:
        return absent
    return {**kept, **{name: jnp.broadcast_to(a, cond[name].shape) for name, a in absent.items()}}
