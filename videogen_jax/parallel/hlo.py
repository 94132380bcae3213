"""Compiled programs: the text that XLA prints of optimized HLO, parsed.

A text of 16,000 lines takes about a second, so that a program is parsed once for all that is asked about it.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {
    "pred": 1,
    "bf16": 2,
    "token": 0,
    "opaque": 0,
}  # other types end in their number of bits

# Opcodes without memory traffic, or whose traffic is counted in the computation that they call.
MOVE_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "copy-done"),
}


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    type: str
    opcode: str
    arguments: str  # text inside the brackets
    attributes: str  # text after them

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.arguments)


Computation = dict[str, Instruction]  # by name, in program order


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str  # the computation that runs first


_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


def parse(text: str) -> Module:
    """Parses a program.

    Args:
      text: `compiled.as_text()`.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _LINE.match(line):
            current[found[2]] = _parse_line(found[2], found[3])
    return Module(computations, entry)


def _parse_line(name: str, rest: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    size = _group(rest) if rest.startswith("(") else rest.index(" ")
    kind, call = rest[:size], rest[size:].lstrip()
    opcode = call[: call.index("(")]
    inside = _group(call[len(opcode) :]) + len(opcode)
    return Instruction(name, kind, opcode, call[len(opcode) + 1 : inside - 1], call[inside:])


def _group(text: str) -> int:
    """Length of the bracketed group at the start of a text."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i + 1
    raise ValueError(f"A bracket of {text[:40]!r} in the compiled program is not closed.")


def count_bytes(kind: str) -> int:
    """Bytes of a type: `f32[2,3]{1,0}`, or a tuple of such."""
    return sum(
        _item_bytes(name) * math.prod(int(n.strip("<=")) for n in shape.split(",") if n)
        for name, shape in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", kind))
    )


def _item_bytes(name: str) -> float:
    if name in ITEM_BYTES:
        return ITEM_BYTES[name]
    bits = re.match(r"[a-z]+(\d+)", name)
    if not bits:
        raise ValueError(
            f"The compiled program has the unknown type {name!r}: add it to ITEM_BYTES."
        )
    return int(bits[1]) // 8 or 1


def runs(module: Module) -> Iterator[tuple[str, int]]:
    """(computation, number of times that it runs), without fused computations.

    Raises:
      ValueError: a loop runs an unknown number of times.
    """
    computations = module.computations

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        yield name, times
        for line in computations[name].values():
            if line.opcode == "fusion":
                continue
            called = _CALLED.findall(line.attributes)
            for branches in _BRANCHES.findall(line.attributes):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            trips = times
            if line.opcode == "while":
                trips *= _trip_count(line)
            for one in called:
                if one in computations:
                    yield from walk(one, trips)

    return walk(module.entry, 1)


def _trip_count(line: Instruction) -> int:
    found = _TRIPS.search(line.attributes)
    if not found:
        raise ValueError(
            f"The loop {line.name} of the compiled program runs an unknown number of times, so bytes cannot be counted."
        )
    return int(found[1])


def count_memory_bytes(text: str) -> int:
    """Bytes that kernels read from and write to device memory per run of the program.

    Every kernel reads its operands and writes its result; if an array is sliced or updated in place, only the slice.

    Args:
      text: `compiled.as_text()`.
    """
    module = parse(text)
    computations = module.computations
    count = functools.cache(lambda name: sum(_traffic(computations, name)))
    return round(sum(count(name) * times for name, times in runs(module)))


def _traffic(computations: dict[str, Computation], name: str) -> Iterator[float]:
    """Bytes read and written by each instruction of a computation."""
    lines = computations[name]
    for line in lines.values():
        if line.opcode in MOVE_NOTHING or line.opcode.endswith("-done"):
            continue
        sizes = [count_bytes(lines[one].type) if one in lines else 0 for one in line.operands]
        result = count_bytes(line.type)
        if line.opcode == "fusion":
            fused = computations[_CALLED.findall(line.attributes)[0]]
            sizes, result = _fused(fused, sizes, result)
        elif line.opcode == "dynamic-slice":
            sizes = [result]
        elif line.opcode == "dynamic-update-slice":
            sizes, result = [sizes[1]], sizes[1]
        yield sum(sizes) + result


def _fused(
    lines: dict[str, Instruction], sizes: list[int], result: int
) -> tuple[list[float], float]:
    """Bytes that a fused kernel reads of each operand, and that it writes."""
    users: dict[str, list[Instruction]] = {name: [] for name in lines}
    for line in lines.values():
        for one in line.operands:
            users[one].append(line)
    sizes = list(sizes)
    for line in lines.values():
        if line.opcode != "parameter":
            continue
        index = int(line.arguments)
        reads = users[line.name]
        if reads and all(
            user.opcode == "dynamic-slice" and user.operands[0] == line.name for user in reads
        ):
            sizes[index] = sum(count_bytes(user.type) for user in reads)
        elif any(
            user.opcode == "dynamic-update-slice" and user.operands[0] == line.name
            for user in reads
        ):
            update = sum(count_bytes(lines[user.operands[1]].type) for user in reads)
            result -= sizes[index] - update
            sizes[index] = 0
    return sizes, max(result, 0)
