"""Every test runs on eight fake CPU devices, with programs compiled quickly and kept in a persistent cache."""

import gc
import importlib.metadata
import importlib.util
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

# What takes long begins first, so that two workers end together; and what a miniature is made for stands apart, so that
# none waits for one that another is making.
FIRST = (
    "systems/khala/test_miniature.py",
    "systems/aar/test_miniature.py",
    "generate/test_autoregressive.py",
    "systems/pyramid/test_codec.py",
    "train/test_loop.py",
    "scale/test_meshes.py",
    "train/test_codec.py",
    "codec/test_pyramid.py",
    "systems/test_face.py",
    "systems/test_bad_inputs.py",
)
# Of the slow tests, for which time may run out, those that say least for it, the least of all at the end.
LAST = (
    "nn/",
    "scale/test_compile.py",
    "scale/test_meshes.py",
    "systems/test_accelerator.py",
    "systems/test_benchmarks.py",
    "test_notebooks.py",
    "fuzz/",
)
NO_TIME = "no time was left"
FEW = 8  # tests of a file that are named one by one
BEGAN = time.monotonic()

SELDOM = 100_000, 10, 10  # when Python looks for garbage: tracing makes heaps of small objects, few of them that
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs that run a few times each: optimising their machine code would take half of the suite's time, the newer
# of XLA's two ways to fuse operations more than twice that of the older, and parts that are compiled beside each other
# half as much again as the whole.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end the process where they do not know a flag
    QUICKLY["xla_cpu_use_fusion_emitters"] = "false"
# Eight devices on two cores that others want too: XLA ends a process whose devices wait 40 s for each other, and of a
# program that it has kept, devices may wait for ever where each begins its collectives in an order of its own.
PATIENTLY = {
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    "xla_force_host_platform_device_count": 8,
    "xla_cpu_collective_call_terminate_timeout_seconds": 600,
}
for flag, value in {**PATIENTLY, **QUICKLY}.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --{flag}={value}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_addoption(parser):
    parser.addoption("--within", type=float, default=0.0, help="begin no test after so many seconds, and name those")


def pytest_configure():
    gc.set_threshold(*SELDOM)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, by what the tests start too


def pytest_collection_modifyitems(config, items):
    first = () if config.getoption("--within") else FIRST  # where time may run out, those named first begin

    def place(item) -> int:
        where = item.nodeid.removeprefix("tests/")
        order, other = (LAST, -1) if item.get_closest_marker("slow") else (first, len(first))
        return next((i for i, part in enumerate(order) if where.startswith(part)), other)

    items.sort(key=place)  # keeps the order of those that stand in neither


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    within = item.config.getoption("--within")
    if within and time.monotonic() - BEGAN > within:
        pytest.skip(NO_TIME)


def pytest_terminal_summary(terminalreporter):
    left_out = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", ()):
        if NO_TIME in str(report.longrepr):
            file, _, name = report.nodeid.partition("::")
            left_out[file].append(name)
    for file, names in left_out.items():
        told = ", ".join(sorted(names)) if len(names) <= FEW else f"{len(names)} tests"
        terminalreporter.write_line(f"{NO_TIME} for {file}: {told}")


@pytest.fixture(scope="session")
def reference():
    """The model and the sampler in NumPy."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batches(monkeypatch):
    """Shapes of the batches of pieces that codecs and encoders are given, of all devices together."""
    from hiermusic.parallel import pieces

    found, on = [], pieces._on

    def noted(run, devices):
        program = on(run, devices)
        return lambda state, x, *others: found.append(x.shape) or program(state, x, *others)

    monkeypatch.setattr(pieces, "_on", noted)
    return found
