"""Parameters in the precision in which a function uses them, cast before a loop instead of in each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

# Equations that pass their inputs on to a function of the same inputs, by the name of its parameter.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "scan": "jaxpr",
}


def cast_once(f: Callable[[Any], Any], params: Any) -> Any:
    """Cast the arrays that a function uses only after a cast to less precision; the function's results do not change.

    A compiler for GPUs leaves casts in the loop of a sampler: each step would read all parameters in float32.

    Args:
        f: function of the parameters; it is traced.
        params: tree of arrays.

    Returns:
        the tree, with these arrays in the dtype of their casts.
    """
    traced = jax.make_jaxpr(f)(params).jaxpr
    leaves, tree = jax.tree.flatten(params)
    cast = []
    for leaf, variable in zip(leaves, traced.invars, strict=True):
        used = set(_uses(traced, variable))
        dtype = next(iter(used)) if len(used) == 1 else leaf.dtype
        cast.append(leaf.astype(dtype) if _is_narrower(dtype, leaf.dtype) else leaf)
    return jax.tree.unflatten(tree, cast)


def _uses(jaxpr: Any, variable: Any) -> Iterator[Any]:
    """Yield the dtype of each cast of a variable, and the variable's own dtype for any other use."""
    for equation in jaxpr.eqns:
        for place, operand in enumerate(equation.invars):
            if operand is not variable:
                continue
            name = equation.primitive.name
            if name == "convert_element_type":
                yield equation.params["new_dtype"]
            elif name in _CALLS:
                inner = equation.params[_CALLS[name]]
                inner = getattr(inner, "jaxpr", inner)
                if name == "scan" and inner.invars[place].aval.shape == variable.aval.shape:
                    yield variable.aval.dtype  # a carry keeps its dtype; only what is scanned is cast
                else:
                    yield from _uses(inner, inner.invars[place])
            else:
                yield variable.aval.dtype
    if any(result is variable for result in jaxpr.outvars):
        yield variable.aval.dtype


def _is_narrower(dtype: Any, than: Any) -> bool:
    floating = jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(than, jnp.floating)
    return floating and jnp.finfo(dtype).bits < jnp.finfo(than).bits
