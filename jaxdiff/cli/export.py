"""`jaxdiff export RUN`: a run's sampler as one file, which runs where there is nothing but JAX."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, ShapeDtypeStruct
from jax.export import Exported
from jax.sharding import AbstractDevice, AbstractMesh

from jaxdiff import train
from jaxdiff.cli.places import try_file
from jaxdiff.cli.progress import busy
from jaxdiff.cli.prompt import is_pipeline
from jaxdiff.cli.sample import named_solver
from jaxdiff.experiment import Experiment, load_run, numbered_keys, sampler
from jaxdiff.options import Count
from jaxdiff.solvers import Solver
from jaxdiff.storage import replacing

# A file's first line, with the SHA-256 of all that follows it. The second is the version of JAX that wrote it, whose
# programs an older one need not understand.
KIND = "jaxdiff sampler 2 {}"
# Bytes of weights inside a file; its format and XLA's count them in 31 bits, with the rest of the program.
LARGEST = 2**31 - 2**26


def command(
    run: tyro.conf.Positional[Path],
    out: Path | None = None,
    solver: str | None = None,
    steps: Count | None = None,
    guidance: float | None = None,
    params: Literal["ema", "params"] = "ema",
    weights: Literal["inside", "argument"] = "inside",
    dtype: Literal["float32", "bfloat16"] = "float32",
    platforms: str = "cpu,cuda,tpu",
    trust: bool = False,
) -> None:
    """Write a run's sampler as one program for any batch size; six lines with nothing but JAX load and run it.

    Args:
        run: the run's folder.
        out: FILE.jaxdiff; by default RUN/sampler.jaxdiff.
        solver: one of jaxdiff.solvers, or FILE.py:NAME; by default the experiment's.
        steps: number of steps; by default the experiment's.
        guidance: scale to build in, 1 is off; by default an argument of the program, where the network knows guidance.
        params: averaged or last parameters.
        weights: inside the file, or an argument of the program and in a file .npz beside it.
        dtype: in which the network computes: float32, or bfloat16 as on an accelerator.
        platforms: where the program runs, of cpu, cuda, rocm and tpu.
        trust: execute the run's program, whoever wrote it.
    """
    out = run / "sampler.jaxdiff" if out is None else out
    names = platforms.split(",")
    if out.suffix != ".jaxdiff":
        raise ValueError(f"--out must end in .jaxdiff, got {out}")
    if not set(names) <= {"cpu", "cuda", "rocm", "tpu"}:
        raise ValueError(f"--platforms are some of cpu, cuda, rocm and tpu, like cpu,cuda; got {platforms!r}")
    if is_pipeline(run):
        raise ValueError(f"{run} is a text-to-image directory, whose tokenizers are no part of a program: give a run")
    beside = out.with_suffix(".npz")
    for path in [out, beside] if weights == "argument" else [out]:
        try_file(path, "--out")
    with portable(dtype), busy(f"lowering for {platforms}"):
        experiment = load_run(run, trust=trust)
        tree = experiment.whole(train.load_params(run, params))
        exported = export_sampler(
            experiment, tree, inside=weights == "inside", solver=None if solver is None else named_solver(solver),
            steps=steps, guidance=guidance, platforms=names,
        )  # fmt: skip
    with ExitStack() as stack:
        if weights == "argument":
            # Both are on disk before either has its name: an old program never meets new weights for long.
            part = stack.enter_context(replacing(beside))
            np.savez(part, **flat_weights(tree))  # type: ignore[arg-type]
        write_program(out, exported)
    if weights == "argument":
        print(beside)
    print(out)
    print(f"  {dtype} on {platforms}: {signature(exported)}")


def portable(dtype: Literal["float32", "bfloat16"]) -> AbstractContextManager[Any]:
    """Let what is built and traced within compute in this type, by no kernel that one kind of device alone has."""
    device = AbstractDevice("any", None, "cpu" if dtype == "float32" else "any")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def export_sampler(
    experiment: Experiment,
    params: Any,
    *,
    inside: bool = True,
    solver: Solver | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Exported:
    """Lower an experiment's sampler for any batch size B; no device but the host's is needed.

    Call it, and build the experiment, within `portable`.

    Args:
        experiment: what to sample.
        params: `experiment.whole`'s.
        inside: the parameters are constants of the program; otherwise its argument `weights`, as `flat_weights` says.
        solver: None is the experiment's own.
        steps: None is the experiment's own number.
        guidance: scale to build in, 1 is off; None is an argument, where the network knows a null condition.
        platforms: names that `jax.export` knows.

    Returns:
        The program: (seed int32, index int32 [B], label int32 [B] with classes, guidance float32 where it is an
        argument, weights) -> x [B, *shape], all by keyword. Its picture of number `index` is that of `jaxdiff sample`.

    Raises:
        ValueError: guidance of a network that knows no null condition, or parameters too large to be inside.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    if inside and size > LARGEST:
        limit = f"{LARGEST / 2**30:.2f} GiB fit into a file"
        raise ValueError(f"the weights take {size / 2**30:.2f} GiB and {limit}: use --weights argument")
    guided = experiment.null_label is not None if guidance is None else guidance != 1
    generate = sampler(experiment, solver=solver, steps=steps, guided=guided)
    (b,) = jax.export.symbolic_shape("b")
    shapes: dict[str, Any] = {"seed": ShapeDtypeStruct((), jnp.int32), "index": ShapeDtypeStruct((b,), jnp.int32)}
    if experiment.num_classes:
        shapes["label"] = ShapeDtypeStruct((b,), jnp.int32)
    if guided and guidance is None:
        shapes["guidance"] = ShapeDtypeStruct((), jnp.float32)
    if not inside:
        shapes["weights"] = {name: ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat_weights(params).items()}

    def program(*, seed: Array, index: Array, label=None, guidance=guidance, weights=None) -> Array:
        # The barrier keeps the compiler from computing with constants on its own, for minutes and to other roundings.
        tree = jax.lax.optimization_barrier(params) if weights is None else _tree(weights, params)
        return generate(tree, numbered_keys(jax.random.key(seed), index), label, 1.0 if guidance is None else guidance)

    return jax.export.export(jax.jit(program), platforms=platforms)(**shapes)


def write_program(path: Path, exported: Exported) -> None:
    """Write a program behind two lines: its kind with the hash of what follows, and the version of JAX."""
    version, code = ".".join(map(str, jax.__version_info__)).encode(), exported.serialize()
    kind = KIND.format(hashlib.sha256(version + code).hexdigest()).encode()
    with replacing(path) as part:
        part.write_bytes(b"\n".join([kind, version, code]))


def flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Name a tree's arrays by their paths; what numpy's files know no type for, such as bfloat16, as plain bits."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {_name(path): x.view(f"uint{8 * x.itemsize}") if x.dtype.kind == "V" else x for path, x in leaves}


def _tree(weights: dict[str, Array], like: Any) -> Any:
    """The tree of which these are the `flat_weights`."""

    def take(path: Any, x: Any) -> Array:
        found = weights[_name(path)]
        return found if found.dtype == x.dtype else jax.lax.bitcast_convert_type(found, x.dtype)

    return jax.tree_util.tree_map_with_path(take, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def signature(exported: Exported) -> str:
    """What a program takes and gives, in one line."""
    _, given = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    told = [f"{name} {x.str_short()}" for name, x in given.items() if name != "weights"]
    told += ["weights" for name in given if name == "weights"]
    return f"{', '.join(told)} -> {exported.out_avals[0].str_short()}"
