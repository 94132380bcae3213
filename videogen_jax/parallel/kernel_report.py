"""What `plan --report` prints: the kernels that take the time of a program, by layer and phase."""

from collections.abc import Sequence

from videogen_jax.parallel.device_specs import Card
from videogen_jax.parallel.kernels import Kernel


def to_report(kernels: Sequence[Kernel], card: Card, rows: int = 40) -> str:
    """Tables in markdown: time by kind of kernel, exposed transfers, and kernels by layer and phase.

    Args:
      kernels: of `kernels.list_kernels`.
      card: the device.
      rows: lines of the largest table; the rest is summed in one more.
    Returns:
      Markdown; for a card of unknown speed, the same without seconds.
    """
    raise NotImplementedError
