"""Small networks that judge samples: fitted to real data in minutes, and kept in a file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import train, trees
from jaxdiff.messages import listed
from jaxdiff.storage import replacing
from jaxdiff.train import ema
from jaxdiff.types import Params

__all__ = ["fit", "load", "save"]


def fit(
    loss: Callable[..., Any], params: Params, batches: Iterator[dict[str, np.ndarray]], *, steps: int, lr: float,
    key: jax.Array, name: str, weight_decay: float = 0.02, progress: bool = False,
) -> Any:  # fmt: skip
    """Train parameters, and average them.

    One step is dispatched at a time: XLA on CPUs runs the gradients of convolutions several times slower inside a loop
    than outside of it.

    Args:
        loss: (params, key, batch) -> (loss, metrics).
        params: to begin with.
        batches: at least `steps` of them.
        steps: number of updates.
        lr: the highest learning rate of AdamW, with a warm-up and a cosine schedule.
        key: of the loss.
        name: of the network, for the bar and errors.
        weight_decay: see `train.adamw`.
        progress: show a bar with the loss.

    Returns:
        the averaged parameters, on the host.

    Raises:
        ValueError: the training diverged.
    """
    from jaxdiff.progress import Progress  # with tqdm, which those who fit nothing need not have

    optimizer = train.adamw(
        lr, warmup_steps=max(1, steps // 7), steps=steps, schedule="cosine", weight_decay=weight_decay
    )
    average = jax.tree.map(jnp.copy, params)
    state = train.TrainState(jnp.int32(0), params, average, optimizer.init(params), jnp.int32(0))
    step = train.make_step(loss, optimizer, key=key, ema=ema.warmup(0.995))
    metrics: dict[str, jax.Array] = {}
    with Progress(name, steps, "step", disable=not progress) as bar:
        for _ in range(steps):
            state, metrics = step(state, next(batches))
            bar.update()
            if progress and bar.n % 50 == 0:  # reading the loss waits for the device
                bar.set_postfix(loss=f"{float(metrics['loss']):.3f}")
    if not np.isfinite(float(metrics["loss"])):
        raise ValueError(f"the {name}'s training diverged: its last loss is {float(metrics['loss'])}")
    return jax.device_get(state.ema)


def save(path: str | Path, params: Params, **more: np.ndarray) -> Path:
    """Write parameters to one npz file, keyed by their paths.

    Args:
        path: the file, ending in .npz; missing folders are made. It is replaced in one move.
        params: a tree of arrays.
        **more: what else `load` needs.

    Returns:
        the path written.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"the path must end in .npz, got {path}")
    with replacing(path) as part:
        np.savez(part, **more, **trees.flatten(params))  # type: ignore[arg-type]
    return path


def load(path: str | Path, make: Callable[[dict[str, np.ndarray]], tuple[Any, Any]], what: str) -> tuple[Any, Any]:
    """Read what `save` wrote.

    Args:
        path: the file.
        make: the arrays by name, from which it takes what are no parameters -> (what is made of those, the shapes of
            its parameters).
        what: the name of that, for errors.

    Returns:
        (the parameters, what `make` made).

    Raises:
        ValueError: the file is none of `what` of this version's shapes.
        OSError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        made, expected = make(arrays)
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a saved {what}: {error}") from error
    want = {name: leaf.shape for name, leaf in trees.flatten(expected).items()}
    got = {name: array.shape for name, array in arrays.items()}
    if want != got:
        different = sorted(n for n in want.keys() | got.keys() if want.get(n) != got.get(n))
        raise ValueError(f"{path} is of another version: {listed(different)} differ; delete it to fit anew")
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in want]), made
