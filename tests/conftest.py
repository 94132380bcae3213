"""Settings that JAX must have before it makes its devices: eight CPU devices, one shared cache, quick compiling."""

import os
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
DEVICES = 8

# Most of a test's time goes into compiling what runs once: LLVM need not optimize it. Of the commands that tests start,
# too.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

sys.path.insert(0, str(ROOT))  # for `tests.tiny` and `configs`, wherever pytest was started


def pytest_configure(config):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    # Programs compiled once serve later runs and the other worker of pytest-xdist.
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
