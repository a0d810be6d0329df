"""Coordination of a run's processes without their devices, from any thread; all processes raise the same failures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import jax

from jaxdiff.faults import Damaged

# Longer than any write to a slow disk. The heartbeat detects a dead process much earlier.
_TIMEOUT_MS = 6 * 3600 * 1000
_turns: dict[str, Iterator[int]] = defaultdict(count)
_sent: dict[str, list[int]] = defaultdict(list)  # turns with messages still in the service


def first_process() -> bool:
    """Whether this is the first process, which writes and prints for all."""
    return jax.process_index() == 0


def all_do(channel: str, act: Callable[[], Any]) -> list[Any]:
    """Run a function in each process, and return all results in all processes.

    Args:
        channel: a name; calls on one channel must have the same order in all processes.
        act: function of this process; its result must be valid for JSON.

    Returns:
        the results, in the order of the processes.

    Raises:
        Exception: the function failed in some process: the exception of this process, or one with the same type and
            message.
    """
    if jax.process_count() == 1:
        return [act()]
    return _results(channel, act, range(jax.process_count()))


def first_does(channel: str, act: Callable[[], Any]) -> Any:
    """Run a function in the first process, and return its result in all processes.

    Args:
        channel: as for `all_do`.
        act: as for `all_do`.

    Raises:
        Exception: as for `all_do`.
    """
    return act() if jax.process_count() == 1 else _results(channel, act, range(1))[0]


def _results(channel: str, act: Callable[[], Any], ranks: range) -> list[Any]:
    """Return the results of some processes in all processes."""
    failure: Exception | None = None
    message: dict[str, Any] = {}
    if jax.process_index() in ranks:
        try:
            message = {"result": act()}
        except Exception as error:
            failure, message = error, _as_message(error)
    messages = _exchange(channel, message, ranks)
    for rank, reply in enumerate(messages):  # the same failure is raised in all
        if "kind" in reply:
            raise failure if failure is not None and rank == jax.process_index() else _as_error(rank, reply)
    return [reply["result"] for reply in messages]


def _exchange(channel: str, message: dict[str, Any], ranks: range) -> list[dict[str, Any]]:
    """Exchange messages of some processes through JAX's coordination service.

    Collectives of the devices would need a fixed order relative to those of the running training.
    """
    from jax._src import distributed  # JAX has no public name for this service

    client = distributed.global_state.client
    if client is None:
        raise ValueError("processes that share a run must have called jax.distributed.initialize")
    turn, me = next(_turns[channel]), jax.process_index()
    place = f"jaxdiff/{channel}"
    if me in ranks:
        client.key_value_set(f"{place}/{turn}/{me}", json.dumps(message))
    messages = [message if r == me else json.loads(client.blocking_key_value_get(f"{place}/{turn}/{r}", _TIMEOUT_MS))
             for r in ranks]  # fmt: skip
    if len(ranks) == jax.process_count():  # each process has sent, and has received all previous turns
        for old in _sent[channel]:
            client.key_value_delete(f"{place}/{old}/")
        _sent[channel].clear()
    if me == 0:
        _sent[channel].append(turn)
    return messages


def _as_message(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"kind": "OSError", "errno": error.errno, "why": error.strerror or str(error), "file": error.filename}
    kind = "Damaged" if isinstance(error, Damaged) else "ValueError" if isinstance(error, ValueError) else "other"
    return {"kind": kind, "why": str(error)}


def _as_error(rank: int, message: dict[str, Any]) -> Exception:
    if message["kind"] == "OSError":
        return OSError(message["errno"], f"{message['why']} (process {rank})", message["file"])
    kinds: dict[str, type[Exception]] = {"Damaged": Damaged, "ValueError": ValueError}
    return kinds.get(message["kind"], RuntimeError)(f"{message['why']} (process {rank})")
