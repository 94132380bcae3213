"""Programs compiled for a GPU that is described only; needs the wheels of jax[cuda12]."""

import importlib.util
import warnings

import pytest

from videogen_jax.parallel import device_specs, memory

CUDA = any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs the wheels of jax[cuda12]")


def find_devices(name="rtx3090", count=1):
    """Devices made from the description of a card."""
    return device_specs.find_devices(device_specs.CARDS[name], count)


def compile_text(traced):
    """HLO text of a traced program, optimized for the devices of its arguments."""
    lowered = traced.lower(lowering_platforms=("cuda",))
    with warnings.catch_warnings():
        # Such devices cannot load what is in the tests' cache of compiled programs, and compile again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        return lowered.compile(compiler_options=memory.CUDA_OPTIONS).as_text()
