"""TPU slices, GPUs and simulated CPU devices by name."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from jaxdiff.plan import gpus, tpus
from jaxdiff.plan.chips import CHIPS, Chip

MOST_SIMULATED = 4096
CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")
EXAMPLES = "v5e:2x4, v5p:8x8x16, v6e:16x16, tpu7x:4x4x4, h100:8, h100:2x8 (hosts x GPUs), cpu:8 (simulated)"


class Topology(NamedTuple):
    """A slice: its name, its chips (None: simulated on a CPU), and JAX's description of its devices."""

    name: str
    chip: Chip | None
    devices: list[Any]


def topology(name: str) -> Topology:
    """Look up a slice, without its chips or a network.

    Args:
        name: a chip and the slice's size: "v5p:8x8x16" in chips of a TPU's torus, "h100:8" in GPUs of a host,
            "h100:2x8" in hosts and GPUs of each, "cpu:8" in simulated devices.

    Raises:
        ValueError: the chip or the size is unknown, too many devices are to be simulated, or the chip's compiler is
            missing.
    """
    kind, _, size = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        if len(size) > len(str(MOST_SIMULATED)) or int(size) > MOST_SIMULATED:
            raise ValueError(f"at most {MOST_SIMULATED:,} devices are simulated, got {name:.80}")
        return Topology(name, None, _simulated(int(size)))
    if kind not in CHIPS:
        raise ValueError(f"unknown topology {name!r}: known chips are {', '.join(CHIPS)} and cpu, as in {EXAMPLES}")
    chip = CHIPS[kind]
    written = "NxMxK"[: 2 * chip.torus - 1] if chip.torus else f"N or {kind}:HOSTSxN"
    sides = size.split("x")
    if len(sides) not in ((chip.torus,) if chip.torus else (1, 2)) or not all(map(_is_count, sides)):
        raise ValueError(f"unknown topology {name!r}: a slice of {kind} is written {kind}:{written}, as in {EXAMPLES}")
    most = 16 if kind == "a100" else 8
    if not chip.torus and (len(sides[-1]) > 2 or int(sides[-1]) > most):
        raise ValueError(
            f"a host has at most {most} {kind}, got {name!r:.80}: several hosts are written {kind}:2x{most}"
        )
    compiler, extra = ("libtpu", "plan") if chip.torus else ("JAX's CUDA plugin", "plan-gpu")
    if not any(map(importlib.util.find_spec, ("libtpu",) if chip.torus else CUDA)):
        raise ValueError(
            f"programs for {kind} are compiled by {compiler}, which is missing: pip install 'jaxdiff[{extra}]'"
        )
    try:
        devices = tpus.describe(name) if chip.torus else gpus.describe(kind, *map(int, ["1", *sides][-2:]))
    except Exception as error:  # of the compiler, of several types
        raise ValueError(f"{compiler} has no topology {name!r} ({_first_line(error)}); try {EXAMPLES}") from error
    return Topology(name, chip, devices)


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[1-9]\d*", text) is not None


def _simulated(count: int) -> list[Any]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is initialized already, and keeps its devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"cpu:{count} needs {count} simulated devices, and this process has {len(devices)}")
    return devices[:count]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
