"""Latent diffusion (Rombach et al. 2022, arXiv:2112.10752): autoencoders of runs, and pictures as latents."""

from __future__ import annotations

import functools
import math
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import data, interop, train
from jaxdiff.conditions import Condition
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.first_stage.origin import CLASSES, Origin
from jaxdiff.interop.sources import find_part, is_file, read_fields
from jaxdiff.losses import Loss
from jaxdiff.progress import Progress
from jaxdiff.recipe import load_run
from jaxdiff.script import SOURCE
from jaxdiff.sharding import shard_batch, shard_params
from jaxdiff.types import Batch, Metrics, Params

__all__ = ["Encode", "Latents", "encoder", "encoding_loss", "latent_shape", "load_autoencoder"]

Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # pictures -> (mean, std)

AT_ONCE = 32  # pictures encoded at a time
FITS = 2**32  # bytes of latents that are kept in memory
KINDS = f"a run of the experiment autoencoder, or a folder of {' or '.join(CLASSES.values())}"


def load_autoencoder(path: str | Path, mesh: Mesh | None = None) -> interop.Pretrained:
    """Read a trained autoencoder.

    Args:
        path: the folder of a run that has trained one, whose latents are scaled by 1 / their standard deviation, as
            `jaxdiff convert` does; or a folder or file that `interop.load` reads, with its config's scale and shift.
        mesh: where its parameters lie; None is the default device.

    Raises:
        UserError: it is none.
    """
    path = Path(path)
    if (path / SOURCE).is_file():
        return _of_run(path, mesh)
    folder = find_part(path, "vae", "vqvae")
    if not is_file(folder) and not (folder / "config.json").is_file():
        raise UserError(f"{path} holds no autoencoder: allowed are {KINDS}")
    kind = read_fields(folder)["_class_name"]
    if kind not in CLASSES.values():
        raise UserError(f"{folder} holds a {kind}: allowed are {KINDS}")
    place = None if mesh is None else lambda tree: shard_params(tree, mesh)
    return interop.load(folder, dtype=compute_dtype(), place=place)


def _of_run(path: Path, mesh: Mesh | None) -> interop.Pretrained:
    """The averaged autoencoder of a run, by way of the folder that `jaxdiff convert` would write."""
    model = load_run(path).model
    if model.generate is None or "model" not in model.export:
        raise UserError(f"{path} is the run of another kind of model: allowed are {KINDS}")
    with tempfile.TemporaryDirectory() as folder:
        model.export["model"](train.load_params(path, "ema"), Path(folder))
        return load_autoencoder(folder, mesh)


def latent_shape(autoencoder: interop.Pretrained, pictures: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (height, width, channels) of a picture's latents.

    Args:
        autoencoder: from `load_autoencoder`.
        pictures: shape (height, width, channels) of a picture.

    Raises:
        UserError: the autoencoder takes pictures of other channels, or its factor does not divide their sides.
    """
    Origin(autoencoder.config).check(pictures)
    codec = autoencoder.apply
    return *(side // codec.factor for side in pictures[:2]), codec.channels


def encoder(autoencoder: interop.Pretrained, batch: int, mesh: Mesh | None = None) -> Encode:
    """Make the function that encodes pictures to the diffusion model's latents, by one compiled program.

    Args:
        autoencoder: from `load_autoencoder`.
        batch: what pictures are padded to; a multiple of the devices of a mesh.
        mesh: where the autoencoder lies; None is the default device.

    Returns:
        pictures, float [b, H, W, C] in [-1, 1], b at most `batch` -> (mean, std), each [b, h, w, D].
    """
    posterior = jax.jit(autoencoder.apply.posterior)

    def encode(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)])
        mean, std = posterior(autoencoder.params, padded if mesh is None else shard_batch(padded, mesh))
        return np.asarray(mean)[: len(x)], np.asarray(std)[: len(x)]

    return encode


class Latents:
    """A source of pictures, as the latents that a diffusion model learns: all are encoded when the first is asked for.

    An example has "mean" and "std" in place of "x", for `losses.latent_loss`; its label and captions stay.
    """

    def __init__(
        self, pictures: data.Dataset, autoencoder: interop.Pretrained, condition: Condition, mesh: Mesh | None = None
    ):
        """Describe the latents; nothing is encoded yet.

        Args:
            pictures: from `data.open_dataset`.
            autoencoder: from `load_autoencoder`.
            condition: whether a batch has labels.
            mesh: where the autoencoder lies; None is the default device.

        Raises:
            UserError: the autoencoder does not fit the pictures, or there are several processes.
        """
        if jax.process_count() > 1:
            raise UserError("latents of all pictures are those of one process: --no-encode-once for several")
        self._pictures, self._autoencoder, self._mesh = pictures, autoencoder, mesh
        self._lock = threading.Lock()
        moment = jax.ShapeDtypeStruct(latent_shape(autoencoder, pictures.shape), jnp.float32)
        label = {name: spec for name, spec in condition.spec.items() if name == "label"}
        self.example = {"mean": moment, "std": moment, **label}

    def __len__(self) -> int:
        """Number of pictures.

        Raises:
            UserError: their latents would not fit into memory.
        """
        count = len(self._pictures)
        size = 8 * count * math.prod(self.example["mean"].shape)
        if size > FITS:
            raise UserError(
                f"the latents of {count:,} pictures would take {size / 2**30:,.0f} GiB, and at most {FITS >> 30} are "
                "kept: --no-encode-once encodes each batch in its step"
            )
        return count

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._lock:  # the pipeline's threads
            mean, std, others = self._encoded
        return {"mean": mean[index], "std": std[index], **others[index]}

    @functools.cached_property
    def _encoded(self) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        batch = AT_ONCE if self._mesh is None else AT_ONCE * self._mesh.size
        encode, parts, others = encoder(self._autoencoder, batch, self._mesh), [], []
        with Progress("encoding", -(-len(self) // batch), "batch") as bar:
            for examples in data.read_ahead(self._pictures, batch):
                parts.append(encode(data.to_float(np.stack([example["x"] for example in examples]))))
                others += [{name: a for name, a in example.items() if name != "x"} for example in examples]
                bar.update()
        mean, std = (np.concatenate(each) for each in zip(*parts, strict=True))
        return mean, std, others


def encoding_loss(loss: Loss, autoencoder: interop.Pretrained) -> Loss:
    """The loss of pictures that are encoded in each step, for data whose latents would not fit into memory.

    Args:
        loss: of a batch with "mean" and "std", from `losses.latent_loss`.
        autoencoder: from `load_autoencoder`; its parameters are the model's frozen["vae"].

    Returns:
        the loss of a batch with "x".
    """

    def encoded(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        mean, std = autoencoder.apply.posterior(params[1]["vae"], batch["x"])
        others = {name: a for name, a in batch.items() if name != "x"}
        return loss(params, key, {**others, "mean": mean, "std": std})

    return encoded
