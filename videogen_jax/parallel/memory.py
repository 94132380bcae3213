"""Device memory of a jitted program, compiled for devices that need not be present.

    peak = arguments + results - results that alias arguments + temporaries

by XLA's buffer assignment: temporaries are everything that a run allocates besides its arguments and results. What a
device has for it is in gpu_pools.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxlib.mlir import ir

from videogen_jax.parallel import collectives, hlo
from videogen_jax.parallel.kernels import Kernel, list_kernels

# Use cuBLAS for matrix products: autotuning XLA's Triton kernels needs the GPU.
CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# The machine code is not run, so it need not be optimized; memory and kernels are laid out before.
QUICK_OPTIONS = {"xla_backend_optimization_level": 0, "xla_gpu_disable_gpuasm_optimizations": True}


class Footprint(NamedTuple):
    """Bytes per device and run of the program."""

    arguments: int
    peak: int
    host: int  # pinned host memory
    collectives: int  # buffers of the largest collective, included in the peak
    sent: dict[str, int]  # sent to other devices, by kind of collective
    kernels: list[Kernel]


def measure(
    traced: jax.stages.Traced, devices: int, cuda: bool, on_host: list[bool] | None = None
) -> Footprint:
    """Compiles a program and analyzes its footprint.

    Args:
      traced: from `jax.jit(...).trace` with abstract arguments on the target's devices.
      devices: number of devices.
      cuda: whether they are GPUs; CPUs otherwise.
      on_host: for each leaf of the arguments, whether it is in pinned host memory, as then is the result that aliases
        it. Devices made from a description have no such memory, so shardings cannot express it.
    Raises:
      RuntimeError: XLA cannot compile the program for the devices.
    """
    lowered = traced.lower(lowering_platforms=("cuda" if cuda else "cpu",))
    if on_host is not None and any(on_host):
        _mark_host(lowered, on_host)
    compiled = lowered.compile(compiler_options=CUDA_OPTIONS | QUICK_OPTIONS if cuda else None)
    sizes, module = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    return Footprint(
        arguments=sizes.argument_size_in_bytes,
        peak=peak_bytes(compiled),
        host=host_bytes(compiled),
        collectives=collectives.largest_collective(module, devices),
        sent=collectives.count_sent_bytes(module, devices),
        kernels=list_kernels(module, devices),
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a program on a device."""
    sizes = compiled.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes


def host_bytes(compiled: jax.stages.Compiled) -> int:
    """Pinned memory of the host that a program takes for a device."""
    sizes = compiled.memory_analysis()
    results = sizes.host_output_size_in_bytes - sizes.host_alias_size_in_bytes
    return sizes.host_argument_size_in_bytes + results + sizes.host_temp_size_in_bytes


def _mark_host(lowered: jax.stages.Lowered, on_host: list[bool]) -> None:
    """Adds the attributes that memory kinds of shardings would have added to the program."""
    module = lowered.compiler_ir()
    functions = {
        ir.StringAttr(op.attributes["sym_name"]).value: op for op in module.body.operations
    }
    main = functions["main"]
    with module.context:
        for name in ("arg_attrs", "res_attrs"):
            marked = [
                _with_memory(attributes) if offloaded else attributes
                for attributes, offloaded in zip(main.attributes[name], on_host, strict=False)
            ]
            rest = list(main.attributes[name])[len(marked) :]
            main.attributes[name] = ir.ArrayAttr.get(marked + rest)


def _with_memory(attributes: Any) -> Any:
    named = {one.name: one.attr for one in attributes}
    named["mhlo.memory_kind"] = ir.StringAttr.get("pinned_host")
    return ir.DictAttr.get(named)


def count_shard_bytes(tree: Any, keep: Callable[[Any], bool] = lambda _: True) -> int:
    """Bytes of a tree per device.

    Args:
      tree: tree of jax.ShapeDtypeStruct with shardings.
      keep: selects the leaves to count.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if keep(leaf):
            count = 1
            for size in leaf.sharding.shard_shape(leaf.shape):
                count *= size
            total += count * leaf.dtype.itemsize
    return total
