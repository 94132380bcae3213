"""The memory of the process itself, where programs run on the CPU."""

import ctypes
import platform
from importlib import metadata

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, instead of returning it to the system.

    On the CPU a compiled program takes its whole workspace anew in each call, gigabytes in a train step; the system
    hands it out page by page and zeroes each, a tenth of the step's time. To be called before JAX starts its threads.
    Does nothing where the C library is not glibc, or where JAX has a plug-in for other devices: there the programs'
    memory is not the process's.

    Source: mallopt(3) of the Linux manual.
    """
    if platform.libc_ver()[0] != "glibc" or metadata.entry_points(group="jax_plugins"):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(M_MMAP_MAX, 0)  # no blocks of their own, which free would return
    libc.mallopt(M_ARENA_MAX, 1)  # those of threads are too small for such blocks
