"""Bytes that the kernels of a compiled program read and write, in device memory and in the host's.

A kernel reads each of its operands once and writes its results once: what it needs twice is assumed to stay in the
cache. In a fusion, the fraction that is needed of each result is followed back to the operands:

| operation                              | needed of its operand                                |
| -------------------------------------- | ---------------------------------------------------- |
| elementwise, conversion, transposition | the same fraction as of the result                   |
| reduction, broadcast, concatenation,   | the same fraction as of the result                   |
| padding                                |                                                      |
| slice, dynamic slice, gather           | as many elements as of the result                    |
| update of a slice or scatter, in place | nothing of the array (scatter: what is added to);    |
|                                        | all updates                                          |
| product, convolution, library call     | all                                                  |

Slices of one value are added up, at most to all of it; of its other uses, the largest counts, since they mostly need
the same part: a norm whose result is sliced needs a row for its mean, for its variance and for itself.

An update is in place where its result is one of the kernel's and its array one of the operands, behind conversions at
most; then only the update is written. Workspaces of cuBLAS and cuDNN are not counted: their use is not known.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from videogen_jax.parallel import hlo
from videogen_jax.parallel.hlo import Array, Computation, Instruction, Module

IN_PLACE = {"bitcast", "bitcast-convert", "convert", "reshape"}  # in front of and behind an update
LIBRARY = {"dot", "convolution", "custom-call", "sort", "fft", "cholesky", "triangular-solve"}
UPDATES = {"dynamic-update-slice", "scatter"}
WORKSPACES = ("s8", "u8")  # types of the results of library calls that are workspaces
SLICES = {"slice", "dynamic-slice", "gather"}


class Bytes(NamedTuple):
    """Bytes of one run of a kernel."""

    device: float  # read from and written to device memory
    from_host: float
    to_host: float


def count_kernel_bytes(module: Module, computation: Computation, line: Instruction) -> Bytes:
    """Counts what a kernel reads and writes.

    Args:
      module: the program.
      computation: where the kernel is an instruction; not a fused one.
      line: the instruction; of an asynchronous one, its start.
    """
    if line.opcode in ("fusion", "fusion-start"):
        fused = module.computations[hlo.called(line)[0]]
        needed = _needed(module, fused)
        reads = [
            (array, needed[one.name])
            for one in fused.values()
            if one.opcode == "parameter"
            for array in hlo.parse_type(one.type)
        ]
        writes = list(_written(module, fused, _root(fused)))
    else:
        fractions = _operand_fractions(module, computation, line, 1.0)
        reads = [
            (array, fraction)
            for name, fraction in zip(line.operands, fractions, strict=True)
            for array in _arrays(computation, name)
        ]
        result = _finished(computation, line)
        writes = list(
            _result_bytes(computation, result, result if result.opcode in UPDATES else None)
        )
    read = {host: sum(a.bytes * f for a, f in reads if a.on_host == host) for host in (True, False)}
    wrote = {host: sum(size for size, on in writes if on == host) for host in (True, False)}
    return Bytes(device=read[False] + wrote[False], from_host=read[True], to_host=wrote[True])


def _finished(computation: Computation, line: Instruction) -> Instruction:
    """The end of an asynchronous instruction, whose type is that of the result; else the instruction itself."""
    if not line.opcode.endswith("-start"):
        return line
    users = (one for one in computation.values() if line.name in one.operands)
    return next((one for one in users if one.opcode.endswith("-done")), line)


def _arrays(computation: Computation, name: str) -> tuple[Array, ...]:
    return hlo.parse_type(computation[name].type) if name in computation else ()


def _size(computation: Computation, name: str) -> int:
    return max(sum(array.size for array in _arrays(computation, name)), 1)


def _root(computation: Computation) -> Instruction:
    return next(line for line in computation.values() if line.root)


def _needed(module: Module, fused: Computation) -> dict[str, float]:
    """The fraction of the value of each instruction that a fusion needs for all its results."""
    sliced, used = dict.fromkeys(fused, 0.0), dict.fromkeys(fused, 0.0)
    root = _root(fused)
    used[root.name] = 1.0
    results = root.operands if root.opcode == "tuple" else (root.name,)
    in_place = {update.name for name in results if (update := _update(fused, fused[name]))}
    for line in reversed(fused.values()):
        needed = min(1.0, max(sliced[line.name], used[line.name]))
        if needed == 0:
            continue
        fractions = _operand_fractions(module, fused, line, needed, line.name in in_place)
        for index, (name, fraction) in enumerate(zip(line.operands, fractions, strict=True)):
            if line.opcode in SLICES and index == 0:
                sliced[name] += fraction
            else:
                used[name] = max(used[name], fraction)
    return {name: min(1.0, max(sliced[name], used[name])) for name in fused}


def _update(fused: Computation, result: Instruction) -> Instruction | None:
    """The update in place that a result of a fusion is."""
    while result.opcode in IN_PLACE:
        result = fused[result.operands[0]]
    if result.opcode not in UPDATES:
        return None
    array = fused[result.operands[0]]
    while array.opcode in IN_PLACE:
        array = fused[array.operands[0]]
    return result if array.opcode == "parameter" else None


def _operand_fractions(
    module: Module,
    computation: Computation,
    line: Instruction,
    needed: float,
    in_place: bool = True,
) -> list[float]:
    """The fraction of each operand that a fraction of an instruction's value takes."""
    opcode = line.opcode.removesuffix("-start")
    size = _size(computation, line.name)
    sizes = [_size(computation, name) for name in line.operands]
    if opcode in LIBRARY or not sizes:
        return [1.0] * len(sizes)
    if opcode == "fusion":
        fused = module.computations[hlo.called(line)[0]]
        inside = _needed(module, fused)
        by_index = {
            int(one.arguments): inside[one.name]
            for one in fused.values()
            if one.opcode == "parameter"
        }
        return [by_index[index] * needed for index in range(len(sizes))]
    if opcode in SLICES:
        return [min(1.0, needed * size / sizes[0])] + [1.0] * (len(sizes) - 1)
    if opcode == "dynamic-update-slice":
        kept = 0.0 if in_place else needed * (1 - sizes[1] / sizes[0])  # what the update leaves
        return [kept] + [1.0] * (len(sizes) - 1)
    if opcode == "scatter":  # adds to what is there
        changed = min(1.0, sizes[-1] / sizes[0])
        return [changed if in_place else needed] + [1.0] * (len(sizes) - 1)
    return [needed] * len(sizes)


