"""A trained image-text model, whose embeddings a prior makes and a decoder draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff.data import to_float
from jaxdiff.drawing import parameters
from jaxdiff.experiment import UserError
from jaxdiff.image_text import ImageText
from jaxdiff.losses import Loss
from jaxdiff.recipe import load_run
from jaxdiff.types import Batch, Cond, Metrics, Params

__all__ = ["Embedder", "embedded_loss", "load_embedder"]


class Embedder(NamedTuple):
    """A trained image-text model. Its embeddings are sqrt(D) long, so that their entries are of the size of the noise.

    Attributes:
        model: its functions, of unit vectors.
        params: its parameters.
    """

    model: ImageText
    params: Params

    @property
    def width(self) -> int:
        """D."""
        return self.model.width

    def images(self, params: Params, x: Array) -> Array:
        """Embed pictures [B, H, W, C] in [-1, 1], with these parameters."""
        return self.width**0.5 * self.model.image(params, x)

    def texts(self, params: Params, cond: Cond) -> Array:
        """Embed the tokens of texts, {"ids": [B, L], "mask": [B, L]}, with these parameters."""
        return self.width**0.5 * self.model.text(params, cond["ids"], cond["mask"])

    def embed_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Embed pictures.

        Args:
            pictures: [N, H, W, C], uint8 or float in [-1, 1].

        Returns:
            float32 [N, D].

        Raises:
            ValueError: pictures of another shape.
        """
        if pictures.shape[1:] != self.model.shape:
            raise ValueError(f"pictures must be [N, *{self.model.shape}], got {list(pictures.shape)}")
        x = to_float(pictures) if pictures.dtype == np.uint8 else pictures.astype(np.float32)
        return self.width**0.5 * np.asarray(jax.jit(self.model.image)(self.params, x))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: N of them.

        Returns:
            float32 [N, D].

        Raises:
            ValueError: a word is unknown, or a text is too long.
        """
        ids, mask = self.model.vocabulary.tokenize(texts).values()
        return self.width**0.5 * np.asarray(jax.jit(self.model.text)(self.params, ids, mask))


def load_embedder(path: str | Path, mesh: Mesh | None = None) -> Embedder:
    """Load the run of an image-text model.

    Args:
        path: its folder.
        mesh: where its parameters lie; None is the default device.

    Raises:
        UserError: the run is no image-text model.
        ValueError: there is no run.
    """
    experiment = load_run(path, mesh=mesh)
    model = experiment.model.network
    if not isinstance(model, ImageText):
        raise UserError(f"{path} is no image-text model: `jaxdiff train image_text` makes one")
    return Embedder(model, parameters(experiment, path, mesh=mesh))


def embedded_loss(loss: Loss, embedder: Embedder, *, into: str) -> Loss:
    """The loss of batches of pictures, which are embedded on the devices.

    Args:
        loss: of a batch that has the embeddings of its pictures.
        embedder: whose parameters are the model's frozen["image_text"].
        into: the entry of the embeddings, "x" for a model of embeddings, in place of the pictures.

    Returns:
        the loss of a batch with "x", pictures.
    """

    def embedded(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        made = embedder.images(params[1]["image_text"], batch["x"])
        return loss(params, key, {**batch, into: made})

    return embedded
