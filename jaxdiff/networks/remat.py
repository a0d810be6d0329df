"""What a block keeps for its backward pass, and what that computes again."""

from typing import Any, Literal, TypeVar, get_args

import flax.linen as nn
import jax

from jaxdiff.sharding import gathers

Remat = Literal["none", "dots", "full"]
Block = TypeVar("Block", bound=type[nn.Module])


def rematted(block: Block, remat: Remat, *, in_loop: bool = False) -> Block:
    """A block that keeps less for its backward pass, by checkpointing (Chen et al. 2016, arXiv:1604.06174).

    Args:
        block: a module.
        remat: "none" keeps all that the gradient needs; "dots" keeps what matrix products with weights and
            convolutions gave, so that attention and elementwise work is done again; "full" keeps the block's inputs.
        in_loop: it is the body of a scan, across whose border nothing can be merged that was to be computed twice.

    Returns:
        A module of the same fields, arguments and values.

    Raises:
        ValueError: for another word.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat must be one of {', '.join(get_args(Remat))}, got {remat!r}")
    if remat == "none" and not gathers():
        return block
    policies = {"none": _all_but_gathered, "dots": _costly, "full": None}
    return nn.remat(block, prevent_cse=not in_loop, policy=policies[remat])


def _all_but_gathered(primitive: Any, *args: Any, **params: Any) -> bool:
    """Keep all but what was moved between devices: kept, gathered weights would come to fill each device."""
    return primitive.name not in ("custom_vjp_call", "sharding_constraint")  # `sharding.weight`, `sharding.constrain`


def _costly(primitive: Any, *args: Any, **params: Any) -> bool:
    """Whether to keep a primitive's output. A convolution of each channel by itself, a blur, is cheap."""
    if primitive.name == "conv_general_dilated":
        return params["feature_group_count"] == 1
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
