"""What `plan --report` prints: the kernels that take the time of a program, by kind and by layer and phase."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from videogen_jax.parallel.device_specs import Card
from videogen_jax.parallel.kernel_times import (
    LINKS,
    ROOFLINE,
    Estimate,
    estimate,
    expected_efficiencies,
    find_link,
)
from videogen_jax.parallel.kernels import Kernel


class _Group(NamedTuple):
    """Sums over kernels, per run of the program and device."""

    label: tuple[str, ...]
    runs: int
    traffic: float  # bytes
    flops: float
    link: float  # bytes over a link
    roofline: float  # seconds; 0 where the card's speed is not known
    expected: float


def to_report(kernels: Sequence[Kernel], card: Card, rows: int = 40) -> str:
    """Tables in markdown: time by kind of kernel, transfers and how much of them is exposed, and time by layer.

    Args:
      kernels: of `kernels.list_kernels`.
      card: the device.
      rows: of the table by layer; the rest is summed in one more.
    Returns:
      Markdown; for a card of unknown speed, the same without seconds.
    """
    bound = estimate(kernels, card, ROOFLINE)
    efficiencies = expected_efficiencies(card)
    expected = estimate(kernels, card, efficiencies) if efficiencies else None
    kinds = _group(kernels, bound, expected, lambda kernel: (kernel.kind,))
    layers = _group(
        kernels, bound, expected, lambda kernel: (kernel.layer or "-", kernel.phase, kernel.kind)
    )
    rest = layers[rows:]
    if rest:
        label = (f"{len(rest)} more", "", "")
        layers = layers[:rows] + [_Group(label, *map(sum, list(zip(*rest, strict=True))[1:]))]
    parts = [_to_table(("kind",), kinds, card, bound, expected)]
    if bound:
        parts.append(_to_totals(bound, expected))
        parts.append(_to_transfers(kernels, bound, expected))
    parts.append(_to_table(("layer", "phase", "kind"), layers, card, bound, expected))
    return "\n\n".join(part for part in parts if part)


def _group(
    kernels: Sequence[Kernel],
    bound: Estimate | None,
    expected: Estimate | None,
    label: Callable[[Kernel], tuple[str, ...]],
) -> list[_Group]:
    """Sums by label, the longest first; without times, the one with the most traffic."""
    groups: dict[tuple[str, ...], _Group] = {}
    for index, kernel in enumerate(kernels):
        link = kernel.from_host + kernel.to_host + kernel.sent
        old = groups.get(label(kernel), _Group(label(kernel), 0, 0.0, 0.0, 0.0, 0.0, 0.0))
        groups[old.label] = _Group(
            old.label,
            old.runs + kernel.runs,
            old.traffic + kernel.runs * kernel.traffic,
            old.flops + kernel.runs * kernel.flops,
            old.link + kernel.runs * link,
            old.roofline + (bound.kernels[index] if bound else 0.0),
            old.expected + (expected.kernels[index] if expected else 0.0),
        )
    return sorted(groups.values(), key=lambda group: (-group.roofline, -group.traffic))


def _to_table(
    labels: tuple[str, ...],
    groups: Sequence[_Group],
    card: Card,
    bound: Estimate | None,
    expected: Estimate | None,
) -> str:
    """A table of groups: GB of traffic, TFLOP, milliseconds, their share, and what bounds them."""
    header = [*labels, "runs", "GB", "TFLOP"]
    header += ["roofline ms", "share", "bound by"] if bound else []
    header += ["expected ms"] if expected else []
    rows = []
    for group in groups:
        row = [*group.label, f"{group.runs}", f"{group.traffic / 1e9:.1f}"]
        row.append(f"{group.flops / 1e12:.2f}" if group.flops else "")
        if bound:
            row += [f"{group.roofline * 1e3:.1f}", f"{group.roofline / bound.total:.1%}"]
            row.append(_bound_by(group, card))
        if expected:
            row.append(f"{group.expected * 1e3:.1f}")
        rows.append(row)
    return _to_markdown(header, rows, text=len(labels))


def _bound_by(group: _Group, card: Card) -> str:
    """What takes the longest at the card's peaks."""
    if not group.label[-1]:  # kernels of all kinds
        return ""
    if group.link:
        return "link"
    arithmetic = group.flops / card.flops > group.traffic / card.bandwidth
    return "arithmetic" if arithmetic else "memory"


def _to_totals(bound: Estimate, expected: Estimate | None) -> str:
    """A sentence with the seconds of the whole program."""
    text = f"Roofline of these kernels: {bound.total:.3f} s"
    if expected is None:
        return text + "."
    return f"{text}; expected, uncalibrated (no card has been measured): {expected.total:.3f} s."


def _to_transfers(kernels: Sequence[Kernel], bound: Estimate, expected: Estimate | None) -> str:
    """A table of the links in use; empty if none is."""
    header = ["link", "GB", "ms", "exposed ms", "exposed"]
    header += ["expected ms", "expected exposed ms"] if expected else []
    rows = []
    for link in LINKS:
        if not bound.transfers[link]:
            continue
        sizes = (
            kernel.runs * max(kernel.from_host, kernel.to_host, kernel.sent)
            for kernel in kernels
            if find_link(kernel) == link
        )
        row = [link, f"{sum(sizes) / 1e9:.2f}", f"{bound.transfers[link] * 1e3:.1f}"]
        row.append(f"{bound.exposed[link] * 1e3:.1f}")
        row.append(f"{bound.exposed[link] / bound.transfers[link]:.0%}")
        if expected:
            row.append(f"{expected.transfers[link] * 1e3:.1f}")
            row.append(f"{expected.exposed[link] * 1e3:.1f}")
        rows.append(row)
    return _to_markdown(header, rows, text=1) if rows else ""


def _to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """A table in markdown, with columns of equal width; the first `text` columns to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < text else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if index < text else "-" * (width - 1) + ":"
        for index, width in enumerate(widths)
    ]
    return "\n".join([line(header), line(rule), *map(line, rows)])
