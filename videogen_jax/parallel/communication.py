"""The fewest bytes that devices must send each other in a train step, to hold a compiled step against.

Of a device, with s = fsdp seq sharing parameters, n = fsdp seq data having gradients of their own, b bytes per number
of the products' type, P numbers of sharded parameters (each with 1 / tensor of them) and V of vectors that all copy:

| what                                                           | bytes                               |
| -------------------------------------------------------------- | ----------------------------------- |
| parameters gathered, forward and backward, in each part        | 2 k (s - 1) / s P b                 |
| gradients scattered, added up                                  | (s - 1) / s P b                     |
| and between the copies                                         | 2 (data - 1) / data P / s b         |
| gradients of vectors                                           | 2 (n - 1) / n V b                   |
| frames for places and back, forward and backward, in each pair | 4 (seq - 1) / seq x                 |
| or queries, keys, values and results for heads, in each block  | 8 (seq - 1) / seq x                 |
| sums over `tensor`, of each branch, forward and backward       | 4 (tensor - 1) / tensor x           |

k parts of a batch (accumulation); x = b D times the tokens of the batch on a device. Recomputing exchanges no frames
for places again, for blocks keep their input on this side of that; a joint block's four exchanges are inside it and are
done again.

Source: rings as in parallel/hlo.py; FSDP, arXiv:1910.02054, section 7; the all-to-all as in
parallel/sequence_parallel.py.
"""

from collections.abc import Mapping
from typing import Any

import jax


def min_sent_bytes(
    params: Any,
    mesh: Mapping[str, int],
    *,
    tokens: int,
    width: int,
    depth: int,
    attention: str,
    branches: int,
    item_bytes: int,
    accumulation: int,
) -> int:
    """The sum of the table above.

    Args:
      params: tree of jax.ShapeDtypeStruct with shardings.
      mesh: devices on each axis.
      tokens: of the whole batch.
      width: D.
      depth: blocks.
      attention: factorized, joint.
      branches: of all blocks together: attention, cross-attention and MLP count each.
      item_bytes: b.
      accumulation: k.
    Returns:
      Bytes that a device sends in a step.
    """
    data, seq, tensor = mesh["data"], mesh["seq"], mesh["tensor"]
    shares = mesh["fsdp"] * seq
    copies = data * shares
    total = 0.0
    for leaf in jax.tree.leaves(params):
        on = {axis for entry in leaf.sharding.spec if entry for axis in _names(entry)}
        size = leaf.size * item_bytes / (tensor if "tensor" in on else 1)
        if {"fsdp", "seq"} & on:
            total += (2 * accumulation + 1) * (shares - 1) / shares * size
            total += 2 * (data - 1) / data * size / shares
        else:
            total += 2 * (copies - 1) / copies * size
    x = tokens / copies * width * item_bytes
    exchanges = 4 * (depth // 2) if attention == "factorized" else 8 * depth
    total += exchanges * (seq - 1) / seq * x
    total += branches * 4 * (tensor - 1) / tensor * x
    return round(total)


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry
