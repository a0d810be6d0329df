"""Published figures of TPUs and GPUs."""

from __future__ import annotations

from typing import NamedTuple

GIB, TERA, GIGA = 2**30, 1e12, 1e9


class Chip(NamedTuple):
    """Published figures of one chip.

    Attributes:
        hbm: bytes of its large memory.
        flops: bfloat16 operations a second.
        bandwidth: bytes a second of the large memory.
        interconnect: bytes a second to the other chips of a slice or host, both directions added.
        torus: dimensions of the network between the chips; 0: a switch connects the chips of a host.
        devices: JAX devices per chip; they share all of the above.
        network: bytes a second to other hosts, both directions added; only behind a switch.
    """

    hbm: float
    flops: float
    bandwidth: float
    interconnect: float
    torus: int = 0
    devices: int = 1
    network: float = 0.0


# Tables "key specifications" of Google Cloud's documentation: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x.
# Where two pages differ by rounding (v6e's memory: 1638 and 1640 GB/s), the smaller figure is used. "16 GB" and "32 GB"
# are GiB, as the compiler's own limit shows. A tpu7x chip is two devices (page tpu7x, "dual-chiplet").
TPUS = {
    "v5e": Chip(16 * GIB, 197 * TERA, 819 * GIGA, 400 * GIGA, torus=2),
    "v5p": Chip(95 * GIB, 459 * TERA, 2765 * GIGA, 1200 * GIGA, torus=3),
    "v6e": Chip(32 * GIB, 918 * TERA, 1638 * GIGA, 800 * GIGA, torus=2),
    "tpu7x": Chip(192 * GIB, 2307 * TERA, 7380 * GIGA, 1200 * GIGA, torus=3, devices=2),
}
# NVIDIA's data sheets of A100 (80 GB, SXM), H100 (SXM), H200 (SXM), DGX B200 and L40S: dense operations and NVLink. The
# memory, its bytes and bandwidth, is what CUDA reports (XLA's target specifications). The network is what NVIDIA's own
# systems have for each GPU: 200 Gb/s in DGX A100 and OVX L40S, 400 Gb/s in DGX H100, H200 and B200. L40S has no NVLink:
# its links are those of PCIe 4.0 x16.
GPUS = {
    "a100": Chip(85_100_068_864, 312 * TERA, 2039 * GIGA, 600 * GIGA, network=50 * GIGA),
    "h100": Chip(84_942_979_072, 989 * TERA, 3352 * GIGA, 900 * GIGA, network=100 * GIGA),
    "h200": Chip(151_397_597_184, 989 * TERA, 4800 * GIGA, 900 * GIGA, network=100 * GIGA),
    "b200": Chip(191_514_411_008, 2250 * TERA, 7672 * GIGA, 1800 * GIGA, network=100 * GIGA),
    "l40s": Chip(47_810_936_832, 362 * TERA, 864 * GIGA, 64 * GIGA, network=50 * GIGA),
}
CHIPS = TPUS | GPUS
