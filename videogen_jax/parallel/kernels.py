"""The kernels of a compiled program: what each computes, reads, writes and transfers.

A kernel is what the device launches as one: a fusion, a library call, a copy, a collective. They are listed in the
order of execution, with the body of a loop once, at its place, and the number of times that it runs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from videogen_jax.parallel import collectives, hlo, op_names
from videogen_jax.parallel.hlo import Computation, Instruction, Module
from videogen_jax.parallel.operation_flops import count_operation_flops
from videogen_jax.parallel.traffic import count_kernel_bytes

KINDS = (
    *("product", "attention forward", "attention backward", "convolution"),
    *("reduction", "elementwise", "copy", "library call", "host copy", "collective"),
)

# Instructions without a kernel: names of values, or what calls computations whose kernels are listed.
NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency"),
    *("async-start", "async-update", "domain"),
}

# A kernel of these alone moves numbers or converts their type.
MOVES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "bitcast-convert", "iota"),
    *("copy", "copy-start", "transpose", "reshape", "reverse", "convert", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "concatenate", "pad", "broadcast", "gather"),
}


class Kernel(NamedTuple):
    """A kernel. Operations and bytes are those of one run, on one device."""

    name: str  # of the instruction
    kind: str  # one of KINDS
    layer: str  # where in the model, such as "spatial/mlp/up"; empty where the program does not say
    phase: str  # one of op_names.PHASES
    runs: int  # per run of the program
    flops: float  # of products, attention and convolutions; other operations count as none
    dtype: str  # of the operands of a product, attention or convolution, such as "bf16"; else empty
    traffic: float  # bytes read from and written to device memory
    from_host: float  # bytes that cross the link from the host
    to_host: float
    sent: float  # bytes sent to other devices
    loops: tuple[int, ...]  # numbers of the loops around it, outermost first
    overlaps: (
        int | None
    )  # kernels listed next that start before it is waited for; None: not asynchronous


class _Work(NamedTuple):
    """What the instructions of a kernel compute."""

    kind: str
    flops: float
    dtype: str


def list_kernels(module: Module, devices: int) -> list[Kernel]:
    """Lists the kernels of a compiled program in the order of execution.

    Of the branches of a conditional, the one with the most traffic is listed.

    Args:
      module: from `hlo.parse(compiled.as_text())`, for GPUs or for the CPU.
      devices: number of devices that run the program.
    Raises:
      ValueError: a loop runs an unknown number of times, or the text has a type, replica groups or an attention that
        cannot be parsed.
    """
    listing = _Listing(module, devices)
    listing.visit(module.entry, 1, ())
    training = any(op_names.is_gradient(name) for name in listing.op_names)
    kernels, phase = [], "forward"
    for kernel, name in zip(listing.kernels, listing.op_names, strict=True):
        # What XLA has added has no name, and counts with what is before it.
        phase = op_names.find_phase(name, training) if name else phase
        kernels.append(kernel._replace(layer=op_names.find_layer(name), phase=phase))
    return kernels


class _Listing:
    """Kernels found so far, with the op_name of each."""

    def __init__(self, module: Module, devices: int) -> None:
        self.module = module
        self.devices = devices
        self.kernels: list[Kernel] = []
        self.op_names: list[str] = []
        self.loops = 0

    def visit(
        self, name: str, runs: int, loops: tuple[int, ...], asynchronous: bool = False
    ) -> None:
        """Adds the kernels of a computation and of those that it calls."""
        computation = self.module.computations[name]
        started: dict[str, int] = {}
        for line in computation.values():
            if line.opcode == "while":
                self.loops += 1
                trips = runs * hlo.trip_count(line)
                for one in hlo.called(line):
                    self.visit(one, trips, (*loops, self.loops))
            elif line.opcode == "conditional":
                self.visit(self.heaviest(hlo.branches(line)), runs, loops)
            elif line.opcode in ("call", "async-start"):
                started[line.name] = len(self.kernels)
                beside = asynchronous or (line.opcode == "async-start" and not _is_sync(line))
                for one in hlo.called(line):
                    self.visit(one, runs, loops, beside)
            elif line.opcode.endswith("-done"):
                self.finish([started[one] for one in line.operands if one in started])
            elif line.opcode.endswith("-update"):
                started.update((line.name, started[one]) for one in line.operands if one in started)
            elif line.opcode not in NO_KERNEL and "AllocateBuffer" not in line.attributes:
                started[line.name] = len(self.kernels)
                beside = asynchronous or (line.opcode.endswith("-start") and not _is_sync(line))
                self.add(computation, line, runs, loops, beside)

    def finish(self, starts: list[int]) -> None:
        """Notes how many kernels have started since an asynchronous one, unless XLA made it synchronous."""
        for index in starts:
            if index == len(self.kernels):  # there was none
                continue
            kernel = self.kernels[index]
            if kernel.overlaps is not None:
                self.kernels[index] = kernel._replace(overlaps=len(self.kernels) - index - 1)

    def heaviest(self, names: list[str]) -> str:
        """The branch with the most traffic."""
        sizes = {}
        for name in names:
            branch = _Listing(self.module, self.devices)
            branch.visit(name, 1, ())
            sizes[name] = count_traffic(branch.kernels)
        return max(sizes, key=sizes.get)

    def add(
        self,
        computation: Computation,
        line: Instruction,
        runs: int,
        loops: tuple[int, ...],
        asynchronous: bool,
    ) -> None:
        """Adds one kernel."""
        work = _find_work(self.module, computation, line)
        device, from_host, to_host = count_kernel_bytes(self.module, computation, line)
        collective = collectives.measure_collective(computation, line, self.devices)
        kind = work.kind
        if collective:
            kind = "collective"
        elif from_host or to_host:
            kind = "host copy"
        self.kernels.append(
            Kernel(
                name=line.name,
                kind=kind,
                layer="",
                phase="",
                runs=runs,
                flops=work.flops,
                dtype=work.dtype,
                traffic=device,
                from_host=from_host,
                to_host=to_host,
                sent=collective.sent if collective else 0.0,
                loops=loops,
                overlaps=0 if asynchronous and kind in ("collective", "host copy") else None,
            )
        )
        self.op_names.append(_find_op_name(self.module, line))


def _is_sync(line: Instruction) -> bool:
    """Whether XLA runs a start and its end as one, on the compute stream."""
    return '"is_sync":true' in line.attributes


def _find_work(module: Module, computation: Computation, line: Instruction) -> _Work:
    """Kind and FLOPs of a kernel: those of the largest operation in it, and their sum."""
    kind, flops, dtype = count_operation_flops(computation, line)
    if kind:
        return _Work(kind, flops, dtype)
    opcode = line.opcode.removesuffix("-start")
    if opcode != "fusion":
        return _Work(_plain_kind(opcode), 0.0, "")
    fused = module.computations[hlo.called(line)[0]]
    inside = [_find_work(module, fused, one) for one in fused.values()]
    total = sum(work.flops for work in inside)
    if total:
        return max(inside, key=lambda work: work.flops)._replace(flops=total)
    kinds = {
        work.kind
        for work, one in zip(inside, fused.values(), strict=True)
        if _elements(one) > 1 or one.opcode == "fusion"  # not the arithmetic of indices
    }
    kind = next(
        (one for one in ("library call", "reduction", "elementwise") if one in kinds), "copy"
    )
    return _Work(kind, 0.0, "")


def _plain_kind(opcode: str) -> str:
    """Kind of an operation that is no product, attention or convolution."""
    if opcode in ("custom-call", "sort"):
        return "library call"
    if opcode in ("reduce", "reduce-window"):
        return "reduction"
    return "copy" if opcode in MOVES else "elementwise"


def _elements(line: Instruction) -> int:
    return max((array.size for array in hlo.parse_type(line.type)), default=0)


def _find_op_name(module: Module, line: Instruction) -> str:
    """Name of the operation of the model that a kernel comes from.

    That of the largest product in a fusion; else the kernel's own, or that of the last operation in it.
    """
    if line.opcode.removesuffix("-start") != "fusion":
        return op_names.read_op_name(line.attributes)
    fused = module.computations[hlo.called(line)[0]]
    named = [one for one in fused.values() if op_names.read_op_name(one.attributes)]
    flops = [_find_work(module, fused, one).flops for one in named]
    if any(flops):
        return op_names.read_op_name(named[flops.index(max(flops))].attributes)
    own = op_names.read_op_name(line.attributes)
    return own or (op_names.read_op_name(named[-1].attributes) if named else "")


def count_traffic(kernels: Iterable[Kernel]) -> int:
    """Bytes read from and written to device memory per run of the program."""
    return round(sum(kernel.runs * kernel.traffic for kernel in kernels))


def count_executed_flops(kernels: Iterable[Kernel]) -> int:
    """FLOPs of products, attention and convolutions per run of the program, with what is computed again."""
    return round(sum(kernel.runs * kernel.flops for kernel in kernels))