def _written(
    module: Module, fused: Computation, result: Instruction
) -> Iterator[tuple[float, bool]]:
    """(bytes, whether on the host) of each array that a result of a fusion is."""
    if result.opcode == "tuple":
        for name in dict.fromkeys(result.operands):
            yield from _written(module, fused, fused[name])
        return
    nested, index = result, None
    if result.opcode == "get-tuple-element":
        nested, index = fused[result.operands[0]], _tuple_index(result)
    if nested.opcode == "fusion":
        inside = module.computations[hlo.called(nested)[0]]
        root = _root(inside)
        if index is not None and root.opcode == "tuple":
            root = inside[root.operands[index]]
        yield from _written(module, inside, root)
        return
    yield from _result_bytes(fused, result, _update(fused, result))


def _result_bytes(
    computation: Computation, result: Instruction, update: Instruction | None
) -> Iterator[tuple[float, bool]]:
    """(bytes, whether on the host) of each array of a result, without workspaces."""
    arrays = hlo.parse_type(result.type)
    if update is not None:
        # The result's item size: it may be a conversion of what was updated.
        part = _size(computation, _changes(update)) / max(arrays[0].size, 1)
        yield arrays[0].bytes * part, arrays[0].on_host
        return
    call, first = result, 0
    if result.opcode == "get-tuple-element":
        call, first = computation[result.operands[0]], _tuple_index(result)
    library = 'custom_call_target="__cu' in call.attributes
    for index, array in enumerate(arrays, first):
        if not (library and index and array.dtype in WORKSPACES):
            yield array.bytes, array.on_host


def _changes(update: Instruction) -> str:
    """The operand with the new values of an update."""
    return update.operands[1] if update.opcode == "dynamic-update-slice" else update.operands[-1]


def _tuple_index(line: Instruction) -> int:
    return int(re.search(r"index=(\d+)", line.attributes)[1])
