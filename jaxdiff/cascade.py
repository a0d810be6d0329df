"""Cascades (Ho et al. 2021, arXiv:2106.15282): a model of small pictures, then models that make them larger."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff import data, resize
from jaxdiff.conditions import Cond, Condition, hint
from jaxdiff.drawing import Asked, Drawer
from jaxdiff.experiment import Experiment
from jaxdiff.losses import Loss
from jaxdiff.media import Samples
from jaxdiff.media.captioned import MOST, representatives
from jaxdiff.media.compositions import renderings
from jaxdiff.noise import check_key
from jaxdiff.text_encoders import TextEncoder, condition_of
from jaxdiff.types import Batch, Metrics, Params

__all__ = ["Upscaler", "augmented_loss", "known_pictures", "picture_shape"]

_BLUR = 0.6  # pixels, with a kernel of 3 x 3 (Ramesh et al. 2022, arXiv:2204.06125)


def known_pictures(condition: Condition, shown: data.Hinted, text: TextEncoder | None = None) -> Condition:
    """Add low-resolution pictures of a data set to a condition, with `conditions.hint`: each to its class or caption.

    Args:
        condition: classes, or none.
        shown: from `data.low_resolution`; up to 1,024 of its pictures are taken, spread evenly; of known captions
            those that an evaluation asks for.
        text: of captions, which become the condition's choices, in an order of chance, so that previews show all sorts.
    """
    if text is None:
        known = data.load_arrays(shown, min(MOST, len(shown)))
        return hint(condition, known["hint"], known.get("label"))
    if isinstance(shown.images, data.Compositions):
        return _known_compositions(shown, text)
    spread = np.random.default_rng(0).permutation(representatives(shown)).tolist()
    examples = [example for part in data.read_ahead(shown, 64, spread) for example in part]
    condition = condition_of(text, [example["captions"][0] for example in examples])
    return hint(condition, np.stack([example["hint"] for example in examples]))


def _known_compositions(shown: data.Hinted, text: TextEncoder) -> Condition:
    """A grammar has more captions than examples could show: those of an evaluation are of pictures of their own."""
    assert isinstance(shown.images, data.Compositions) and callable(shown.hints)
    pairs = renderings(MOST, shown.images.subset)
    captions, hints = zip(*[pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))], strict=True)
    return hint(condition_of(text, captions), np.stack([shown.hints(x) for x in hints]))


def augmented_loss(loss: Loss, condition: Condition, *, max_level: float, blur: float = 0.0) -> Loss:
    """The loss of a super-resolution model whose low-resolution pictures are noised, each at a level of its own.

    Args:
        loss: of a batch with the condition as the network is given it.
        condition: from `conditions.noised`.
        max_level: levels are uniform from 0 to it; 0 is no augmentation.
        blur: share of the low-resolution pictures that are blurred before.

    Returns:
        the loss of a batch with "hint".

    Raises:
        ValueError: from the loss, an untyped key.
    """

    def augmented(params: Params, key: Array, batch: Batch) -> tuple[Array, Metrics]:
        check_key(key)
        level_key, blur_key, noise_key, key = jax.random.split(key, 4)
        count = batch["hint"].shape[:1]
        batch = {**batch, "level": jax.random.uniform(level_key, count, maxval=max_level)}
        if blur > 0:
            sigma = _BLUR * jax.random.bernoulli(blur_key, blur, count).astype(batch["hint"].dtype)
            batch["hint"] = resize.blur(batch["hint"], sigma)
        return loss(params, key, condition.augment(noise_key, batch))

    return augmented


def picture_shape(condition: Condition, level: float | None = None) -> tuple[int, ...]:
    """The shape (H, W, C) of the pictures that a model makes larger.

    Args:
        condition: the model's.
        level: of the noise on the pictures, to be checked.

    Raises:
        ValueError: it is no such model, or the level is out of its bounds.
    """
    if not {"hint", "level"} <= condition.spec.keys():
        raise ValueError("this run makes no picture larger: it was not trained with low-resolution pictures")
    least, most = condition.bounds["level"]
    if level is not None and not least <= level <= most:
        raise ValueError(f"the level of the noise on pictures is from {least:g} to {most:g}, got {level:g}")
    return condition.spec["hint"].shape


class Upscaler:
    """A super-resolution model's sampler, compiled once for each size of a batch."""

    def __init__(self, experiment: Experiment, mesh: Mesh | None = None):
        """Make the sampler.

        Args:
            experiment: a super-resolution model's; `dataclasses.replace` changes its `sampling`.
            mesh: where the parameters lie; samples are split over it.

        Raises:
            ValueError: the model is no such one.
        """
        picture_shape(experiment.condition)
        self._condition, self._draw = experiment.condition, Drawer(experiment, mesh)

    def __call__(
        self,
        params: Params,
        pictures: np.ndarray,
        *,
        cond: Mapping[str, np.ndarray] | None = None,
        level: float | None = None,
        num: int | None = None,
        seed: int = 0,
        batch: int | None = None,
    ) -> Samples:
        """Make pictures larger.

        Args:
            params: the model's parameters, e.g. from `drawing.parameters`.
            pictures: uint8 [N, H, W, C], of the model's `picture_shape`.
            cond: what else the model is given, such as the pictures' classes, leaves [N, ...] or [1, ...]; what is
                missing is null.
            level: of the noise on the pictures; None is the experiment's.
            num: number of samples, for which pictures take turns; None: one of each.
            seed: sample i depends on the seed, i and its picture.
            batch: samples at a time; None: as in a preview.

        Returns:
            the samples, on the host.

        Raises:
            ValueError: pictures of another shape, a level out of its bounds, or nothing is known of a condition that
                has no null.
        """
        shape = picture_shape(self._condition, level)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != shape or not len(pictures):
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"pictures must be uint8 [N, {wanted}], got {pictures.dtype}{list(pictures.shape)}")
        asked = _filled(self._condition, cond or {})
        asked["hint"] = pictures.astype(np.float32) / 255
        if level is not None:
            asked["level"] = np.full(1, level, np.float32)
        count = len(pictures) if num is None else num
        return self._draw(params, count, Asked(asked, ()), seed=seed, batch=batch)


def _filled(condition: Condition, cond: Mapping[str, np.ndarray]) -> Cond:
    """A condition of which some entries are given and the others are null, except the picture and its level."""
    default, own = condition.choose(np.arange(1)), condition.spec.keys() - {"hint", "level"}
    absent = default if condition.null is None else jax.device_get(condition.without(default))
    given = {name: value for name, value in cond.items() if name in own}
    missing = sorted(own - given.keys() - (condition.null or {}).keys())
    if missing:
        raise ValueError(f"the model is always given {', '.join(missing)}: say which")
    for name, value in given.items():
        if value.shape[1:] != condition.spec[name].shape:
            raise ValueError(f"{name} must have the shape {condition.spec[name].shape}, got {value.shape[1:]}")
    return {**absent, **given}
