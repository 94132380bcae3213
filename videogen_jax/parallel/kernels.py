"""The kernels of a compiled program: what each computes, reads, writes and transfers.

A kernel is what the device launches as one: a fusion, a library call, a copy, a collective. They are listed in the
order of execution, with the body of a loop once, at its place, and the number of times that it runs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from videogen_jax.parallel import hlo

KINDS = (
    *("product", "attention forward", "attention backward", "convolution"),
    *("reduction", "elementwise", "copy", "library call", "host copy", "collective"),
)
PHASES = ("forward", "recomputed", "backward", "update")


class Kernel(NamedTuple):
    """A kernel. Operations and bytes are those of one run, on one device."""

    name: str  # of the instruction
    kind: str  # one of KINDS
    layer: str  # where in the model, such as "spatial/mlp/up"; empty where the program does not say
    phase: str  # one of PHASES
    runs: int  # per run of the program
    flops: float  # of products, attention and convolutions; other operations count as none
    dtype: str  # of the operands of a product, attention or convolution, such as "bf16"; else empty
    traffic: float  # bytes read from and written to device memory
    host: float  # bytes that cross the link to the host
    to_host: bool  # their direction
    sent: float  # bytes sent to other devices
    loop: int  # number of the loop body or other computation that it is in; 0 is the entry
    overlaps: (
        int | None
    )  # how many of the kernels listed next start before it is waited for; None: not asynchronous


def list_kernels(module: hlo.Module, devices: int) -> list[Kernel]:
    """Lists the kernels of a compiled program in the order of execution.

    Args:
      module: from `hlo.parse(compiled.as_text())`, for GPUs or for the CPU.
      devices: number of devices that run the program.
    Raises:
      ValueError: a loop runs an unknown number of times, or the text has a type or replica groups that are not known.
    """
    raise NotImplementedError


def count_traffic(kernels: Iterable[Kernel]) -> int:
    """Bytes read from and written to device memory per run of the program."""
    return round(sum(kernel.runs * kernel.traffic for kernel in kernels))


def count_executed_flops(kernels: Iterable[Kernel]) -> int:
    """FLOPs of products, attention and convolutions per run of the program, with what is computed again."""
    return round(sum(kernel.runs * kernel.flops for kernel in kernels))


def count_host_bytes(kernels: Iterable[Kernel]) -> int:
    """Bytes that cross the link to the host per run of the program, both directions together."""
    return round(sum(kernel.runs * kernel.host for kernel in kernels))
