"""The DDPM U-Net as it is published, compiled for a GPU that is not there: a file, and so a process, of its own."""

import pytest
from plan.test_gpu_programs import program_of

from jaxdiff.plan import compiling, kernels

pytest.importorskip("jax_cuda12_plugin", reason="needs the extra plan-gpu")
pytestmark = pytest.mark.slow


def test_what_the_full_network_launches_and_writes():
    program = program_of(compiling.train_step)
    found = kernels.kernels(program.module)
    # 3,201 launches and 10.6 GB written, before kernels of convolutions were stored as they are read, small arrays were
    # updated together, sums over positions were shared, and more (docs/gpu.md).
    assert sum(each.count for each in found) < 1450
    assert sum(each.written for each in found) < 8e9
    assert program.memory.temporaries < 2.5 * 2**30
