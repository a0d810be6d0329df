"""States as flat dicts, path -> array, independent of the classes of jaxdiff and optax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff import trees


def unflatten_like(like: Any, flat: dict[str, Any]) -> Any:
    """Return a tree like another one, with the leaves of a flat dict."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in trees.flatten(like)])


def prefix(saved: Mapping[str, Any], which: str) -> str:
    """Return the prefix of the names of a part; "ema" means the first of several averages, if they are numbered."""
    names = [name.removeprefix("params/") for name in saved if name.startswith("params/")]
    averages = {name.removeprefix("ema/") for name in saved if name.startswith("ema/")}
    # An average of all parameters has their names, which may be numbers; an average of a part has other names.
    several = any(name not in averages for name in names) and all(name.split("/")[0].isdecimal() for name in averages)
    return "ema/0/" if which == "ema" and several else which + "/"


def differences(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the differences of two flat dicts in names, shapes and dtypes, a line each."""
    lines = []
    for name in sorted(saved.keys() | expected.keys()):
        old = f"{np.dtype(saved[name].dtype).name}{list(saved[name].shape)}" if name in saved else "absent"
        new = f"{np.dtype(expected[name].dtype).name}{list(expected[name].shape)}" if name in expected else "absent"
        if old != new:
            lines.append(f"{name}: {old} saved, {new} expected")
    return lines
