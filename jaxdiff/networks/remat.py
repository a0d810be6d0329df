"""Rematerialization: which values of a block are kept for its backward pass, and which are recomputed."""

from typing import Any, Literal, TypeVar, get_args

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxdiff.sharding import uses_fsdp

Remat = Literal["none", "dots", "full"]
Block = TypeVar("Block", bound=type[nn.Module])
_COSTLY = "costly"


def costly(y: jax.Array) -> jax.Array:
    """Return y, the output of a product with weights or of a convolution, with its bias: "dots" keeps it."""
    return checkpoint_name(y, _COSTLY)


def rematted(block: Block, remat: Remat, *, in_loop: bool = False) -> Block:
    """Return a block that stores less for its backward pass, by checkpointing (Chen et al. 2016, arXiv:1604.06174).

    Args:
        block: a module.
        remat: "none" keeps all that the gradient needs; "dots" keeps the outputs of linear layers and of
            convolutions, and recomputes attention and elementwise operations; "full" keeps the block's inputs.
        in_loop: whether the block is the body of a scan, where the compiler can't merge the two computations.

    Returns:
        a module with the same fields, arguments and results.

    Raises:
        ValueError: remat has another value.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat must be one of {', '.join(get_args(Remat))}, got {remat!r}")
    if remat == "none" and not uses_fsdp():
        return block
    kept = jax.checkpoint_policies.save_only_these_names(_COSTLY)
    policies = {"none": _all_but_gathered, "dots": kept, "full": None}
    # Weights are gathered again without a barrier around the block, which would have each elementwise value written.
    return nn.remat(block, prevent_cse=not in_loop and remat != "none", policy=policies[remat])


def _all_but_gathered(primitive: Any, *args: Any, **params: Any) -> bool:
    """Keep all values except those moved between devices: gathered weights would fill every device."""
    return primitive.name not in (
        "custom_vjp_call",
        "sharding_constraint",
        "optimization_barrier",  # kept, it would be what both gather, and so merge
    )  # `sharding.gathered_weight`, `sharding.constrain`
