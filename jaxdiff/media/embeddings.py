"""Embeddings: vectors of pictures and texts, which are written as arrays."""

from __future__ import annotations

from pathlib import Path

from jaxdiff.conditions import Condition
from jaxdiff.media.base import Evaluator, Medium, Samples
from jaxdiff.media.files import save_npz

__all__ = ["embeddings"]


def embeddings(shape: tuple[int, ...], measure: Evaluator, *, preview: int = 100) -> Medium:
    """Vectors.

    Args:
        shape: of an example: (D,), or (2, D) for the vectors of a picture and of its caption.
        measure: what `jaxdiff eval` does with them.
        preview: examples in a preview.

    Returns:
        the medium. Its file has the captions under the name "prompt".
    """

    def save(out: Path, samples: Samples) -> None:
        save_npz(out, x=samples.x, **({"prompt": list(samples.names)} if samples.names else {}))

    def evaluator(run: Path, condition: Condition) -> Evaluator:
        return measure

    return Medium(tuple(shape), save, (".npz",), preview=preview, last=preview, evaluator=evaluator)
