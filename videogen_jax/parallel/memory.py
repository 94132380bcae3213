"""What a jitted program takes of each device's memory, compiled for devices that need not be here.

    peak = arguments + results - results in the place of arguments + temporaries

as XLA has laid them out: the temporaries are the whole that a run allocates beside its arguments. CUDA's own context
and its libraries come on top: RESERVE.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxlib.mlir import ir

from videogen_jax.parallel import hlo

RESERVE = 0.8 * 2**30  # bytes of a GPU: context, cuDNN, cuBLAS and NCCL

# Products by cuBLAS: XLA's own Triton kernels are chosen by trying them out, which wants the GPU.
CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Footprint(NamedTuple):
    """Of one device; bytes, for one run of the program."""

    arguments: int
    peak: int
    host: int  # pinned memory of the host
    collectives: int  # the buffers of the largest one, within the peak
    sent: dict[str, int]  # sent to other devices, by kind of collective
    traffic: int  # read from and written to the device's memory


def measure(
    traced: jax.stages.Traced, devices: int, cuda: bool, on_host: list[bool] | None = None
) -> Footprint:
    """Compiles a program and reads its footprint.

    Args:
      traced: of `jax.jit(...).trace` with abstract arguments on the target's devices.
      devices: their number.
      cuda: they are GPUs; the CPU otherwise.
      on_host: for each leaf of the arguments, whether it lies in the host's pinned memory, as the result in its place
        then does. Devices that are only described have no such memory, so that shardings cannot say it.
    Returns:
      The footprint.
    Raises:
      RuntimeError: XLA cannot compile the program for the devices.
    """
    lowered = traced.lower(lowering_platforms=("cuda" if cuda else "cpu",))
    if on_host is not None and any(on_host):
        _mark_host(lowered, on_host)
    compiled = lowered.compile(compiler_options=CUDA_OPTIONS if cuda else None)
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    return Footprint(
        arguments=sizes.argument_size_in_bytes,
        peak=sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes,
        host=sizes.host_argument_size_in_bytes
        + sizes.host_output_size_in_bytes
        - sizes.host_alias_size_in_bytes
        + sizes.host_temp_size_in_bytes,
        collectives=hlo.largest_collective(text, devices),
        sent=hlo.count_sent_bytes(text, devices),
        traffic=hlo.count_memory_bytes(text),
    )


def _mark_host(lowered: jax.stages.Lowered, on_host: list[bool]) -> None:
    """Writes into the program what the memory kinds of shardings would have written."""
    module = lowered.compiler_ir()
    functions = {
        ir.StringAttr(op.attributes["sym_name"]).value: op for op in module.body.operations
    }
    main = functions["main"]
    with module.context:
        for name in ("arg_attrs", "res_attrs"):
            marked = [
                _with_memory(place) if waits else place
                for place, waits in zip(main.attributes[name], on_host, strict=False)
            ]
            rest = list(main.attributes[name])[len(marked) :]
            main.attributes[name] = ir.ArrayAttr.get(marked + rest)


def _with_memory(attributes: Any) -> Any:
    named = {one.name: one.attr for one in attributes}
    named["mhlo.memory_kind"] = ir.StringAttr.get("pinned_host")
    return ir.DictAttr.get(named)


def count_shard_bytes(tree: Any, keep: Callable[[Any], bool] = lambda _: True) -> int:
    """Bytes of a tree on each device.

    Args:
      tree: of jax.ShapeDtypeStruct with shardings.
      keep: which leaves count.
    Returns:
      The sum.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if keep(leaf):
            count = 1
            for size in leaf.sharding.shard_shape(leaf.shape):
                count *= size
            total += count * leaf.dtype.itemsize
    return total
