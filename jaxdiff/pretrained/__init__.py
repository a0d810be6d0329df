"""Trained runs that come with the package: `jaxdiff sample fashion`, `jaxdiff sample emoji --prompt "..."`.

Each is a folder with what the folder of a finished run is made of: the experiment's knobs, the averaged parameters in
half precision, their measured numbers, and a README that names data and licence. `python -m jaxdiff.pretrained.pack`
makes all but the README.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from jaxdiff import train, trees
from jaxdiff.data.npz import read_npz
from jaxdiff.planning import scratch
from jaxdiff.recipe import Recipe, check_run, check_vocabulary, keep_vocabulary
from jaxdiff.run import check_shapes
from jaxdiff.script import SOURCE, Script
from jaxdiff.storage import make_folder, sync, write_text

__all__ = ["names", "open_run", "unpack"]

FOLDER = Path(__file__).parent
WEIGHTS = "weights.npz"
BESIDE = ("README.md", "eval.json")  # what a run's folder gets, too


def names() -> tuple[str, ...]:
    """Return the names of the trained runs, which are those of their experiments."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def open_run(path: Path) -> Path:
    """Unpack a trained run of the package where its name is given instead of a run's folder.

    Within `planning` it is unpacked into the plan's temporary folder.

    Args:
        path: a run's folder; or a name of `names`, perhaps with this folder's path before it, as knobs keep it, and
            nothing of this name exists here.

    Returns:
        the run's folder: the same path, of a name without detours through folders that need not exist.

    Raises:
        ValueError: there is no run.
    """
    name = os.path.relpath(path)
    temporary = scratch()
    if name in names() and not path.exists():
        path = Path(os.path.normpath(path)) if temporary is None else temporary / name
    if name in names() and not path.exists():
        unpack(name, path)
        if temporary is None:
            note = "the trained run that comes with jaxdiff; its README.md names data and licence"
            tqdm.write(f"{path}/: {note}", sys.stderr)
    if name in names() and not (path / SOURCE).is_file():
        raise ValueError(
            f"{path} is here and holds no run, so that the trained run of this name, which comes with jaxdiff, has no "
            "place: rename it, or work in another folder"
        )
    check_run(path)
    return path


def unpack(name: str, workdir: str | Path, *, source: Path = FOLDER) -> None:
    """Write a trained run of the package as the folder of a finished run, which can be trained on.

    Args:
        name: one of `names`.
        workdir: the folder; must not exist.
        source: the folder with the trained runs.

    Raises:
        ValueError: there is no such run, the folder exists, the experiment's network or words have changed, or this is
            one of several processes.
    """
    workdir, packed = Path(workdir), source / name
    if not (packed / WEIGHTS).is_file():
        raise ValueError(f"no trained run is called {name!r}; there are: {', '.join(names())}")
    if workdir.exists():
        raise ValueError(f"{workdir} exists already: choose another folder for the trained run")
    if jax.process_count() > 1:
        raise ValueError(f"{workdir} must be there before several processes use it: `jaxdiff sample {name}` makes it")
    recipe = Recipe(Script(name), train.read_knobs(packed))
    experiment = recipe.build()
    check_vocabulary(packed, experiment.condition)
    params = trees.nest({key: jnp.asarray(a, jnp.float32) for key, a in read_npz(packed / WEIGHTS).items()})
    check_shapes(params, jax.eval_shape(experiment.model.init, jax.random.key(0)), packed)
    part = experiment.training
    averages: dict[str, Any] = {"ema": part.ema, "ema_memory": part.ema_memory, "averaged": part.averaged}
    state = train.state_from_params(params, part.optimizer, train.make_mesh(), **averages)
    make_folder(workdir.parent)
    # The folder has its name when it is whole.
    with tempfile.TemporaryDirectory(prefix=f".{workdir.name}-", dir=workdir.parent) as temporary:
        partial = Path(temporary) / "run"
        recipe.keep(partial)
        keep_vocabulary(partial, experiment.condition)
        with train.Checkpointer(partial) as checkpointer:
            checkpointer.save(state._replace(step=jnp.asarray(part.steps, state.step.dtype)))
        for file in BESIDE:
            if (packed / file).is_file():
                write_text(partial / file, (packed / file).read_text())
        partial.rename(workdir)
        sync(workdir.parent)
