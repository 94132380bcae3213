"""Seconds that the kernels of a program take on a card, by a model that no card has calibrated.

Kernels of the compute stream run one after the other, each for

    max(FLOPs / (efficiency x peak FLOP/s), bytes / (efficiency x bandwidth)) + launch

Asynchronous copies and collectives run beside them, those of one link one after the other; what is left of one when it
is waited for is exposed, and added. With every efficiency 1 and no launch overhead this is a roofline of kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from videogen_jax.parallel.device_specs import Card
from videogen_jax.parallel.kernels import Kernel

LINKS = ("to host", "from host", "between devices")


class Efficiencies(NamedTuple):
    """Fractions of a card's peaks that kernels reach, and seconds between two kernels."""

    product: float  # of the peak FLOP/s
    attention_forward: float
    attention_backward: float
    convolution: float
    memory: float  # of the bandwidth of device memory
    link: float  # of the bandwidth between devices
    host_link: float  # of the bandwidth to the host
    launch: float  # seconds per kernel


ROOFLINE = Efficiencies(1, 1, 1, 1, 1, 1, 1, 0)


class Estimate(NamedTuple):
    """Seconds of one run of a program."""

    kernels: list[
        float
    ]  # of each kernel, all its runs together; of an asynchronous one, what is exposed
    kinds: dict[str, float]  # their sums by kind of kernel, largest first
    compute: float  # the compute stream, without exposed transfers
    transfers: dict[
        str, float
    ]  # that transfers take by link, exposed or not; asynchronous ones only
    exposed: dict[str, float]  # of those, for which the compute stream waits
    total: float  # compute + exposed


def expected_efficiencies(card: Card) -> Efficiencies | None:
    """What kernels are assumed to reach on a card, by its generation; None where that is not known.

    Uncalibrated: no card has been measured.
    """
    raise NotImplementedError


def estimate(kernels: Sequence[Kernel], card: Card, efficiencies: Efficiencies) -> Estimate | None:
    """Estimates the time of a program from its kernels.

    Args:
      kernels: of `kernels.list_kernels`.
      card: the device.
      efficiencies: ROOFLINE for a bound, `expected_efficiencies(card)` for an expectation.
    Returns:
      The estimate; None for a card of unknown speed, such as the CPU.
    """
    raise NotImplementedError
