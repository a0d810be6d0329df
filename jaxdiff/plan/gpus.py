"""GPUs that this machine lacks, described to the compiler of JAX's CUDA plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from jax.experimental import topologies

from jaxdiff.plan.chips import GPUS


class _Cores(NamedTuple):
    """Device properties of CUDA that the compiler asks for.

    Attributes:
        name: of the device.
        capability: compute capability.
        number: streaming multiprocessors; the numbers below are of one of them.
        lanes: float32 operations at a time.
        clock: GHz.
        threads: largest number of resident threads.
        shared: bytes of shared memory.
        shared_block: largest number of bytes of shared memory of a block.
        l2: bytes of the second cache, of the device.
    """

    name: str
    capability: tuple[int, int]
    number: int
    lanes: int
    clock: float
    threads: int
    shared: int
    shared_block: int
    l2: int


_CORES = {
    "a100": _Cores("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2048, 167_936, 166_912, 41_943_040),
    "h100": _Cores("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 2048, 233_472, 232_448, 52_428_800),
    "h200": _Cores("NVIDIA H200 141GB HBM3e", (9, 0), 132, 128, 1.98, 2048, 233_472, 232_448, 52_428_800),
    "b200": _Cores("NVIDIA B200", (10, 0), 148, 128, 1.965, 2048, 233_472, 232_448, 132_644_864),
    "l40s": _Cores("NVIDIA L40S", (8, 9), 142, 128, 2.52, 1536, 102_400, 101_376, 100_663_296),
}


def describe(kind: str, hosts: int, each: int) -> list[Any]:
    """Return described devices, in the order of their hosts.

    Args:
        kind: a name of `chips.GPUS`.
        hosts: number of hosts.
        each: number of GPUs of a host.
    """
    made = topologies.get_topology_desc(
        kind, platform="cuda", topology=f"1x{hosts}x{each}", target_config=_target(kind)
    )
    return list(made.devices)


@contextmanager
def asked_about(device: Any) -> Iterator[None]:
    """Let JAX find a described GPU's compute capability: when it traces attention, it asks the card of this machine.

    Args:
        device: of `describe`; for others nothing changes.
    """
    ours = next((cores.capability for cores in _CORES.values() if cores.name == device.device_kind), None)
    if ours is None:
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    with mock.patch.multiple(
        fused_attention_stablehlo,
        check_compute_capability=lambda wanted: ours >= numbers(wanted),
        is_cuda_compute_capability_equal=lambda wanted: ours == numbers(wanted),
    ):
        yield


def _target(kind: str) -> str:
    """A `stream_executor.GpuTargetConfigProto` in text form."""
    chip, cores = GPUS[kind], _CORES[kind]
    major, minor = cores.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {cores.threads}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {cores.shared_block}
  shared_memory_per_core: {cores.shared}
  core_count: {cores.number} fpus_per_core: {cores.lanes} clock_rate_ghz: {cores.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} device_memory_size: {int(chip.hbm)} l2_cache_size: {cores.l2}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{cores.name}"
"""
