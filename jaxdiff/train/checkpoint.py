"""Checkpoints of a run: the only module that knows Orbax."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxdiff.messages import listed
from jaxdiff.sharding import shard_params

FOLDER = "checkpoints"
KNOBS = "run.json"


class Checkpointer:
    """Saves states under `workdir/checkpoints/STEP`, in the background, and restores them onto any mesh."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int | None = 2,
        read_only: bool = False,
        folder: str = FOLDER,
    ):
        """Open a run's checkpoints.

        Args:
            workdir: the run's folder.
            keep: number of newest checkpoints that stay on disk, at least 1; None: all.
            read_only: never make, change or clean up anything (for sampling beside a run that goes on).
            folder: under the run's, in place of `checkpoints`.

        Raises:
            ValueError: keep is less than 1.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(workdir).absolute() / folder
        writing = {"create": True, "cleanup_tmp_directories": True, "max_to_keep": keep}
        options = ocp.CheckpointManagerOptions(**({"read_only": True, "create": False} if read_only else writing))
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Return the newest checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, increasing."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any) -> None:
        """Start to save a state under its step; it may be donated as soon as this returns.

        Args:
            state: a `TrainState`.

        Raises:
            ValueError: a checkpoint of this or a later step exists, or this is read-only.
        """
        step = int(state.step)
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"cannot save step {step}: {self.folder} already holds step {latest}")
        flat = _flatten(state)
        meta = {"step": step, "checksums": _checksums(flat)}
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(meta))
        if not self._manager.save(step, args=args):
            raise ValueError(f"step {step} was not saved: {self.folder} is open for reading only")

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Read a state and lay it out as `like` says, whatever mesh it was saved from.

        Args:
            like: tree of arrays or `jax.ShapeDtypeStruct` with shardings, for example `state.abstract(...)`.
            step: which checkpoint; None is the newest.

        Returns:
            A tree like `like` of arrays, bit for bit as they were saved.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or its arrays differ from `like` in name,
                shape or dtype; the differences are listed, nothing is cast.
        """
        step = self._existing(step)
        wanted = _flatten(like)
        try:
            saved = self._manager.item_metadata(step)["state"].tree
        except Exception as error:
            raise self._damaged(step, error) from error
        differences = _differences(saved, wanted)
        if differences:
            told = listed(differences, between="\n  ")
            raise ValueError(f"checkpoint {self.folder / str(step)} does not fit:\n  {told}")
        return _unflatten_like(like, self._read(step, wanted))

    def restore_params(self, which: str, step: int | None = None, *, mesh: Mesh | None = None) -> Any:
        """Read a part of a state, as a nested dict.

        Args:
            which: "params", "ema" (the first of several averages) or "ema/1", say.
            step: which checkpoint; None is the newest.
            mesh: where its arrays shall lie; None is the default device.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        step = self._existing(step)
        try:
            saved = self._manager.item_metadata(step)["state"].tree
            prefix = _prefix(saved, which)
            part = _nest({n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)})
            places = jax.tree.map(lambda x: None, part) if mesh is None else shard_params(part, mesh)
            describe = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
            wanted = _flatten(jax.tree.map(describe, part, places))
        except Exception as error:
            raise self._damaged(step, error) from error
        read = self._read(step, {prefix + name: x for name, x in wanted.items()})
        return _nest({name.removeprefix(prefix): x for name, x in read.items()})

    def failure(self) -> Exception | None:
        """Return what the last finished save has failed with, once; None: it has not."""
        return None

    def wait(self) -> None:
        """Block until everything is on disk; a failed save (a full disk, say) raises here."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for running saves and release the background threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self.close()

    def _existing(self, step: int | None) -> int:
        self.wait()  # a step that is still being written would look damaged
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise ValueError(f"no checkpoint{'' if step is None else f' {step}'} in {self.folder}; it holds {steps}")
        return steps[-1] if step is None else step

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
            meta=ocp.args.JsonRestore(),
        )
        try:
            read = self._manager.restore(step, args=args)
            flat, expected = read["state"], read["meta"]["checksums"]
        except Exception as error:
            raise self._damaged(step, error) from error
        bad = [name for name, value in _checksums(flat).items() if value != expected[name]]
        if bad:
            raise self._damaged(step, f"the bits of {listed(bad)} changed since they were saved")
        return flat

    def _damaged(self, step: int, why: object) -> ValueError:
        older = [s for s in self.steps() if s < step]
        advice = f"move it away to go on from step {max(older)}" if older else "there is no older one"
        return ValueError(f"checkpoint {self.folder / str(step)} is damaged; {advice} ({why})")


