"""Every test runs on eight fake CPU devices, with programs compiled quickly and kept in a persistent cache."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs that run a few times each: optimising their machine code would take half of the suite's time, the newer
# of XLA's two ways to fuse operations more than twice that of the older, and parts that are compiled beside each other
# half as much again as the whole.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": 1,
}
for flag, value in {"xla_force_host_platform_device_count": 8, **QUICKLY}.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --{flag}={value}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_configure():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, by what the tests start too


@pytest.fixture(scope="session")
def reference():
    """The model and the sampler in NumPy."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
