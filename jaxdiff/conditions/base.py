"""The type of a condition: what one may ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.options import Range
from jaxdiff.parameterize import Apply, Params

__all__ = ["Cond", "Condition", "unaugmented", "unchanged"]

Cond = dict[str, Any]


def unchanged(params: Params, cond: Cond) -> Cond:
    """The condition as it is."""
    return cond


def unaugmented(key: Array, cond: Cond) -> Cond:
    """The condition as it is."""
    return cond


@dataclass(frozen=True)
class Condition:
    """What one may ask of a model: a class, a text, a picture.

    A condition is a dict of arrays with leading axis [B], e.g. {"label": int32 [B]}.

    Attributes:
        spec: name -> shape and dtype of one example's entry, without the leading axis.
        choose: numbers int [B] -> condition; previews and evaluations number their examples, and so take turns.
        parse: words of the command line -> condition of one example, leaves [1, ...].
        choices: how many conditions `choose` takes in turn; 0: one or none.
        names: of the choices, where they have names.
        held_out: the choices that training never shows, by their numbers; pictures may frame them.
        vocabulary: the words that `parse` knows, if these are a closed set; kept with the run, since its parameters
            belong to them.
        null: the condition that stands for none, leaves [1, ...], of all or some of the entries (the others are kept);
            None: the model was never trained without its condition, so that guidance is impossible.
        unasked: entries that words don't ask for, such as a picture that an example follows; a negative keeps them.
        bounds: of entries that are a number one may set: name -> (least, largest).
        augment: (key, or one key per example; condition) -> what `encode` is given: with what is random in it, such as
            noise on a picture, and what is computed of it, on the devices. By default the condition itself.
        encode: (params, condition) -> what the network is given, on the devices, e.g. by a text encoder whose
            parameters are among the model's frozen ones. By default the condition itself.
        parse_text: any text -> the entries that it asks for, leaves [1, ...], without those that are `unasked`; None:
            words are of a closed set, such as classes.
    """

    spec: Mapping[str, jax.ShapeDtypeStruct]
    choose: Callable[[np.ndarray], Cond] = field(repr=False)
    parse: Callable[[str], Cond] = field(repr=False)
    choices: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)
    held_out: tuple[int, ...] = ()
    vocabulary: tuple[str, ...] = field(default=(), repr=False)
    null: Mapping[str, Array | np.ndarray] | None = field(default=None, repr=False)
    unasked: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    augment: Callable[[Array, Cond], Cond] = field(default=unaugmented, repr=False)
    encode: Callable[[Params, Cond], Cond] = field(default=unchanged, repr=False)
    parse_text: Callable[[str], Cond] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        Range(0).check("condition.choices", self.choices)
        if self.names and len(self.names) != self.choices:
            raise ValueError(f"condition.names must be {self.choices}, one for each choice, got {len(self.names)}")
        for number in self.held_out:
            Range(0, self.choices - 1).check("condition.held_out", number)
        unknown = sorted((self.null or {}).keys() - self.spec.keys())
        if unknown:
            raise ValueError(f"condition.null must have entries of spec, {sorted(self.spec)}, got {unknown}")

    def encoded(self, apply: Apply) -> Apply:
        """Return a network of conditions that are not encoded yet, for a loss, whose batches hold these.

        Args:
            apply: the model's, (params, x, noise[B], encoded condition) -> F.

        Returns:
            (params, x, noise[B], condition) -> F.
        """

        @wraps(apply)
        def apply_encoded(params: Params, x: Array, noise: Array, cond: Cond, **options: Any) -> Any:
            return apply(params, x, noise, self.encode(params, cond), **options)

        return apply_encoded

    def zeros(self) -> Cond:
        """Make an augmented condition of one example, leaves [1, ...], of zeros: to initialize a network with."""
        plain = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in self.spec.items()}
        made = jax.eval_shape(self.augment, jax.random.key(0), plain)
        return {name: jnp.zeros(a.shape, a.dtype) for name, a in made.items()}

    def without(self, cond: Cond) -> Cond:
        """Replace what `null` has by it: the condition of the unconditional model.

        Args:
            cond: leaves [B, ...].

        Returns:
            the condition, leaves [B, ...].

        Raises:
            ValueError: there is no null condition.
        """
        self.check_null()
        size = jax.tree.leaves(cond)[0].shape[0]  # which may be symbolic, in an exported program
        spread = lambda a, spec: jnp.broadcast_to(jnp.asarray(a, spec.dtype), (size, *spec.shape))  # noqa: E731
        return {**cond, **{name: spread(a, self.spec[name]) for name, a in (self.null or {}).items()}}

    def check_null(self) -> None:
        """Raise ValueError unless there is a null condition."""
        if not self.spec:
            raise ValueError("this run has no condition that guidance could lead to: use --guidance 1")
        if self.null is None:
            raise ValueError(
                "guidance needs a model that was also trained without its condition, and whose guidance was not "
                "distilled: use --guidance 1"
            )
