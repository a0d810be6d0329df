"""Samples of an experiment: drawn in batches of one compiled size, shown in previews, measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import train
from jaxdiff.conditions import Cond, Condition
from jaxdiff.distributed import gather
from jaxdiff.experiment import Experiment, UserError
from jaxdiff.media import Report, Samples
from jaxdiff.options import Range
from jaxdiff.progress import Progress
from jaxdiff.quantize import Weights, quantize
from jaxdiff.recipe import check_vocabulary
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.storage import write_text
from jaxdiff.types import Params

__all__ = ["Asked", "Drawer", "draw", "evaluate", "parameters", "parsed", "preview_of"]

Which = Literal["ema", "params"]


def draw(
    experiment: Experiment,
    params: Params,
    num: int | None = None,
    *,
    words: str | Sequence[str] | None = None,
    negative: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    mesh: Mesh | None = None,
) -> Samples:
    """Draw samples in batches of one compiled size.

    Args:
        experiment: what to sample; `dataclasses.replace` changes its `sampling`.
        params: parameters, e.g. from `parameters`.
        num: number of samples; None: as many as in a preview.
        words: what is asked for, as on the command line, or several of these, which take turns; None takes the
            condition's choices in turn.
        negative: what guidance leads away from, as on the command line; None is the null condition.
        seed: example i depends on the seed and i alone.
        batch: examples at a time; None: as in a preview.
        mesh: where the parameters lie; examples are split over it.

    Returns:
        the samples, on the host.

    Raises:
        ValueError: a number out of range.
        UserError: words for which the condition's `parse` raises a ValueError, or a negative without guidance.
    """
    names = (words,) if isinstance(words, str) else tuple(words or ())
    if negative is not None and experiment.guidance == 1:
        raise UserError("a negative prompt needs guidance, and guidance is 1")
    asked = Asked(parsed(experiment.condition, names), names) if names else None
    away = None if negative is None else parsed(experiment.condition, [negative])
    return Drawer(experiment, mesh)(params, num, asked, negative=away, seed=seed, batch=batch)


def parsed(condition: Condition, words: Sequence[str]) -> Cond:
    """Make a condition of words, one an example.

    Args:
        condition: an experiment's.
        words: of each example.

    Returns:
        the condition, leaves [len(words), ...].

    Raises:
        UserError: words for which the condition's `parse` raises a ValueError.
    """
    try:
        parts = [condition.parse(each) for each in words]
    except ValueError as error:  # also a condition of the user's own: the words are wrong, not its code
        raise UserError(str(error)) from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate(
    experiment: Experiment,
    params: Params,
    workdir: str | Path,
    *,
    num: int = 1000,
    seed: int = 0,
    batch: int = 100,
    mesh: Mesh | None = None,
) -> Report:
    """Measure samples against data, as the experiment's medium does, and write the values to eval.json.

    Args:
        experiment: what to sample.
        params: parameters, e.g. from `parameters`.
        workdir: the run's folder, for the report and what measures.
        num: number of samples; their conditions take turns, or the medium says what they are of.
        seed: of the samples.
        batch: samples at a time.
        mesh: where the parameters lie; samples are split over it.

    Returns:
        the report.

    Raises:
        ValueError: the medium does not measure samples, or not those of this condition, or needs more of them.
    """
    if experiment.medium.evaluator is None:
        raise ValueError("eval needs an experiment whose medium measures samples against data: this one's has no data")
    choices, least = experiment.condition.choices, experiment.medium.least_of_each
    if num < least * choices:
        raise ValueError(
            f"eval needs at least {least} samples of each of {choices} classes, {least * choices}, got {num}"
        )
    measure = experiment.medium.evaluator(Path(workdir), experiment.condition)
    words = None if experiment.medium.prompts is None else experiment.medium.prompts(Range(1).check("num", num))
    report = measure(draw(experiment, params, num, words=words, seed=seed, batch=batch, mesh=mesh))
    write_text(Path(workdir) / "eval.json", json.dumps(report.values, indent=2, allow_nan=False) + "\n")
    return report


def parameters(
    experiment: Experiment,
    workdir: str | Path,
    which: Which = "ema",
    *,
    ema: float | None = None,
    weights: Weights | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Read a run's parameters.

    Args:
        experiment: the run's.
        workdir: the run's folder.
        which: the average, or the last ones.
        ema: length of another average, made of the run's snapshots.
        weights: "int8" or "float8": kernels in 8 bits, see `quantize.quantize`.
        mesh: where they shall lie; None is the default device.

    Raises:
        ValueError: there is no checkpoint; no average of this length can be made; the run's captions had other words.
    """
    check_vocabulary(Path(workdir), experiment.condition)
    if ema is None:
        params = train.load_params(workdir, which, mesh=mesh)
    elif which == "params":
        raise ValueError("--ema is the length of an average: it goes without --params params")
    else:
        with train.Snapshots(workdir, read_only=True) as snapshots:
            params, error = snapshots.reconstruct(experiment.training.ema, ema, mesh=mesh)
        tqdm.write(f"the average of length {ema:g}, its weights to within {error:.2%}", file=sys.stderr)
    if weights is None:
        return params
    made = quantize(params, weights)
    if len(jax.tree.leaves(made)) == len(jax.tree.leaves(params)):
        raise UserError(
            f"{workdir} has trained no large kernels, and others are not stored in 8 bits: leave out --weights"
        )
    return made


