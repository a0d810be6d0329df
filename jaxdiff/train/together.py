"""What the processes of one run do together beside their devices: from any thread, and a failure is heard by all."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

from jaxdiff.faults import Damaged

# Longer than any write to a slow disk takes. A process that died is noticed by its heartbeat, far earlier.
_PATIENCE_MS = 6 * 3600 * 1000
_turns: dict[str, int] = defaultdict(int)


def first_process() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def all_do(channel: str, act: Callable[[], Any]) -> list[Any]:
    """Let each process do its part, and tell all of them what came of every part.

    Args:
        channel: a name; the calls on one channel must come in the same order in each process.
        act: this process's part; its result must be something that JSON can hold.

    Returns:
        The results, in the order of the processes.

    Raises:
        Exception: a part failed, in whatever process: this one's own exception, or one of its kind and with its words.
    """
    if jax.process_count() == 1:
        return [act()]
    own: Exception | None = None
    try:
        said = {"result": act()}
    except Exception as error:
        own, said = error, _told(error)
    heard = _exchange(channel, said)
    for rank, other in enumerate(heard):  # the same failure is raised in all
        if "kind" in other:
            raise own if own is not None and rank == jax.process_index() else _heard(rank, other)
    return [other["result"] for other in heard]


def first_does(channel: str, act: Callable[[], Any]) -> Any:
    """Let the first process do something, and tell all of them what came of it.

    Args:
        channel: as for `all_do`.
        act: as for `all_do`.

    Raises:
        Exception: as `all_do`.
    """
    return all_do(channel, lambda: act() if first_process() else None)[0]


def _exchange(channel: str, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Give a message to all processes and get theirs, through the service by which they have found each other.

    Collectives of the devices would have to come in the same order as those of the training that goes on meanwhile.
    """
    from jax._src import distributed  # JAX shows this service nowhere else

    client = distributed.global_state.client
    if client is None:
        raise ValueError("processes that share a run must have called jax.distributed.initialize")
    turn = _turns[channel]
    _turns[channel] += 1
    place = f"jaxdiff/{channel}"
    client.key_value_set(f"{place}/{turn}/{jax.process_index()}", json.dumps(said))
    ranks = range(jax.process_count())
    heard = [json.loads(client.blocking_key_value_get(f"{place}/{turn}/{rank}", _PATIENCE_MS)) for rank in ranks]
    if turn > 0 and first_process():  # who has spoken in this turn has heard all of the last one
        client.key_value_delete(f"{place}/{turn - 1}/")
    return heard


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"kind": "OSError", "errno": error.errno, "why": error.strerror or str(error), "file": error.filename}
    kind = "Damaged" if isinstance(error, Damaged) else "ValueError" if isinstance(error, ValueError) else "other"
    return {"kind": kind, "why": str(error)}


def _heard(rank: int, said: dict[str, Any]) -> Exception:
    if said["kind"] == "OSError":
        return OSError(said["errno"], f"{said['why']} (process {rank})", said["file"])
    kinds: dict[str, type[Exception]] = {"Damaged": Damaged, "ValueError": ValueError}
    return kinds.get(said["kind"], RuntimeError)(f"{said['why']} (process {rank})")
