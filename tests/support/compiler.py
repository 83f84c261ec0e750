"""Flags of XLA for the tests: it compiles quickly, for eight devices."""

import os
import subprocess
import sys

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# Most of what the tests compile runs once, so that optimisations only cost time.
_QUICK = "--xla_backend_optimization_level=0"
# Programs are too small to be compiled in parts.
_NEWER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def quick_flags():
    """Returns a value of ``XLA_FLAGS``: those that are set, and the quick ones."""
    given = os.environ.get("XLA_FLAGS", "")
    if _QUICK in given:
        return given  # set by the process that started this one
    flags = f"{given} {_QUICK}"
    # XLA ends a process because of a flag that its version does not know.
    environment = os.environ | {"XLA_FLAGS": f"{flags} {_NEWER}", "JAX_PLATFORMS": "cpu"}
    started = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True
    )
    return flags if started.returncode else environment["XLA_FLAGS"]


def one_device():
    """Returns the value of ``XLA_FLAGS`` for a child that starts faster with a single device."""
    return os.environ["XLA_FLAGS"].replace(EIGHT_DEVICES, "").strip()
