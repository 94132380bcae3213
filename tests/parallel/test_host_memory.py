"""Freed memory that stays with the process: its pages are there when it is taken again."""

import platform
import subprocess
import sys
from importlib import metadata

import pytest

FAULTS = """
import resource
from videogen_jax.parallel.host_memory import keep_freed_memory
{call}
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**28
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill()
print(fill())
"""


def count_faults(call: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.skipif(
    bool(metadata.entry_points(group="jax_plugins")), reason="JAX has a plug-in for other devices"
)
def test_pages_are_kept():
    assert count_faults("") > 100  # at most 2 MiB a page
    assert count_faults("keep_freed_memory()") < 10
