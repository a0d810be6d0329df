"""A sampler as one program, which runs where there is nothing but JAX."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.export import Exported
from jax.sharding import AbstractDevice, AbstractMesh

from jaxdiff import trees
from jaxdiff.conditions import guidance_scale
from jaxdiff.experiment import Experiment
from jaxdiff.sampler import sampler
from jaxdiff.schema import GUIDANCE
from jaxdiff.seeds import keys_at
from jaxdiff.storage import replacing
from jaxdiff.types import Params

__all__ = ["MAGIC", "MAX_EMBEDDED_BYTES", "export_sampler", "flat_weights", "for_export", "signature", "write_program"]

# A file's first line, with the SHA-256 of all that follows it. The second is the version of JAX that wrote it, whose
# programs an older one need not understand.
MAGIC = "jaxdiff sampler 2 {}"
# Bytes of weights inside a file; its format and XLA's count them in 31 bits, with the rest of the program.
MAX_EMBEDDED_BYTES = 2**31 - 2**26


def for_export(dtype: Literal["float32", "bfloat16"]) -> AbstractContextManager[Any]:
    """Let what is built and traced within compute in this type, by no kernel that one kind of device alone has."""
    device = AbstractDevice("any", None, "cpu" if dtype == "float32" else "any")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def export_sampler(
    experiment: Experiment,
    params: Params,
    *,
    embed_weights: bool = True,
    guidance: float | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Exported:
    """Lower an experiment's sampler for any batch size B; no device but the host's is needed.

    Call it, and build the experiment, within `for_export`.

    Args:
        experiment: what to sample, with its solver and number of steps.
        params: the trained parameters.
        embed_weights: the parameters are constants of the program; otherwise its argument `weights`, as `flat_weights`
            names them.
        guidance: scale to build in, 1 is off; None is an argument, where the model has a null condition.
        platforms: names that `jax.export` knows.

    Returns:
        the program: (seed int32, index int32 [B], the condition's entries [B, ...], guidance float32 where it is an
        argument, weights) -> x [B, *shape], all by keyword. Its sample of number `index` is that of `jaxdiff sample`.

    Raises:
        ValueError: guidance that is no scale, or of a model without a null condition; or parameters too large to embed.
    """
    if guidance is not None:
        GUIDANCE.check("guidance", guidance)
    params = experiment.model.merge_frozen(params)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    if embed_weights and size > MAX_EMBEDDED_BYTES:
        most = f"{MAX_EMBEDDED_BYTES / 2**30:.2f} GiB fit into a file"
        raise ValueError(f"the weights take {size / 2**30:.2f} GiB and {most}: use --no-embed-weights")
    condition = experiment.condition
    takes_scale = "guidance" in condition.bounds  # the scale is an input of the network
    if takes_scale and guidance is not None:
        guidance_scale(condition, guidance)
    has_null = experiment.sampling is not None and condition.null is not None
    guided = not takes_scale and (has_null if guidance is None else guidance != 1)
    generate = sampler(experiment.model, experiment.sampling, condition, experiment.medium, guided=guided)
    (b,) = jax.export.symbolic_shape("b")
    shapes: dict[str, Any] = {"seed": ShapeDtypeStruct((), jnp.int32), "index": ShapeDtypeStruct((b,), jnp.int32)}
    shapes |= {name: ShapeDtypeStruct((b, *spec.shape), spec.dtype) for name, spec in condition.spec.items()}
    if takes_scale or guided:
        shapes["guidance"] = ShapeDtypeStruct((), jnp.float32)
    if guidance is not None:
        shapes.pop("guidance", None)
    if not embed_weights:
        shapes["weights"] = {name: ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat_weights(params).items()}

    def program(*, seed: Array, index: Array, guidance=guidance, weights=None, **cond: Array) -> Array:
        # The barrier keeps the compiler from computing with constants on its own, for minutes and to other roundings.
        tree = jax.lax.optimization_barrier(params) if weights is None else _tree(weights, params)
        scale = 1.0 if guidance is None else guidance
        if takes_scale:
            cond["guidance"] = jnp.full(index.shape, scale, jnp.float32)
        return generate(tree, keys_at(jax.random.key(seed), index), cond, scale)

    return jax.export.export(jax.jit(program), platforms=platforms)(**shapes)


def write_program(path: Path, exported: Exported) -> None:
    """Write a program behind two lines: its kind with the hash of what follows, and the version of JAX."""
    version, code = ".".join(map(str, jax.__version_info__)).encode(), exported.serialize()
    kind = MAGIC.format(hashlib.sha256(version + code).hexdigest()).encode()
    with replacing(path) as part:
        part.write_bytes(b"\n".join([kind, version, code]))


def flat_weights(params: Params) -> dict[str, np.ndarray]:
    """Name a tree's arrays by their paths; what numpy's files know no type for, such as bfloat16, as plain bits."""
    leaves = trees.flatten(jax.device_get(params)).items()
    return {name: x.view(f"uint{8 * x.itemsize}") if x.dtype.kind == "V" else x for name, x in leaves}


def _tree(weights: dict[str, Array], like: Any) -> Any:
    """The tree of which these are the `flat_weights`."""

    def take(name: str, x: Any) -> Array:
        found = weights[name]
        return found if found.dtype == x.dtype else jax.lax.bitcast_convert_type(found, x.dtype)

    return jax.tree.unflatten(jax.tree.structure(like), [take(*item) for item in trees.flatten(like).items()])


def signature(exported: Exported) -> str:
    """What a program takes and gives, in one line."""
    _, given = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    arguments = [f"{name} {x.str_short()}" for name, x in given.items() if name != "weights"]
    arguments += ["weights" for name in given if name == "weights"]
    return f"{', '.join(arguments)} -> {exported.out_avals[0].str_short()}"
