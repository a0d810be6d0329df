"""A small image-text model that finds the captions of samples: fitted to pictures of the grammar, with its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import data, image_text
from jaxdiff.image_text import ImageText
from jaxdiff.media import fitted
from jaxdiff.metrics.report import as_images
from jaxdiff.seeds import seed_key
from jaxdiff.text import Vocabulary
from jaxdiff.types import Params

__all__ = ["Retriever", "fit_retriever", "load_retriever", "save_retriever"]

SEED = 2**21  # of its pairs and parameters: the models that it judges have their own
LENGTH = 24  # tokens of a caption
AT_ONCE = 100  # pictures or captions encoded at a time


class Retriever(NamedTuple):
    """A trained image-text model.

    Attributes:
        params: its parameters.
        model: its functions.
    """

    params: Params
    model: ImageText

    def pictures(self, x: Any) -> np.ndarray:
        """Encode pictures.

        Args:
            x: float [N, H, W, C] in [-1, 1], N >= 1.

        Returns:
            unit vectors, float32 [N, D].

        Raises:
            ValueError: pictures of another shape, or with values that are not finite.
        """
        x = as_images(x)
        if x.shape[1:] != self.model.shape:
            raise ValueError(f"the image-text model takes pictures of shape {self.model.shape}, got {x.shape[1:]}")
        return _in_parts(self.model.image, self.params, x)

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """Encode captions.

        Args:
            captions: N texts, N >= 1.

        Returns:
            unit vectors, float32 [N, D].

        Raises:
            ValueError: a word is unknown, or a text is too long.
        """
        ids, mask = self.model.vocabulary.tokenize(captions).values()
        return _in_parts(self.model.text, self.params, ids, mask)


def fit_retriever(*, subset: str = "all", steps: int = 500, batch_size: int = 128, progress: bool = False) -> Retriever:
    """Train an image-text model on `data.Compositions`, without the combinations that are held out.

    Args:
        subset: see `data.Compositions`.
        steps: number of updates, at least 2.
        batch_size: pairs in an update.
        progress: show a bar with the loss.

    Returns:
        the model.
    """
    source = data.Compositions(seed=SEED, subset=subset)
    vocabulary = Vocabulary.of(data.captions_of(source), length=LENGTH)
    model = image_text.make(vocabulary, source.shape)
    init_key, key = jax.random.split(seed_key(SEED))
    batches = data.batches(source, batch_size, seed=SEED, encode=vocabulary.tokenize)
    params = fitted.fit(
        image_text.contrastive_loss(model), model.init(init_key), batches,
        steps=steps, lr=2e-3, key=key, name="image-text model", weight_decay=0.0, progress=progress,
    )  # fmt: skip
    return Retriever(params, model)


def save_retriever(path: str | Path, retriever: Retriever) -> Path:
    """Write a model to one npz file.

    Args:
        path: the file, ending in .npz; missing folders are made. It is replaced in one move.
        retriever: what to write.

    Returns:
        the path written.
    """
    model = retriever.model
    return fitted.save(path, retriever.params, shape=np.array(model.shape), words=np.array(model.vocabulary.words))


def load_retriever(path: str | Path) -> Retriever:
    """Read a model that `save_retriever` wrote.

    Args:
        path: the file.

    Raises:
        ValueError: the file is no such model of this version's shapes.
        OSError: the file cannot be read.
    """
    return Retriever(*fitted.load(path, _expected, "image-text model"))


def _expected(arrays: dict[str, np.ndarray]) -> tuple[ImageText, Any]:
    """The model, whose vocabulary is taken from the arrays, and the shapes of its parameters."""
    shape = tuple(int(n) for n in arrays.pop("shape"))
    model = image_text.make(Vocabulary(tuple(arrays.pop("words").tolist()), LENGTH), shape)
    return model, jax.eval_shape(model.init, jax.random.key(0))


def _in_parts(encode: Callable[..., jax.Array], params: Params, *arrays: np.ndarray) -> np.ndarray:
    """Encode arrays in parts of one size, which compile once."""
    compiled, parts = jax.jit(encode), []
    for start in range(0, len(arrays[0]), AT_ONCE):
        part = [a[start : start + AT_ONCE] for a in arrays]
        count = len(part[0])
        padded = [np.pad(a, [(0, AT_ONCE - count)] + [(0, 0)] * (a.ndim - 1)) for a in part]
        parts.append(np.asarray(compiled(params, *padded))[:count])
    return np.concatenate(parts)
