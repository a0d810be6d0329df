"""A student's first parameters: those of its teacher."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp

from jaxdiff import trees
from jaxdiff.messages import listed

__all__ = ["start_from"]

# Modules that a few-step student may have and its teacher not: embeddings of the step's end and of a guidance scale.
# The last layer of each is drawn as zero; Flux's, which is drawn as published, is set to zero.
NEW = re.compile(
    r"(.*/)?(next_time_embedding|guidance_embedding|time_embedding\.cond_proj|time_text_embed\.guidance_embedder)/.*"
)
LAST = re.compile(r"(.*/)?time_text_embed\.guidance_embedder/linear_2/kernel")


def start_from(student: Any, teacher: Any) -> Any:
    """Initialize a student with the weights of its teacher, whose function it then is.

    The student may also have embeddings of the level at which a step ends (`next_noise`) and of a guidance scale
    (`guidance_dim`, `guidance`). Their last layers are zero, so that the network does not depend on them yet.

    Args:
        student: the student's parameters, as `init` draws them.
        teacher: the teacher's.

    Returns:
        the student's parameters, in its dtypes; they are copies, so that a train step may overwrite them.

    Raises:
        ValueError: a parameter has another shape, is the teacher's only, or is the student's only and not in such an
            embedding.
    """
    own, known = trees.flatten(student), trees.flatten(teacher)
    others = [f"{name} {known[name].shape}: the teacher's only" for name in known if name not in own]
    others += [
        f"{name} {own[name].shape}: the student's only" for name in own if name not in known and not NEW.match(name)
    ]
    others += [
        f"{name}: {own[name].shape}, the teacher's {known[name].shape}"
        for name in own
        if name in known and own[name].shape != known[name].shape
    ]
    if others:
        raise ValueError(
            f"a student that starts from its teacher has the same parameters, and may have embeddings of next_noise "
            f"and guidance; these do not fit: {listed(others, between='; ')}"
        )
    start = {name: jnp.zeros_like(a) if LAST.match(name) else a for name, a in own.items()} | known
    return trees.nest({name: jnp.array(start[name], own[name].dtype, copy=True) for name in own})
