"""How every command starts: freed memory stays with the process, so its pages are mapped only once."""

import platform
import subprocess
import sys
from importlib import metadata

import pytest

FAULTS = """
import resource
from videogen_jax.command import keep_freed_memory
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
def test_freed_pages_stay_with_the_process():
    assert count_faults("") > 100  # at most 2 MiB a page
    assert count_faults("keep_freed_memory()") < 10