def load_params(
    workdir: str | os.PathLike[str],
    which: Literal["ema", "params"] = "ema",
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Load a run's parameters for sampling, without its optimizer.

    Args:
        workdir: the run's folder.
        which: the moving average, or the parameters as the optimizer left them.
        step: which checkpoint; None is the newest.
        mesh: where they shall lie; None is the default device.

    Returns:
        Nested dict of arrays.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    if which not in ("ema", "params"):
        raise ValueError(f"which must be 'ema' or 'params', got {which!r}")
    if not (Path(workdir) / FOLDER).is_dir():
        raise ValueError(f"{workdir} is not a run: it has no folder {FOLDER!r}")
    with Checkpointer(workdir, read_only=True) as checkpointer:
        return jax.tree.map(jnp.asarray, checkpointer.restore_params(which, step, mesh=mesh))


def write_knobs(workdir: str | os.PathLike[str], knobs: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Put a run's knobs into `workdir/run.json`, and refuse a folder that belongs to another run.

    Args:
        workdir: the run's folder; made if missing.
        knobs: name -> a value that JSON can hold.
        may_change: as for `check_knobs`.

    Raises:
        ValueError: as `check_knobs` does.
    """
    check_knobs(workdir, knobs, may_change=may_change)
    if jax.process_index() == 0:
        path = Path(workdir) / KNOBS
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(dict(knobs), indent=2) + "\n")
        partial.replace(path)  # whole or not at all, also when the machine stops here


def check_knobs(workdir: str | os.PathLike[str], knobs: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Refuse a folder that belongs to another run; one without a run is good.

    Args:
        workdir: the run's folder.
        knobs: name -> a value that JSON can hold.
        may_change: knobs that may differ from what is written, since they only extend the run ("steps").

    Raises:
        ValueError: the folder holds other knobs, and the message lists each as old -> new; or JSON cannot hold one.
    """
    new = {}
    for name, value in knobs.items():
        try:
            new[name] = json.loads(json.dumps(value))  # tuples become lists, as they do in the file
        except TypeError:
            raise ValueError(f"the knob {name!r} is a {type(value).__name__}, which {KNOBS} cannot hold") from None
    if not has_knobs(workdir):
        return
    old = read_knobs(workdir)
    missing = object()
    changed = [
        f"{name}: {json.dumps(old[name]) if name in old else 'absent'} -> "
        f"{json.dumps(new[name]) if name in new else 'absent'}"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change and old.get(name, missing) != new.get(name, missing)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(f"{workdir} holds a run with other knobs; choose another workdir:\n  {listed}")


def has_knobs(workdir: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's: whether there are knobs in it."""
    return (Path(workdir) / KNOBS).is_file()


def read_knobs(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the knobs of the run in a folder.

    Raises:
        ValueError: there is no `run.json`, or it is not JSON.
    """
    path = Path(workdir) / KNOBS
    if not has_knobs(workdir):
        raise ValueError(f"{workdir} is not a run: it has no {KNOBS}")
    try:
        knobs = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(knobs, dict):
        raise ValueError(f"{path} is damaged: it must hold names and values, got {knobs!r:.80}")
    return knobs


# A state is stored as one flat dict, path -> array: it then depends on no class of ours or of optax, and a
# difference has a name.
def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten_like(like: Any, flat: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flatten(like)])


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        folder = nested
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[last] = value
    return nested


def _prefix(saved: Mapping[str, Any], which: str) -> str:
    """What begins the names of a part; "ema" is the first of several averages, where these are numbered."""
    names = [name.removeprefix("params/") for name in saved if name.startswith("params/")]
    several = which == "ema" and any(f"ema/{name}" not in saved for name in names)
    return "ema/0/" if several else which + "/"


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        old = f"{np.dtype(saved[name].dtype).name}{list(saved[name].shape)}" if name in saved else "absent"
        new = f"{np.dtype(wanted[name].dtype).name}{list(wanted[name].shape)}" if name in wanted else "absent"
        if old != new:
            lines.append(f"{name}: {old} saved, {new} expected")
    return lines


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Sum an array's words times odd numbers, modulo 2**32: a flipped bit changes it, a sharding does not."""
    x = jax.device_put(x, jax.memory.Space.Device)  # an average may wait in the host's memory
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, kind)
    weight = jnp.ones(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        weight = weight * (2 * place + 2 * axis + 3)
    return jnp.sum(words.astype(jnp.uint32) * weight, dtype=jnp.uint32)


def _checksums(flat: dict[str, Any]) -> dict[str, int]:
    """Orbax does not notice changed bits: its files carry no checksum of the data."""
    # One program a shape, not one for the whole tree: that would take many seconds to compile.
    return {name: int(_checksum(x)) for name, x in flat.items()}
