"""An experiment: everything that a run is, as real objects, in five parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxdiff.checks import check_called
from jaxdiff.conditions import Condition
from jaxdiff.losses import Batch, Loss
from jaxdiff.media import Medium
from jaxdiff.options import SEED, Range
from jaxdiff.parameterize import Apply, Params, Prediction
from jaxdiff.processes import Process
from jaxdiff.processes.base import check_process
from jaxdiff.sampling import Sampling
from jaxdiff.sharding import platform
from jaxdiff.train.ema import Decays

__all__ = ["Condition", "Experiment", "Medium", "Model", "Sampling", "Training", "UserError", "compute_dtype"]


class UserError(ValueError):
    """What an experiment raises where it cannot be made of the knobs given: a command ends with its sentence alone."""


@dataclass(frozen=True)
class Model:
    """A network and what it does: it denoises, or makes an example in one call.

    Attributes:
        init: key -> parameters.
        apply: the network, (params, x, noise[B], cond) -> F; with `frozen` it is given (params, frozen) for params.
        process: what noises the data.
        prediction: what the network predicts.
        learned_variance: whether the network returns (F, frac).
        frozen: arrays that the network, a condition or a medium needs and nobody trains, on the devices.
        pretrained: reads parameters to begin with, in place of init's.
        export: what the parameters may be written as, for other projects: a name -> (params, folder) writes it.
        network: the Flax module that `init` and `apply` are made of, where there is one, e.g. to distil it.
        network_key: the entry of the parameters that are the network's, where others are trained with it, such as a
            text encoder's; None: all are.
        generate: (params, keys [B], cond) -> x, of a model that is no diffusion model, such as an autoencoder, whose
            reconstructions are of cond["x"]. It has no `apply`, `process` and `prediction`, and its experiment no
            `sampling`; with `frozen` it is given (params, frozen) for params.
    """

    init: Callable[[Array], Params] = field(repr=False)
    # None is for `generate` alone, which whoever needs a denoiser refuses.
    apply: Apply = field(default=None, repr=False)  # type: ignore[assignment]
    process: Process = None  # type: ignore[assignment]
    prediction: Prediction = None  # type: ignore[assignment]
    learned_variance: bool = False
    frozen: Any = field(default=None, repr=False)
    pretrained: Callable[[], Params] | None = field(default=None, repr=False)
    export: Mapping[str, Callable[[Params, Path], Any]] = field(default_factory=dict, repr=False)
    network: Any = field(default=None, repr=False)
    network_key: str | None = None
    generate: Callable[[Params, Array, dict[str, Any]], Array] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        denoising, direct = ("apply", "process", "prediction"), self.generate is not None
        for name in ("init", *(("generate",) if direct else denoising)):
            if not callable(getattr(self, name)):
                raise ValueError(f"model.{name} must be a function, got {getattr(self, name)!r:.80}")
        if not direct:
            check_process(self.process)
            check_called("model.prediction", self.prediction)
        both = [name for name in denoising if direct and getattr(self, name) is not None]
        if both:
            raise ValueError(f"a model that has generate does not denoise: it has no {' and no '.join(both)}")

    def merge_frozen(self, params: Params) -> Params:
        """What `apply` is given, of the trained parameters."""
        return params if self.frozen is None else (params, self.frozen)


@dataclass(frozen=True)
class Training:
    """How a model learns.

    Attributes:
        loss: (params, key, batch) -> (loss, metrics); with `model.frozen`, `frozen` or `given` it is given (params,
            frozen) or (params, what `given` returns) for params.
        optimizer: an optax optimizer.
        ema: step -> decay of the parameters' average, or a tuple of such for as many averages; see `train.ema`.
        batches: (first step, indices of a batch's examples that this host reads; None, all) -> iterator of batches from
            there on.
        batch: examples in an update, of all hosts together.
        steps: batches in the whole run.
        batch_spec: name -> shape and dtype of one example of a batch, without the leading axis; by default "x",
            float32 of the medium's shape, and the condition's entries.
        grad_accum_steps: microbatches in an update.
        steps_per_call: updates in one call of the step.
        ema_memory: where the averages wait between two updates; see `train.init_state`.
        snapshot_every: steps between two snapshots of the averages, which stay; 0: none.
        preview_every: steps between two previews; 0: none.
        save_every: steps between two checkpoints; None: as between two previews, or 1000 without previews.
        frozen: mesh -> the arrays that the loss needs and nobody trains, e.g. a teacher's parameters, called when
            training begins; None: the model's.
        given: (state, frozen) -> what the loss gets besides the parameters; see `train.make_update`.
        averaged: parameters -> the tree that is averaged, of which samples are made; None: all of them.
        of_batches: loss of what the network learns -> loss of the batches, e.g. `losses.latent_loss`, with which
            another loss takes the place of `loss`; None: the batches' "x" and condition are what the network learns, or
            "mean" and "std" are those of its latents.
    """

    loss: Loss = field(repr=False)
    optimizer: Any = field(repr=False)
    ema: Decays = field(repr=False)
    batches: Callable[..., Iterator[Batch]] = field(repr=False)
    batch: int
    steps: int
    batch_spec: Mapping[str, jax.ShapeDtypeStruct] = field(default_factory=dict)
    grad_accum_steps: int = 1
    steps_per_call: int = 1
    ema_memory: str = "device"
    snapshot_every: int = 0
    preview_every: int = 1000
    save_every: int | None = None
    frozen: Callable[[Mesh | None], Any] | None = field(default=None, repr=False)
    given: Callable[..., Any] | None = field(default=None, repr=False)
    averaged: Callable[[Params], Any] | None = field(default=None, repr=False)
    of_batches: Callable[[Loss], Loss] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "grad_accum_steps", "steps_per_call"):
            Range(1).check(f"training.{name}", getattr(self, name))
        for name in ("snapshot_every", "preview_every"):
            Range(0).check(f"training.{name}", getattr(self, name))
        if self.save_every is not None:
            Range(1).check("training.save_every", self.save_every)
        for name in ("loss", "batches"):
            if not callable(getattr(self, name)):
                raise ValueError(f"training.{name} must be a function, got {getattr(self, name)!r:.80}")


@dataclass(frozen=True)
class Experiment:
    """What a function `experiment(...)` returns: its arguments are the run's knobs, this is the run.

    Attributes:
        model: the network, what noises the data, and what the network predicts.
        training: loss, optimizer, averages, batches and counts.
        sampling: schedule, solver and guidance; None where `model.generate` makes the examples.
        condition: what one may ask for.
        medium: what it makes: how an example is shown, saved and measured.
        seed: of parameters, training noise and data order.
    """

    model: Model
    training: Training
    sampling: Sampling
    condition: Condition
    medium: Medium
    seed: int

    def __post_init__(self) -> None:
        parts = {"model": Model, "training": Training, "sampling": Sampling, "condition": Condition, "medium": Medium}
        direct = isinstance(self.model, Model) and self.model.generate is not None
        for name, kind in parts.items():
            wanted = type(None) if name == "sampling" and direct else kind
            made = getattr(self, name)
            if not isinstance(made, wanted):
                what = "None for a model with generate" if wanted is not kind else f"a {kind.__name__}"
                call = f", which makes one: call {made.__name__}(...)" if inspect.isfunction(made) else ""
                raise ValueError(f"{name} must be {what}, got {made!r:.80}{call}")
        SEED.check("seed", self.seed)
        if self.guidance != 1:
            self.condition.check_null()
            if getattr(self.sampling.solver, "next_level", False):
                raise ValueError(
                    "a network that is given both ends of a step has its guidance distilled: guidance is 1"
                )
        if not self.training.batch_spec:
            spec = {"x": jax.ShapeDtypeStruct(self.medium.shape, jnp.float32), **self.condition.spec}
            object.__setattr__(self, "training", replace(self.training, batch_spec=spec))

    @property
    def guidance(self) -> float:
        """The default guidance scale; 1 is off."""
        return 1.0 if self.sampling is None else self.sampling.guidance

    def frozen_of_loss(self, mesh: Mesh | None = None) -> Any:
        """Make the arrays that the loss needs and nobody trains.

        Args:
            mesh: where they lie; None is the default device.
        """
        return self.model.frozen if self.training.frozen is None else self.training.frozen(mesh)


def compute_dtype() -> Any:
    """bfloat16 on an accelerator, float32 on a CPU, where bfloat16 is no faster."""
    return jnp.float32 if platform() == "cpu" else jnp.bfloat16
