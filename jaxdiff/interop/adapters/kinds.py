"""Changes of a kernel by adapters: low rank, Hadamard and Kronecker products of low rank, and DoRA.

With PyTorch's layout of kernels, [out, in, *size], and scale s = alpha / rank, the change is

    LoRA   s up down (Hu et al. 2021, eq. 3); for convolutions with `mid`: s sum_mn up_om mid_mn down_ni
    LoHa   s (w1_a w1_b) * (w2_a w2_b), elementwise (Hyeon-Woo et al. 2022, arXiv:2108.06098, eq. 3)
    LoKr   s w1 (x) w2, Kronecker product; each factor may be a product w_a w_b (Yeh et al. 2024, arXiv:2309.14859)
    DoRA   m (W + change) / |W + change| - W, norms of each output's row (Liu et al. 2024, arXiv:2402.09353, eq. 5)

With a convolution's core t [r, r, *size], the product of a [r, out] and b [r, in] is t_mn.. a_mo b_ni.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["Change", "Group", "ending", "rank_of", "read_change", "unread"]

Group = Mapping[str, tuple[str, Any]]  # role of a tensor -> (its name, the tensor)
Change = tuple[np.ndarray, np.ndarray] | np.ndarray  # (down [r, in, *size], up [out, r]), or the change itself

# Endings of tensors' names, and the roles of the tensors; the rest of a name is the module. Older names of diffusers
# have "to_q_lora" for the module "to_q", hence the underscore.
ENDS = {
    r"\.lora_A(\.\w+)?\.weight": "down",
    r"\.lora_B(\.\w+)?\.weight": "up",
    r"[._]lora(_linear_layer)?\.down\.weight": "down",
    r"[._]lora(_linear_layer)?\.up\.weight": "up",
    r"\.lora_down\.weight": "down",
    r"\.lora_up\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"\.lora_magnitude_vector(\.\w+)?(\.weight)?": "magnitude",
    r"\.dora_scale": "dora_scale",
    r"\.alpha": "alpha",
    **{
        rf"\.{name}(\.\w+)?": name
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    **{
        rf"\.{name}(\.\w+)?": name
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    },
}
LORA = {"down", "up"}
LOHA = {f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"}
# Kinds that are not supported, and the endings of their tensors' names.
UNREAD = {
    "OFT and BOFT": r"\.(b?oft_\w+|rescale)(\.\w+)*$",
    "GLoRA": r"\.[ab][12]\.weight$",
    "IA3": r"\.(on_input|ia3_l(\.\w+)?)$",
    "full differences": r"\.(diff(_b)?|set_weight|[wb]_norm)$",
    "biases of adapters": r"\.(lora_[AB](\.\w+)?|lora_(up|down))\.bias$",
    "adapters of embeddings": r"\.lora_embedding_[AB](\.\w+)?$",
    "VeRA": r"\.vera_lambda_\w+(\.\w+)?$",
}


def ending(name: str) -> tuple[str, str | None]:
    """Split a name into the module and the role of the tensor, which is None for an unknown name."""
    for end, role in ENDS.items():
        if match := re.fullmatch(f"(.+?){end}", name):
            return match[1], role
    return name, None


def unread(names: Iterable[str]) -> list[str]:
    """Return the unsupported kinds of adapters to which tensors of these names belong."""
    names = list(names)
    return [kind for kind, end in UNREAD.items() if any(re.search(end, name) for name in names)]


def rank_of(group: Group) -> int | None:
    """Return the rank that divides alpha; None without factors (LoKr), where there is no scale."""
    for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if role in group:
            name, tensor = group[role]
            if 0 in tensor.shape or not tensor.shape:
                raise ValueError(f"{name} must be a matrix with a row for each rank, got shape {tensor.shape}")
            return tensor.shape[0]
    return None


def read_change(group: Group, shape: tuple[int, ...], scale: float, weight: Callable[[], np.ndarray]) -> Change:
    """Read an adapter.

    Args:
        group: its tensors.
        shape: shape of the kernel, [out, in, *size].
        scale: alpha / rank.
        weight: returns the kernel, which DoRA needs.

    Returns:
        the scaled change in float64.

    Raises:
        ValueError: a tensor is missing, or does not fit the kernel.
    """
    values = {role: np.asarray(tensor[()], np.float64) for role, (_, tensor) in group.items()}
    roles = values.keys() - {"alpha", "magnitude", "dora_scale"}
    base = weight() if {"magnitude", "dora_scale"} & values.keys() else None
    try:
        if any(values[role].ndim < 2 or not values[role].size for role in roles):
            raise ValueError("which are no matrices")
        if roles >= LORA and not roles - LORA - {"mid"}:
            change: Change = _low_rank(values, shape, scale)
        elif roles >= LOHA and not roles - LOHA - {"hada_t1", "hada_t2"}:
            first, second = (_product(values, f"hada_w{i}", f"hada_t{i}", shape) for i in (1, 2))
            change = scale * (first.reshape(shape) * second.reshape(shape))
        elif roles and all(role.startswith("lokr_") for role in roles):
            first, second = _product(values, "lokr_w1", "", shape), _product(values, "lokr_w2", "lokr_t2", shape)
            _check_size(first.size * second.size, shape)
            change = scale * np.kron(first, second.reshape(len(second), -1)).reshape(shape)
        else:
            raise ValueError("which are not all of an adapter: both halves are needed")
        if base is not None:
            change = _decomposed(values, change, shape, base)
    except (ValueError, KeyError) as error:
        tensors = ", ".join(f"{name} {tensor.shape}" for name, tensor in group.values())
        lacking = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{tensors}: no adapter of a kernel of shape {shape}: {lacking}") from None
    return change


def _low_rank(values: Mapping[str, np.ndarray], shape: tuple[int, ...], scale: float) -> tuple[np.ndarray, np.ndarray]:
    down, up, (out, *inside) = values["down"], values["up"], shape
    rank = len(down)
    if "mid" in values:
        _check_size(out * (values["mid"].size // rank) * (down.size // rank) // rank, shape)
        down = np.tensordot(values["mid"], down.reshape(rank, -1), ((1,), (0,)))  # [m, *size, in]
        down = np.moveaxis(down, -1, 1)
    # Some files have a 1x1 convolution for a dense layer, or the reverse.
    if up.shape[:2] != (out, rank):
        raise ValueError(f"up must have {out} rows of {rank}")
    return down.reshape(rank, *inside), scale * up.reshape(out, rank)


def _product(values: Mapping[str, np.ndarray], name: str, core: str, shape: tuple[int, ...]) -> np.ndarray:
    if name in values:
        return values[name]
    a, b = values[f"{name}_a"], values[f"{name}_b"]
    outer = a.shape[-1] * math.prod(values[core].shape[2:]) if core in values else a.shape[0]
    _check_size(outer * b.shape[-1], shape)
    return np.einsum("mn...,mo,ni->oi...", values[core], a, b) if core in values else a @ b


def _check_size(size: int, shape: tuple[int, ...]) -> None:
    """Check the size of a product before it is computed: small factors may have a product that exceeds the memory."""
    if size > math.prod(shape):
        raise ValueError(f"they make {size:,} numbers, and the kernel has {math.prod(shape):,}")


def _decomposed(
    values: Mapping[str, np.ndarray], change: Change, shape: tuple[int, ...], weight: np.ndarray
) -> np.ndarray:
    delta = np.tensordot(change[1], change[0], 1) if isinstance(change, tuple) else change
    merged = weight + delta
    # In some files dora_scale is [1, in, ...], for the columns of the inputs.
    scale = values["dora_scale" if "dora_scale" in values else "magnitude"]
    columns = "dora_scale" in values and scale.ndim > 1 and scale.shape[0] == 1 != shape[0]
    kept = 1 if columns else 0
    if scale.size != shape[kept]:
        raise ValueError(f"DoRA's magnitudes must be {shape[kept]}")
    norm = np.sqrt((merged**2).sum(tuple(axis for axis in range(merged.ndim) if axis != kept), keepdims=True))
    return scale.reshape(norm.shape) * merged / norm - weight
