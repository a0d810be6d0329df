"""An experiment: everything that a run is, as real objects, and the sampler that follows from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff.guidance import cfg
from jaxdiff.levels import Level
from jaxdiff.losses import Batch, Loss
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.options import SEED, Range
from jaxdiff.parameterize import Apply, Denoiser, Params, Row, denoiser, mean_only
from jaxdiff.processes import Process
from jaxdiff.sample import sample
from jaxdiff.script import SOURCE, Script
from jaxdiff.sharding import batch_parts, constrain_tokens, on, platform
from jaxdiff.solvers import Solver
from jaxdiff.train import read_knobs
from jaxdiff.train.ema import Decays
from jaxdiff.trust import check_own

__all__ = [
    "Experiment",
    "UserError",
    "build",
    "compute_dtype",
    "example_keys",
    "load",
    "load_run",
    "numbered_keys",
    "sampler",
    "seed_key",
]


class UserError(ValueError):
    """What an experiment raises where it cannot be made of the knobs given: a command ends with its sentence alone."""


@dataclass(frozen=True)
class Experiment:
    """What a function `experiment(...)` returns: its arguments are the run's knobs, this is the run.

    Attributes:
        init: key -> parameters.
        apply: the network, (params, x, noise[B], cond) -> F.
        process: what noises the data.
        row: what the network predicts.
        loss: (params, key, batch) -> (loss, metrics).
        optimizer: an optax optimizer.
        ema: step -> decay of the parameters' average, or a tuple of such for as many averages; see `train.ema`.
        batches: (first step, rows of a batch that this host reads; None, all) -> iterator of batches from there on.
        batch: examples in an update, of all hosts together.
        steps: batches in the whole run.
        seed: of parameters, training noise and data order.
        shape: of one example, as the network sees it.
        example: one example of a batch, whose arrays have one more axis in front; by default "x", float32 of that
            shape, and for classes "label", int32.
        grid: number of steps -> the levels to sample on.
        solver: the sampler's default; or number of steps -> a solver made for that grid.
        sample_steps: its default number of steps.
        accumulate: microbatches in an update.
        per_dispatch: updates in one call of the step.
        ema_memory: where the averages wait between two updates; see `train.create`.
        snapshot_every: steps between two snapshots of the averages, which stay; 0: none.
        preview_every: steps between two previews.
        save_every: steps between two checkpoints; None: as between two previews.
        preview: pictures in one, drawn at a time; the last has twice as many.
        num_classes: of the condition "label"; 0 without one.
        null_label: the label that says nothing; None for a network that was never trained without its condition.
        guidance: the sampler's default scale; 1 is off.
        guide: how it guides, (denoiser of the class, denoiser of none, scale) -> denoiser.
        learned_variance: the network answers (F, frac).
        source: name of the data for `jaxdiff eval`; see `data.open_source`.
        limit: what is done to the denoiser's answers while sampling, clipping say.
        std: levels -> the standard deviation of the noise to begin with.
        beside: (params, label [B] or None) -> what samples are conditioned on beside their class; guidance keeps it.
        decode: (params, samples) -> images, for a network of latents.
        draw: (experiment, params, path) draws a picture of samples that are no images, by the experiment's seed,
            solver and sample_steps.
        start: reads parameters to begin with, in place of init's.
        frozen: what the network needs beside its trained parameters, on the devices; apply, loss, beside, decode and
            draw then take (params, frozen) for params, as `whole` makes it.
        export: what the parameters may be written as, for other projects: a name -> (params, folder) writes it.
    """

    init: Callable[[Array], Params]
    apply: Apply
    process: Process
    row: Row
    loss: Loss
    optimizer: Any
    ema: Decays
    batches: Callable[..., Iterator[Batch]]
    batch: int
    steps: int
    seed: int
    shape: tuple[int, ...]
    grid: Callable[[int], Level]
    solver: Solver | Callable[[int], Solver]
    sample_steps: int
    accumulate: int = 1
    per_dispatch: int = 1
    ema_memory: str = "device"
    snapshot_every: int = 0
    preview_every: int = 1000
    save_every: int | None = None
    preview: int = 50
    num_classes: int = 0
    null_label: int | None = None
    guidance: float = 1.0
    guide: Callable[[Denoiser, Denoiser, Any], Denoiser] = cfg
    learned_variance: bool = False
    source: str | None = None
    limit: Callable[[Denoiser], Denoiser] = lambda denoise: denoise
    std: Callable[[Level], Array] = lambda levels: levels.sigma[0]
    beside: Callable[[Params, Array | None], dict[str, Any]] = lambda params, label: {}
    decode: Callable[[Params, Array], Array] = lambda params, x: x
    draw: Callable[[Experiment, Params, Path], None] | None = None
    start: Callable[[], Params] | None = None
    frozen: Any = None
    export: Mapping[str, Callable[[Params, Path], None]] = field(default_factory=dict)
    example: Mapping[str, jax.ShapeDtypeStruct] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "sample_steps", "accumulate", "per_dispatch", "preview_every", "preview"):
            Range(1).check(name, getattr(self, name))
        if self.save_every is not None:
            Range(1).check("save_every", self.save_every)
        for name in ("snapshot_every", "num_classes"):
            Range(0).check(name, getattr(self, name))
        SEED.check("seed", self.seed)
        if not self.example:
            label = {"label": jax.ShapeDtypeStruct((), jnp.int32)} if self.num_classes else {}
            example = {"x": jax.ShapeDtypeStruct(self.shape, jnp.float32), **label}
            object.__setattr__(self, "example", example)

    def whole(self, params: Params) -> Params:
        """What apply takes, of the trained parameters."""
        return params if self.frozen is None else (params, self.frozen)


def compute_dtype() -> Any:
    """bfloat16 on an accelerator, float32 on a CPU, where bfloat16 is no faster."""
    return jnp.float32 if platform() == "cpu" else jnp.bfloat16


def sampler(
    experiment: Experiment,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    guided: bool = True,
    mesh: Mesh | None = None,
) -> Callable[[Params, Array, Array | None, float | Array], Array]:
    """The experiment's sampler as one compiled function.

    Args:
        experiment: what to sample.
        solver: None is the experiment's own.
        steps: None is the experiment's own number.
        guided: classifier-free guidance; without it `scale` is not looked at, and the network is asked half as often.
        mesh: where the parameters lie; examples, and where it says so rows or tokens, are split over it.
    Returns:
        (params, keys [B], label [B] or None, scale) -> x, [B, *shape], decoded where the experiment says how; each
        example depends on its own key alone. Its params are `experiment.whole`'s.
    Raises:
        ValueError: guidance of a network that knows no null condition, or a solver that takes a variance which the
            network does not answer.
    """
    if guided and experiment.null_label is None:
        raise ValueError("guidance needs a network that was also trained without its condition: use --guidance 1")
    steps = experiment.sample_steps if steps is None else steps
    levels, chosen = experiment.grid(steps), experiment.solver if solver is None else solver
    if not isinstance(chosen, Solver):
        chosen = chosen(steps)
    elif chosen.falling:
        levels = _falling(levels)
    if chosen.learned_variance and not experiment.learned_variance:
        raise ValueError("the solver takes a learned variance, which the network does not answer: choose another")

    def draw(params: Params, keys: Array, label: Array | None, scale: float | Array) -> Array:
        beside = experiment.beside(params, label)

        def denoise(label: Any) -> Denoiser:
            cond = beside if label is None else beside | {"label": label}
            answer = denoiser(experiment.apply, params, experiment.row, cond)
            return mean_only(answer) if experiment.learned_variance and not chosen.learned_variance else answer

        predict = denoise(label)
        if guided:
            null = jnp.full(keys.shape, experiment.null_label, jnp.int32)  # type: ignore[arg-type]
            predict = experiment.guide(predict, denoise(null), scale)
        predict = experiment.limit(predict)
        prior_keys, path_keys = (fold_in(keys, i) for i in range(2))
        noise = normal_like(prior_keys, jnp.zeros((keys.shape[0], *experiment.shape), jnp.float32))
        x = constrain_tokens(jnp.asarray(experiment.std(levels), jnp.float32) * noise)
        return experiment.decode(params, sample(predict, chosen, levels, x, path_keys))

    def generate(params: Params, keys: Array, label: Array | None, scale: float | Array) -> Array:
        if mesh is None:
            return draw(params, keys, label, scale)
        # As many examples as the devices can share out evenly; some are drawn twice.
        count = keys.shape[0]
        turns = np.arange(count + -count % batch_parts(mesh)) % count
        with on(mesh):
            return draw(params, keys[turns], None if label is None else label[turns], scale)[:count]

    return jax.jit(generate)


def _falling(levels: Level) -> Level:
    """The grid without levels that have as much noise as an earlier one: some lists have them for their own solver."""
    angle = np.arctan2(np.asarray(levels.sigma), np.asarray(levels.alpha))
    falls = angle < np.append(np.inf, np.minimum.accumulate(angle)[:-1])
    return Level(*(field[falls] for field in levels))


def seed_key(seed: int) -> Array:
    """The key of a seed, of which all 64 bits count; `jax.random.key` takes 32 of them, unless JAX is told otherwise.

    Args:
        seed: 0 to 2^64 - 1. Below 2^32 the key is that of `jax.random.key`.
    Raises:
        ValueError: another seed.
    """
    if SEED.check("seed", seed) < 2**32:
        return jax.random.key(seed)
    with jax.enable_x64(True):
        return jax.random.key(np.uint64(seed))


def example_keys(seed: int, count: int, first: int = 0) -> Array:
    """One key for each of the examples first .. first + count - 1 of a seed."""
    return numbered_keys(seed_key(seed), jnp.arange(first, first + count))


def numbered_keys(key: Array, index: Array) -> Array:
    """The keys of the examples with these numbers [B] of a seed, whose key this is."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def load(path: str | Path | Script) -> Callable[..., Experiment]:
    """Import the function `experiment` of a Python file, which may import the modules beside it.

    Args:
        path: the file, the name of an experiment that comes with jaxdiff, or a `Script`.
    Returns:
        the function; its arguments are the run's knobs. Called, it raises a ValueError where it does not know them, or
        returns something else than an Experiment.
    Raises:
        ValueError: no such file, or it has no such function.
    """
    script = path if isinstance(path, Script) else Script(path)
    build = script.function("experiment", "returns a jaxdiff.experiment.Experiment")

    @wraps(build)
    def checked(*args: Any, **knobs: Any) -> Experiment:
        try:
            inspect.signature(build).bind(*args, **knobs)
        except TypeError as error:
            raise ValueError(f"the knobs are not those of {script.path}: {error}") from None
        made = build(*args, **knobs)
        if not isinstance(made, Experiment):
            raise ValueError(f"experiment(...) in {script.path} must return an Experiment, got {made!r:.80}")
        return made

    return checked


def build(function: Callable[..., Experiment], knobs: Mapping[str, Any], mesh: Mesh | None = None) -> Experiment:
    """Call an experiment's function, with the mesh where it takes one: to put the parameters that it reads on."""
    where = {"mesh": mesh} if "mesh" in inspect.signature(function).parameters else {}
    return function(**knobs, **where)


def load_run(workdir: str | Path, *, mesh: Mesh | None = None, trust: bool = False) -> Experiment:
    """Rebuild a run's experiment from the files and the knobs that training left in its folder.

    Args:
        workdir: the run's folder.
        mesh: where the parameters that it reads lie; None is the default device.
        trust: execute the folder's Python files whoever has written them, or may have.
    Returns:
        the experiment.
    Raises:
        ValueError: the folder holds no run, or others than the user may have written its files.
    """
    workdir = Path(workdir)
    if not (workdir / SOURCE).is_file():
        raise ValueError(f"{workdir} holds no run: `jaxdiff train EXPERIMENT --workdir {workdir}` makes one")
    if not trust:
        check_own(workdir / SOURCE)
    return build(load(Script(workdir / SOURCE, kept=True)), read_knobs(workdir), mesh)
