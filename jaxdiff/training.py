"""The training of an experiment from the knobs that every experiment has, and its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import data, train
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Training
from jaxdiff.losses import Loss
from jaxdiff.options import Run
from jaxdiff.text_encoders import TextEncoder

__all__ = ["muon", "of"]


def of(run: Run, source: Any, condition: Condition, *, loss: Loss, optimizer: Any, ema: Any, **more: Any) -> Training:
    """Make the training on a source of `jaxdiff.data`.

    Args:
        run: the common knobs.
        source: what batches are made of: images with their classes, of which the condition's entries are kept, or
            `data.NpzShards`, all of whose arrays are.
        condition: what the network is given.
        loss: (params, key, batch) -> (loss, metrics), of batches; with `of_batches`, of what that makes of them.
        optimizer: an optax optimizer.
        ema: decay of the parameters' average; see `train.ema`.
        **more: other attributes of `Training`, `flip`: mirror each image with probability 1/2, and `encode`: captions
            -> the condition's entries, see `data.batches`.

    Returns:
        the training.
    """
    flip, encode = more.pop("flip", False), more.pop("encode", None)
    spec = getattr(source, "example", None)
    if spec is None:
        spec = {"x": jax.ShapeDtypeStruct(tuple(source.shape), jnp.float32)}
    if encode is not None or "x" in spec:
        spec = {**spec, **condition.spec}
    names = tuple(spec)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, Any]]:
        stream = data.batches(source, run.batch, seed=run.seed, start=start, rows=rows, flip=flip, encode=encode)
        return ({name: each[name] for name in names} for each in stream)

    of_batches = more.get("of_batches")
    return Training(
        loss=loss if of_batches is None else of_batches(loss),
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        batch=run.batch,
        steps=run.steps,
        batch_spec=spec,
        grad_accum_steps=run.grad_accum_steps,
        preview_every=run.preview_every,
        **more,
    )


def muon(run: Run, text: TextEncoder | None = None) -> Any:
    """Muon, warmed up and with a cosine's decay; of a text encoder that learns with the network AdamW.

    Args:
        run: the common knobs.
        text: the text encoder, where there is one.

    Returns:
        the optimizer, of the parameters that `models.of(..., text=text)` has.
    """
    rates: Any = {"warmup_steps": min(50, run.steps // 10), "steps": run.steps, "schedule": "cosine"}
    optimizer = train.muon(run.lr, **rates)
    if text is None or text.init is None:
        return optimizer
    # By Muon a small transformer forgets which word is which.
    return train.by_part({"network": optimizer, "text": train.adamw(run.lr / 8, **rates)})
