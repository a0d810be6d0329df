"""XLA's options with which programs compile in the least time, for the tests and the processes that they start.

Compiling is most of what the tests do: LLVM's optimizations are a third of that, and the newer emitters of fused loops,
which versions after 0.10 can't do without, another. To split a program among threads costs a sixth, and two tests run
at once.
"""

from importlib.metadata import version

# libtpu stops a process for an option that it does not know.
NOT_FOR_LIBTPU = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""


def xla_flags(devices):
    """XLA_FLAGS of a process with so many simulated devices."""
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        f"--xla_cpu_parallel_codegen_split_count=1 {NOT_FOR_LIBTPU}"
    ).strip()
