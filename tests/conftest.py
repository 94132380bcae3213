"""Settings that JAX must have before it makes its devices: eight CPU devices, one shared cache, quick compiling."""

import ctypes
import gc
import os
import platform
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
DEVICES = 8
# Programs compiled once serve later runs and the other worker of pytest-xdist, not another Python: JAX's keys leave out
# how the entries are compressed, which from Python 3.14 on is by Zstandard.
COMPILED = ROOT / ".pytest_cache" / f"jax-{sys.version_info.major}.{sys.version_info.minor}"

# Most of a test's time goes into compiling what runs once: LLVM need not optimize it, and the emitters of fusions by
# way of MLIR take three times as long as those of LLVM's own code. Of the commands that tests start, too.
QUICK_COMPILING = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later XLA has these emitters alone, and stops at the flag
    QUICK_COMPILING.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_COMPILING])

# A minute or two each; the two workers take whole files, and are to end together.
LONGEST = (
    "test_launch",
    "test_distributed",
    "test_text_conditioning",
    "test_levers",
    "test_plan",
    "test_dit",
    "test_sequence_parallel",
)

sys.path.insert(0, str(ROOT))  # for `tests.tiny` and `configs`, wherever pytest was started


def pytest_configure(config):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items):
    """The longest files come first, the quick ones last."""

    def place(item):
        name = item.path.stem
        rank = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return rank, item.get_closest_marker("slow") is None

    files = {}
    for item in items:
        files[item.path] = min(place(item), files.get(item.path, place(item)))
    items.sort(key=lambda item: files[item.path])


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector, which JAX's tracing calls often, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def give_memory_back():
    """What a file compiled goes with it: the programs of them all would be gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
