"""A state as one flat dict, path -> array: on disk it depends on no class of ours or of optax, and a difference has a
name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff import trees


def unflatten_like(like: Any, flat: dict[str, Any]) -> Any:
    """Make a tree like another one of a flat dict."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in trees.flatten(like)])


def prefix(saved: Mapping[str, Any], which: str) -> str:
    """Return what begins the names of a part; "ema" is the first of several averages, where these are numbered."""
    names = [name.removeprefix("params/") for name in saved if name.startswith("params/")]
    averages = {name.removeprefix("ema/") for name in saved if name.startswith("ema/")}
    # An average of all parameters has their names, which may be numbers; that of a part of them has other ones.
    several = any(name not in averages for name in names) and all(name.split("/")[0].isdecimal() for name in averages)
    return "ema/0/" if which == "ema" and several else which + "/"


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in which names, shapes and dtypes two flat dicts differ, a line each."""
    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        old = f"{np.dtype(saved[name].dtype).name}{list(saved[name].shape)}" if name in saved else "absent"
        new = f"{np.dtype(wanted[name].dtype).name}{list(wanted[name].shape)}" if name in wanted else "absent"
        if old != new:
            lines.append(f"{name}: {old} saved, {new} expected")
    return lines
