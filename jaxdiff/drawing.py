"""Samples of an experiment: drawn in batches of one compiled size, shown in previews, measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff import train
from jaxdiff.conditions import Cond
from jaxdiff.distributed import gather
from jaxdiff.experiment import Experiment, UserError
from jaxdiff.media import Report, Samples
from jaxdiff.options import Range
from jaxdiff.progress import Progress
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.storage import write_text

__all__ = ["Drawer", "draw", "evaluate", "parameters", "preview_of"]

Which = Literal["ema", "params"]


def draw(
    experiment: Experiment,
    params: Any,
    num: int | None = None,
    *,
    words: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    mesh: Mesh | None = None,
) -> Samples:
    """Draw samples in batches of one compiled size.

    Args:
        experiment: what to sample; `dataclasses.replace` changes its `sampling`.
        params: parameters, e.g. from `parameters`.
        num: number of samples; None: as many as in a preview.
        words: what is asked for, as on the command line; None takes the condition's choices in turn.
        seed: example i depends on the seed and i alone.
        batch: examples at a time; None: as in a preview.
        mesh: where the parameters lie; examples are split over it.

    Returns:
        The samples, on the host.

    Raises:
        ValueError: a number out of range.
        UserError: words for which the condition's `parse` raises a ValueError.
    """
    try:
        cond = None if words is None else experiment.condition.parse(words)
    except ValueError as error:  # also a condition of the user's own: the words are wrong, not its code
        raise UserError(str(error)) from error
    return Drawer(experiment, mesh)(params, num, cond, seed=seed, batch=batch)


def evaluate(
    experiment: Experiment,
    params: Any,
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
        num: number of samples; their conditions take turns.
        seed: of the samples.
        batch: samples at a time.
        mesh: where the parameters lie; samples are split over it.

    Returns:
        The report.

    Raises:
        ValueError: the medium does not measure samples, or not those of this condition.
    """
    if experiment.medium.evaluator is None:
        raise ValueError("eval needs an experiment whose medium measures samples against data: this one's has no data")
    measure = experiment.medium.evaluator(Path(workdir), experiment.condition)
    report = measure(draw(experiment, params, num, seed=seed, batch=batch, mesh=mesh))
    write_text(Path(workdir) / "eval.json", json.dumps(report.values, indent=2, allow_nan=False) + "\n")
    return report


def parameters(
    experiment: Experiment,
    workdir: str | Path,
    which: Which = "ema",
    *,
    ema: float | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Read a run's parameters.

    Args:
        experiment: the run's.
        workdir: the run's folder.
        which: the average, or the last ones.
        ema: length of another average, made of the run's snapshots.
        mesh: where they shall lie; None is the default device.

    Raises:
        ValueError: there is no checkpoint; no average of this length can be made.
    """
    if ema is None:
        return train.load_params(workdir, which, mesh=mesh)
    if which == "params":
        raise ValueError("--ema is the length of an average: it goes without --params params")
    with train.Snapshots(workdir, read_only=True) as snapshots:
        params, error = snapshots.reconstruct(experiment.training.ema, ema, mesh=mesh)
    tqdm.write(f"the average of length {ema:g}, its weights to within {error:.2%}", file=sys.stderr)
    return params


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
        self, params: Any, num: int | None = None, cond: Cond | None = None, *, seed: int = 0, batch: int | None = None
    ) -> Samples:
        """Draw samples.

        Args:
            params: parameters.
            num: number of samples; None: as many as in a preview.
            cond: what is asked for, leaves [N, ...], examples take turns; None takes the condition's choices in turn.
            seed: example i depends on the seed, i and what is asked for.
            batch: examples at a time; None: as in a preview.
        """
        medium, condition, scale = (
            self._experiment.medium,
            self._experiment.condition,
            self._experiment.sampling.guidance,
        )
        num, batch = (
            Range(1).check(name, medium.preview if n is None else n) for name, n in (("num", num), ("batch", batch))
        )
        batch = min(batch, num)
        padded = -(-num // batch) * batch
        keys, params = example_keys(seed, padded), self._experiment.model.merge_frozen(params)
        if cond is None:
            asked, choices = condition.choose(np.arange(padded)), condition.choices
        else:
            asked, choices = {name: np.asarray(a)[np.arange(padded) % len(a)] for name, a in cond.items()}, 0
        parts: list[Any] = []
        with Progress("sampling", padded // batch, "batch", compiled=batch in self._compiled) as bar:
            for i in range(0, padded, batch):
                part = {name: jnp.asarray(a[i : i + batch]) for name, a in asked.items()}
                drawn = self._generate(params, keys[i : i + batch], part, scale)
                parts.append(jax.device_get(gather(drawn if medium.path else (drawn,))))
                self._compiled.add(batch)
                bar.update()
        x = np.concatenate([part[0] for part in parts])[:num]
        path = np.concatenate([part[1] for part in parts], axis=1)[:, :num] if medium.path else None
        return Samples(x, {name: np.asarray(a[:num]) for name, a in asked.items()}, choices, path)

    def trace(self, params: Any) -> None:
        """Trace the sampler for a preview's batch: raise what would be raised while drawing.

        Args:
            params: parameters, or their shapes.
        """
        experiment, size = self._experiment, self._experiment.medium.preview
        cond = jax.tree.map(jnp.asarray, experiment.condition.choose(np.arange(size)))
        keys = jax.eval_shape(lambda: example_keys(0, size))
        jax.eval_shape(self._generate, experiment.model.merge_frozen(params), keys, cond, experiment.sampling.guidance)


def preview_of(
    experiment: Experiment, workdir: Path, mesh: Mesh, params: Any, *, say: Callable[[str], None]
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
