"""The pools that JAX's memory comes from: its share of each GPU, and pinned memory of the host.

JAX takes XLA_CLIENT_MEM_FRACTION of a GPU's memory when it starts, three quarters unless the variable is set, and no
program gets more. Pinned memory of each GPU comes from a pool that grows up to XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB GiB,
64 unless that is set. Verbs set both before JAX makes its devices, where the user has not; `plan` reads them.

Nothing here imports JAX.

Source: jaxlib/xla_client.py, generate_pjrt_gpu_plugin_options; OpenXLA, xla/pjrt/gpu/gpu_helpers.cc.
"""

import math
import os
from collections.abc import Mapping, MutableMapping

GIB = 2**30
RESERVE = round(0.8 * GIB)  # bytes of a GPU: context, cuDNN, cuBLAS and NCCL
FRACTION, OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = "0.95"  # the rest is for CUDA
ALLOCATOR = "XLA_PYTHON_CLIENT_ALLOCATOR"
HOST_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
HOST_PREALLOCATE = "XLA_PJRT_GPU_HOST_MEMORY_PREALLOCATE"
DEFAULT_HOST_LIMIT = (
    "1024"  # more than machines have: they are the limit, and the pool grows as it is used
)
XLA_HOST_LIMIT = 64  # GiB, where the variable is not set


def set_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables of both pools where the user has set none.

    Args:
      environment: of this process; JAX reads it when it makes its devices.
    Raises:
      ValueError: a variable is no number, or both names of the fraction are set and differ.
    """
    old = environment.get(OLD_FRACTION)
    new = environment.get(FRACTION)
    if old and new and old != new:
        raise ValueError(
            f"{FRACTION}={new} and {OLD_FRACTION}={old} differ: unset the second, which is the first one's old name."
        )
    environment.pop(OLD_FRACTION, None)  # JAX refuses both names, even if they are equal
    environment[FRACTION] = new or old or DEFAULT_FRACTION
    read_fraction(environment)
    if not environment.get(HOST_LIMIT) and not environment.get(HOST_PREALLOCATE):
        environment[HOST_LIMIT] = DEFAULT_HOST_LIMIT
    read_host_limit(environment)


def read_fraction(environment: Mapping[str, str] = os.environ) -> float:
    """The share of a GPU's memory that JAX takes in a run.

    Raises:
      ValueError: the variable is no share.
    """
    text = environment.get(FRACTION) or DEFAULT_FRACTION
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ValueError(
            f"{FRACTION}={text} is no share of a GPU's memory: set it to {DEFAULT_FRACTION}, or unset it."
        )
    return fraction


def read_host_limit(environment: Mapping[str, str] = os.environ) -> int:
    """The most pinned memory of a GPU, in bytes.

    Raises:
      ValueError: the variable is no number of GiB.
    """
    text = environment.get(HOST_LIMIT) or str(XLA_HOST_LIMIT)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"{HOST_LIMIT}={text} is no whole number of GiB: set it to the memory that each GPU may pin, or unset it."
        )
    return int(text) * GIB


def device_pool(memory: int, environment: Mapping[str, str] = os.environ) -> int:
    """Bytes of a GPU that the programs of a run can have: JAX's share, or what CUDA leaves if that is less.

    Args:
      memory: of the GPU, in bytes.
      environment: of the run.
    """
    left = memory - RESERVE
    if environment.get(ALLOCATOR, "").lower() == "platform":  # allocates without a pool
        return left
    return min(int(memory * read_fraction(environment)), left)


def pinned_pool(used: int) -> int:
    """Bytes that a GPU's pool of pinned memory has when one buffer of `used` bytes is in it: the next power of two."""
    return 1 << (used - 1).bit_length() if used > 0 else 0


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
