"""What the processes of one run do together beside their devices: from any thread, and a failure is heard by all."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import jax

from jaxdiff.faults import Damaged

# Longer than any write to a slow disk takes. A process that died is noticed by its heartbeat, far earlier.
_PATIENCE_MS = 6 * 3600 * 1000
_turns: dict[str, Iterator[int]] = defaultdict(count)
_said: dict[str, list[int]] = defaultdict(list)  # turns whose messages the service still keeps


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
    return _results(channel, act, range(jax.process_count()))


def first_does(channel: str, act: Callable[[], Any]) -> Any:
    """Let the first process do something, and tell all of them what came of it.

    Args:
        channel: as for `all_do`.
        act: as for `all_do`.

    Raises:
        Exception: as `all_do`.
    """
    return act() if jax.process_count() == 1 else _results(channel, act, range(1))[0]


def _results(channel: str, act: Callable[[], Any], ranks: range) -> list[Any]:
    """What comes of the parts of some processes, in all processes."""
    own: Exception | None = None
    said: dict[str, Any] = {}
    if jax.process_index() in ranks:
        try:
            said = {"result": act()}
        except Exception as error:
            own, said = error, _told(error)
    heard = _exchange(channel, said, ranks)
    for rank, other in enumerate(heard):  # the same failure is raised in all
        if "kind" in other:
            raise own if own is not None and rank == jax.process_index() else _heard(rank, other)
    return [other["result"] for other in heard]


def _exchange(channel: str, said: dict[str, Any], ranks: range) -> list[dict[str, Any]]:
    """Hear what some processes say, this one perhaps among them, through the service by which all found each other.

    Collectives of the devices would have to come in the same order as those of the training that goes on meanwhile.
    """
    from jax._src import distributed  # JAX shows this service nowhere else

    client = distributed.global_state.client
    if client is None:
        raise ValueError("processes that share a run must have called jax.distributed.initialize")
    turn, me = next(_turns[channel]), jax.process_index()
    place = f"jaxdiff/{channel}"
    if me in ranks:
        client.key_value_set(f"{place}/{turn}/{me}", json.dumps(said))
    heard = [said if r == me else json.loads(client.blocking_key_value_get(f"{place}/{turn}/{r}", _PATIENCE_MS))
             for r in ranks]  # fmt: skip
    if len(ranks) == jax.process_count():  # each has spoken, and has heard all of the turns before
        for old in _said[channel]:
            client.key_value_delete(f"{place}/{old}/")
        _said[channel].clear()
    if me == 0:
        _said[channel].append(turn)
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
