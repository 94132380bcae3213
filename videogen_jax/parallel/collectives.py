"""Bytes that the collectives of a compiled program send, from its HLO text.

XLA reports them for no program. A loop's body counts as many times as the loop's known trip count.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from videogen_jax.parallel import hlo

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_GROUPS = re.compile(
    r"replica_groups=(mesh\[[^\]]*\](?:, device_ids=\(.*?\)\)?)?\s*\{[^}]*\}|\[\d+,\d+\]|\{\{[\d,]*)"
)


class Collective(NamedTuple):
    """A collective, on one device and for one run."""

    kind: str
    sent: float  # bytes sent to other devices
    buffers: float  # bytes read and written


def count_sent_bytes(module: hlo.Module, devices: int) -> dict[str, int]:
    """Bytes that each device sends per run of the program, by kind of collective.

    In a group of n with an operand of b bytes: all-gather (n - 1) b, reduce-scatter and all-to-all (n - 1) / n b,
    all-reduce twice that, collective-permute b, as ring and pairwise algorithms send.

    Args:
      module: of `hlo.parse`.
      devices: number of devices that run the program.
    Returns:
      Bytes by kind, for the kinds that occur.
    Raises:
      ValueError: a loop around a collective runs an unknown number of times.
    Source: Thakur et al., Optimization of collective communication operations in MPICH, 2005, section 4.
    """
    total: dict[str, float] = {}
    for one, times in _collectives(module, devices):
        total[one.kind] = total.get(one.kind, 0) + one.sent * times
    return {kind: round(count) for kind, count in total.items()}


def largest_collective(module: hlo.Module, devices: int) -> int:
    """Bytes that the largest collective reads and writes: the size of its buffers."""
    return max((round(one.buffers) for one, _ in _collectives(module, devices)), default=0)


def _collectives(module: hlo.Module, devices: int) -> Iterator[tuple[Collective, int]]:
    """(collective, number of runs)."""
    for name, times in hlo.runs(module):
        computation = module.computations[name]
        for line in computation.values():
            if collective := measure_collective(computation, line, devices):
                yield collective, times


def measure_collective(
    computation: hlo.Computation, line: hlo.Instruction, devices: int
) -> Collective | None:
    """Bytes of a collective, as `count_sent_bytes` counts them; None for any other instruction."""
    kind = line.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _group_size(line.attributes, devices)
    operand = sum(hlo.count_bytes(computation[one].type) for one in line.operands)
    result = operand * {"all-gather": group, "reduce-scatter": 1 / group}.get(kind, 1)
    share = (group - 1) / group
    sent = {"all-gather": operand * (group - 1), "all-reduce": 2 * operand * share}
    sent["collective-permute"] = operand
    return Collective(kind, sent.get(kind, operand * share), operand + result)


def _group_size(attributes: str, devices: int) -> int:
    """Size of a replica group: from `{{0,1},{2,3}}`, `[4,2]<=[8]` or `mesh['a'=2,'b'=4] {'a'}`."""
    if "replica_groups=" not in attributes or "replica_groups={}" in attributes:
        return devices
    found = _GROUPS.search(attributes)
    if not found:
        raise ValueError(
            f"The replica groups of a collective cannot be parsed: {attributes[:120]!r}."
        )
    groups = found[1]
    if groups.startswith("mesh"):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        chosen = re.findall(r"'(\w+)'", groups[groups.rindex("{") :])
        return math.prod(int(sizes[axis]) for axis in chosen)
    if groups.startswith("["):
        return int(groups.strip("[]").split(",")[1])
    return len(groups.strip("{").split(","))
