"""Compiled programs: the text that XLA prints of optimized HLO, parsed.

A text of 19,000 lines takes 0.2 seconds, and a program is parsed once for all that is asked about it.
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


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    type: str
    opcode: str
    arguments: str  # text inside the brackets
    attributes: str  # text after them
    operands: tuple[str, ...]  # names of its operands
    root: bool  # whether its value is that of the computation


Computation = dict[str, Instruction]  # by name, in program order


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str  # the computation that runs first


_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_TRUE_FALSE = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
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
            current[found[2]] = _parse_line(found[2], found[3], bool(found[1]))
    return Module(computations, entry)


def _parse_line(name: str, rest: str, root: bool) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    size = _group(rest) if rest.startswith("(") else rest.index(" ")
    kind, call = rest[:size], rest[size:].lstrip()
    opcode = call[: call.index("(")]
    inside = _group(call[len(opcode) :]) + len(opcode)
    arguments = call[len(opcode) + 1 : inside - 1]
    operands = () if opcode in ("parameter", "constant") else _operands(arguments)
    return Instruction(name, kind, opcode, arguments, call[inside:], operands, root)


def _operands(arguments: str) -> tuple[str, ...]:
    """Names in a list of operands; their types stand before them in some texts, and % does not in others."""
    if "%" in arguments:
        return tuple(re.findall(r"%([\w.\-]+)", arguments))
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", arguments)
    return tuple(one.split()[-1] for one in plain.split(",") if one.strip())


def _group(text: str) -> int:
    """Length of the bracketed group at the start of a text."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i + 1
    raise ValueError(f"A bracket of {text[:40]!r} in the compiled program is not closed.")


class Array(NamedTuple):
    """The type of an array."""

    dtype: str
    shape: tuple[int, ...]
    on_host: bool  # in pinned memory of the host

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Size in bytes."""
        return self.size * _item_bytes(self.dtype)


@functools.lru_cache(maxsize=4096)
def parse_type(kind: str) -> tuple[Array, ...]:
    """Arrays of a type: of `f32[2,3]{1,0:S(5)}`, or of a tuple of such, flattened; S(5) is the host's memory."""
    return tuple(
        Array(name, tuple(int(n.strip("<=")) for n in shape.split(",") if n), "S(5)" in layout)
        for name, shape, layout in _ARRAY.findall(kind)
    )


def count_bytes(kind: str) -> int:
    """Bytes of a type: `f32[2,3]{1,0}`, or a tuple of such."""
    return sum(array.bytes for array in parse_type(kind))


def _item_bytes(name: str) -> float:
    if name in ITEM_BYTES:
        return ITEM_BYTES[name]
    bits = re.match(r"[a-z]+(\d+)", name)
    if not bits:
        raise ValueError(
            f"The compiled program has the unknown type {name!r}: add it to ITEM_BYTES."
        )
    return int(bits[1]) // 8 or 1


def called(line: Instruction) -> list[str]:
    """Names of the computations that an instruction calls: of a loop body and condition; of a fusion, the fused one."""
    return _CALLED.findall(line.attributes) + branches(line)


def branches(line: Instruction) -> list[str]:
    """Names of the branches of a conditional."""
    names = _TRUE_FALSE.findall(line.attributes)
    for group in _BRANCHES.findall(line.attributes):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def runs(module: Module) -> Iterator[tuple[str, int]]:
    """(computation, number of times that it runs), without fused computations.

    Raises:
      ValueError: a loop runs an unknown number of times.
    """

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        yield name, times
        for line in module.computations[name].values():
            if line.opcode == "fusion":
                continue
            trips = times * (trip_count(line) if line.opcode == "while" else 1)
            for one in called(line):
                if one in module.computations:
                    yield from walk(one, trips)

    return walk(module.entry, 1)


def trip_count(line: Instruction) -> int:
    """Number of times that a loop runs.

    Raises:
      ValueError: it is not known.
    """
    found = _TRIPS.search(line.attributes)
    if not found:
        raise ValueError(
            f"The loop {line.name} of the compiled program runs an unknown number of times, so bytes cannot be counted."
        )
    return int(found[1])
