"""Seconds that the kernels of a program take on a card, by a model that no card has calibrated.

Kernels of the compute stream run one after the other, each for

    max(FLOPs / (efficiency x peak FLOP/s), bytes / (efficiency x bandwidth)) + launch

Asynchronous copies and collectives run beside them, those of one link one after the other; what is left of one when it
is waited for is exposed, and added. Synchronous ones are exposed as a whole. With every efficiency 1 and no launch
overhead this is a roofline of kernels, which no run of these kernels beats. Not modelled: slower memory while a copy
runs beside, links that share the lanes of PCIe, and waiting for other devices.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from videogen_jax.parallel.device_specs import Card
from videogen_jax.parallel.kernels import Kernel

LINKS = ("from host", "to host", "between devices")

# Peak of products in a type, relative to bfloat16: float32 as TF32, XLA's default on these cards.
RELATIVE_PEAK = {"f32": 0.5, "f64": 1 / 64}


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

# By CUDA compute capability: assumptions that no run of this project has confirmed. Products: cuBLAS on matrices of
# thousands of rows and 512 to 4,608 columns; large H100s throttle on power at about 0.7 of the nominal peak, and the
# consumer cards' peak is nominal at a clock that they exceed. Attention: about what FlashAttention-2 and cuDNN publish
# for head dimension 64 (arXiv:2307.08691, arXiv:2407.08608), whose softmax does not run on tensor cores. Memory: what
# streaming kernels reach of the nominal bandwidth. PCIe: 26 of 32 GB/s after packet headers. Launch: a gap of 3 us.
EXPECTED = {
    (8, 0): Efficiencies(0.80, 0.60, 0.50, 0.60, 0.88, 0.75, 0.80, 3e-6),
    (8, 6): Efficiencies(0.85, 0.70, 0.60, 0.60, 0.90, 0.80, 0.80, 3e-6),
    (8, 9): Efficiencies(0.85, 0.70, 0.60, 0.60, 0.90, 0.80, 0.80, 3e-6),
    (9, 0): Efficiencies(0.70, 0.50, 0.40, 0.50, 0.88, 0.75, 0.80, 3e-6),
}


class Estimate(NamedTuple):
    """Seconds of one run of a program."""

    kernels: list[float]  # of each kernel, all its runs together; of a transfer, what is exposed
    kinds: dict[str, float]  # their sums by kind of kernel, largest first
    compute: float  # the compute stream, without transfers
    transfers: dict[str, float]  # that host copies and collectives take, by link
    exposed: dict[str, float]  # of those, for which the compute stream waits
    total: float  # compute + exposed


def expected_efficiencies(card: Card) -> Efficiencies | None:
    """What kernels are assumed to reach on a card, by its generation; None where that is not known.

    Uncalibrated: no card has been measured.
    """
    fields = [re.search(rf"\b{name}:\s*(\d+)", card.description) for name in ("major", "minor")]
    if not all(fields):
        return None
    return EXPECTED.get(tuple(int(field[1]) for field in fields))


def estimate(kernels: Sequence[Kernel], card: Card, efficiencies: Efficiencies) -> Estimate | None:
    """Estimates the time of a program from its kernels.

    Args:
      kernels: of `kernels.list_kernels`.
      card: the device.
      efficiencies: ROOFLINE for a bound, `expected_efficiencies(card)` for an expectation.
    Returns:
      The estimate; None for a card of unknown speed, such as the CPU.
    """
    if None in (card.flops, card.bandwidth, card.link, card.host_link):
        return None
    times = [kernel_seconds(kernel, card, efficiencies) for kernel in kernels]
    waits = _find_waits(kernels, times)
    seconds, kinds = [], {}
    transfers, exposed = dict.fromkeys(LINKS, 0.0), dict.fromkeys(LINKS, 0.0)
    for kernel, time, wait in zip(kernels, times, waits, strict=True):
        taken = wait * kernel.runs
        seconds.append(taken)
        kinds[kernel.kind] = kinds.get(kernel.kind, 0.0) + taken
        if link := find_link(kernel):
            transfers[link] += time * kernel.runs
            exposed[link] += taken
    total = sum(seconds)
    return Estimate(
        kernels=seconds,
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        compute=total - sum(exposed.values()),
        transfers=transfers,
        exposed=exposed,
        total=total,
    )


def find_link(kernel: Kernel) -> str:
    """The link that a kernel mainly uses: one of LINKS, or empty for a kernel that computes."""
    sizes = (kernel.from_host, kernel.to_host, kernel.sent)
    return LINKS[sizes.index(max(sizes))] if any(sizes) else ""


def kernel_seconds(kernel: Kernel, card: Card, efficiencies: Efficiencies) -> float:
    """Seconds of one run of a kernel, beside which nothing else runs; the card's speed is known."""
    fraction = getattr(efficiencies, kernel.kind.replace(" ", "_"), efficiencies.product)
    peak = card.flops * RELATIVE_PEAK.get(kernel.dtype, 1.0)
    work = max(
        kernel.flops / (fraction * peak),
        kernel.traffic / (efficiencies.memory * card.bandwidth),
        kernel.sent / (efficiencies.link * card.link),
        max(kernel.from_host, kernel.to_host) / (efficiencies.host_link * card.host_link),
    )
    return work + efficiencies.launch


def _find_waits(kernels: Sequence[Kernel], times: Sequence[float]) -> list[float]:
    """Seconds by which each kernel's run delays the compute stream: its time; of an asynchronous one, its wait."""
    waits = list(times)

    def play(first: int) -> tuple[int, float]:
        """Plays one run of the loop that the kernel at `first` is in: (kernel behind the loop, its seconds)."""
        loops, runs = kernels[first].loops, kernels[first].runs
        clock, free, ends = 0.0, dict.fromkeys(LINKS, 0.0), {}
        index = first
        while index < len(kernels) and kernels[index].loops[: len(loops)] == loops:
            clock += _settle(clock, ends, index, waits)
            kernel = kernels[index]
            if kernel.loops != loops:
                behind, seconds = play(index)
                clock += seconds * kernel.runs / runs
                index = behind
                continue
            if kernel.overlaps is None:
                clock += times[index]
            else:
                link = find_link(kernel)
                free[link] = max(clock, free[link]) + times[index]
                ends[index] = (index + kernel.overlaps, free[link])
                waits[index] = 0.0
            index += 1
        return index, clock + _settle(clock, ends, len(kernels), waits)

    index = 0
    while index < len(kernels):
        index, _ = play(index)
    return waits


def _settle(
    clock: float, ends: dict[int, tuple[int, float]], index: int, waits: list[float]
) -> float:
    """Seconds until all are done that are awaited before the kernel at `index`; notes and forgets them."""
    waited = 0.0
    for start in [start for start, (last, _) in ends.items() if last < index]:
        _, end = ends.pop(start)
        waits[start] = max(0.0, end - clock - waited)
        waited += waits[start]
    return waited