class Asked(NamedTuple):
    """What is asked for.

    Attributes:
        cond: conditions that take turns, leaves [P, ...].
        names: the words of each.
    """

    cond: Cond
    names: tuple[str, ...]


def _conditions(condition: Condition, asked: Asked | None, count: int) -> Cond:
    """The conditions of so many examples, in turn."""
    if asked is None:
        return condition.choose(np.arange(count))
    return {name: np.asarray(a)[np.arange(count) % len(a)] for name, a in asked.cond.items()}


def _turns(condition: Condition, asked: Asked | None, count: int) -> dict[str, Any]:
    """The attributes of `Samples` that follow from whose turn it is."""
    names, choices = condition.names, condition.choices
    if asked is not None:
        names = asked.names
        choices = len(names) if len(names) > 1 else 0
    held_out = None
    if asked is None and condition.held_out:
        held_out = np.isin(np.arange(count) % choices, condition.held_out)
    each = tuple(names[i % len(names)] for i in range(count)) if names else ()
    return {"choices": choices, "names": each, "held_out": held_out}


class Drawer:
    """An experiment's sampler, compiled once for each size of a batch."""

    def __init__(self, experiment: Experiment, mesh: Mesh | None = None):
        """Make the sampler.

        Args:
            experiment: what to sample.
            mesh: where the parameters lie; examples are split over it.
        """
        parts = experiment.model, experiment.sampling, experiment.condition, experiment.medium
        self._experiment, self._compiled = experiment, set[int]()
        self._generate = sampler(*parts, mesh=mesh, path=experiment.medium.path)

    def __call__(
        self, params: Params, num: int | None = None, asked: Asked | None = None, *, negative: Cond | None = None,
        seed: int = 0, batch: int | None = None,
    ) -> Samples:  # fmt: skip
        """Draw samples.

        Args:
            params: parameters.
            num: number of samples; None: as many as in a preview.
            asked: what is asked for, in turn; None takes the condition's choices in turn.
            negative: what guidance leads away from, leaves [1, ...]; None is the null condition. Its entries that
                words don't ask for are those of the samples.
            seed: example i depends on the seed, i and what is asked for.
            batch: examples at a time; None: as in a preview.
        """
        experiment, medium = self._experiment, self._experiment.medium
        num, batch = (
            Range(1).check(name, medium.preview if n is None else n) for name, n in (("num", num), ("batch", batch))
        )
        batch = min(batch, num)
        padded = -(-num // batch) * batch
        keys, params = example_keys(seed, padded), experiment.model.merge_frozen(params)
        cond = _conditions(experiment.condition, asked, padded)
        inputs: tuple[Any, ...] = (cond,)
        if negative is not None:
            words = {name: a for name, a in negative.items() if name not in experiment.condition.unasked}
            inputs = cond, {**cond, **{name: np.repeat(a, padded, axis=0) for name, a in words.items()}}
        parts: list[Any] = []
        with Progress("sampling", padded // batch, "batch", compiled=batch in self._compiled) as bar:
            for i in range(0, padded, batch):
                part, *away = jax.tree.map(lambda a, i=i: jnp.asarray(a[i : i + batch]), inputs)
                drawn = self._generate(params, keys[i : i + batch], part, experiment.guidance, *away)
                parts.append(jax.device_get(gather(drawn if medium.path else (drawn,))))
                self._compiled.add(batch)
                bar.update()
        x = np.concatenate([part[0] for part in parts])[:num]
        path = np.concatenate([part[1] for part in parts], axis=1)[:, :num] if medium.path else None
        first = {name: np.asarray(a[:num]) for name, a in cond.items()}
        return Samples(x, first, path=path, **_turns(experiment.condition, asked, num))

    def trace(self, params: Params) -> None:
        """Trace the sampler for a preview's batch: raise what would be raised while drawing.

        Args:
            params: parameters, or their shapes.
        """
        experiment, size = self._experiment, self._experiment.medium.preview
        cond = jax.tree.map(jnp.asarray, experiment.condition.choose(np.arange(size)))
        keys = jax.eval_shape(lambda: example_keys(0, size))
        jax.eval_shape(self._generate, experiment.model.merge_frozen(params), keys, cond, experiment.guidance)


def preview_of(
    experiment: Experiment, workdir: Path, mesh: Mesh, params: Params, *, say: Callable[[str], None]
) -> Callable[[train.TrainState], None]:
    """Make a function that draws samples of a state's averaged parameters, more of them at the end.

    Args:
        experiment: what to sample.
        workdir: where the pictures go.
        mesh: where the parameters lie.
        params: the shapes of the averaged parameters; what cannot be drawn is refused at once.
        say: called with the path of each picture.
    """
    drawer, medium = Drawer(experiment, mesh), experiment.medium
    drawer.trace(params)
    suffix, more = medium.suffixes[0], 2 * medium.preview if medium.last is None else medium.last

    def preview(state: train.TrainState) -> None:
        last = int(state.step) == experiment.training.steps
        samples = drawer(train.ema_params(state), more if last else medium.preview, batch=medium.preview)
        path = workdir / (f"samples{suffix}" if last else f"samples-{int(state.step):06d}{suffix}")
        if jax.process_index() == 0:
            medium.save(path, samples)
        say(str(path))

    return preview
