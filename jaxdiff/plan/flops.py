"""Floating-point operations of matrix products and convolutions, in a compiled program and in a traced one.

Additions and multiplications count separately; products with padding or with the holes of a dilation do not count.
Elementwise operations are omitted: memory bandwidth bounds their time.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from jaxdiff.plan.hlo import Module, Run, runs


class Window(NamedTuple):
    """One spatial axis of a convolution."""

    out: int
    size: int  # of the kernel
    inp: int  # of the input, without padding or holes
    stride: int = 1
    low: int = 0  # padding before the first element
    base: int = 1  # dilation of the input
    dilation: int = 1  # of the kernel

    def products(self) -> int:
        """Count the pairs of output and kernel positions that meet an element of the input."""
        at = self.stride * np.arange(self.out)[:, None] + self.dilation * np.arange(self.size)[None] - self.low
        return int(np.sum((at >= 0) & (at % self.base == 0) & (at <= self.base * (self.inp - 1))))


def of_jaxpr(jaxpr: Any) -> int:
    """Count the operations of a traced program, on all devices together.

    A `scan` counts its length, a `cond` its most expensive branch, a `while` of unknown length one iteration.

    Args:
        jaxpr: a `jax.core.Jaxpr` or a closed one.
    """
    return sum(map(_of_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _of_equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(eqn)
    if name in ("convolution", "convolution_to_x", "convolution_to_kernel"):  # `networks.convolution` on a CPU
        return of_jaxpr(jax.make_jaxpr(partial(eqn.primitive.impl, **params))(*(x.aval for x in eqn.invars)))
    if name.startswith("dot_product_attention_"):  # cuDNN's, which JAX has for CUDA alone
        q, k = (x.aval.shape for x in eqn.invars[:2])
        # Two products of queries, keys and features; five in the backward pass, which makes the weights again.
        return (10 if "_bwd" in name else 4) * math.prod(q) * k[1 if params["layout"] == 0 else 2]
    if name == "attention_tangent":  # `networks.kernels`
        return of_jaxpr(jax.make_jaxpr(partial(eqn.primitive.impl, **params))(*(x.aval for x in eqn.invars)))
    if name == "cond":
        return max(map(of_jaxpr, params["branches"]))
    inner = sum(map(of_jaxpr, jaxprs_in_params(params)))
    if name == "scan":
        return params["length"] * inner
    return params["mesh"].size * inner if name == "shard_map" else inner


def _of_convolution(eqn: Any) -> int:
    params, (x, kernel) = eqn.params, (var.aval.shape for var in eqn.invars)
    out, numbers = eqn.outvars[0].aval.shape, params["dimension_numbers"]
    axes = zip(numbers.out_spec[2:], numbers.rhs_spec[2:], numbers.lhs_spec[2:], strict=True)
    windows = [
        Window(out[o], kernel[k], x[i], stride, low, base, dilation)
        for (o, k, i), stride, (low, _), base, dilation in zip(
            axes, params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"],
            strict=True,
        )
    ]  # fmt: skip
    batch, features = (out[i] for i in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * math.prod(w.products() for w in windows)


def count_flops(module: Module) -> int:
    """Count the operations of a compiled program on one device; those in a loop count once for each iteration."""
    return sum(run.times * _of_instruction(run) for run in runs(module))


def _of_instruction(run: Run) -> int:
    instruction, find = run.instruction, run.computation.instructions
    if instruction.opcode == "dot":
        shape = find[instruction.operands[0]].results[0].shape
        contracted = _integers(instruction.attributes, r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2 * math.prod(instruction.results[0].shape) * math.prod(shape[i] for i in contracted)
    if instruction.opcode != "convolution":
        return 0
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0
    x, kernel = (find[name].results[0].shape for name in instruction.operands[:2])
    out = instruction.results[0].shape
    spatial = [c for c in labels[1] if c.isdigit()]
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    options = dict(re.findall(r"(\w+)=([\dx_\-]+)", window[1])) if window else {}

    def each(key: str, default: str) -> list[int]:
        values = options[key].split("x") if key in options else [default] * len(spatial)
        return [int(value.split("_")[0]) for value in values]

    settings = zip(
        sorted(spatial), each("stride", "1"), each("pad", "0_0"), each("lhs_dilate", "1"), each("rhs_dilate", "1"),
        strict=True,
    )  # fmt: skip
    windows = [
        Window(out[labels[3].index(c)], kernel[labels[2].index(c)], x[labels[1].index(c)], stride, low, base, dilation)
        for c, stride, low, base, dilation in settings
    ]
    batch, features = out[labels[3].index("b")], out[labels[3].index("f")]
    return 2 * batch * features * kernel[labels[2].index("i")] * math.prod(w.products() for w in windows)


def _integers(text: str, pattern: str) -> list[int]:
    match = re.search(pattern, text)
    return [int(number) for number in match[1].split(",") if number] if match else []
