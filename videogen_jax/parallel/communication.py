"""Lower bound on the bytes that devices send each other in a train step, to compare a compiled step with.

Per device, with s = fsdp seq parameter shards, n = fsdp seq data gradient replicas, b bytes per element of the compute
type, r of the residual stream, P elements of sharded parameters (divided by tensor where sharded over it) and V of
replicated vectors:

| communication                                                  | bytes                               |
| -------------------------------------------------------------- | ----------------------------------- |
| all-gather of parameters (trained or not), forward and backward | 2 k (s - 1) / s P b                |
| reduce-scatter of gradients                                    | (s - 1) / s P b                     |
| all-reduce of gradient shards over `data`                      | 2 (data - 1) / data P / s b         |
| all-reduce of gradients of vectors                             | 2 (n - 1) / n V b                   |
| all-to-alls around a temporal block, forward and backward      | 4 (seq - 1) / seq x r / b           |
| or of a joint block (queries, keys, values, results)           | 8 (seq - 1) / seq x                 |
| all-reduce over `tensor` per branch, forward and backward      | 4 (tensor - 1) / tensor x           |

k is the number of accumulation steps; x = b D times the tokens of the batch on a device. Rematerialization does not
repeat the all-to-alls around temporal blocks, since a block's input is saved after them; those inside a joint block are
repeated.

Source: ring algorithms as in parallel/hlo.py; FSDP, arXiv:1910.02054, section 7; all-to-alls as in
parallel/sequence_parallel.py.
"""

from collections.abc import Mapping
from typing import Any

import jax


def min_sent_bytes(
    params: Any,
    mesh: Mapping[str, int],
    *,
    frozen: Any = None,
    tokens: int,
    width: int,
    depth: int,
    attention: str,
    branches: int,
    item_bytes: int,
    residual_bytes: int,
    accumulation: int,
) -> int:
    """Bytes that a device sends in a step at least: the sum of the table at the top of this file.

    Args:
      params: tree of jax.ShapeDtypeStruct with shardings.
      mesh: devices on each axis.
      frozen: tree of further parameters, that have no gradient; or None.
      tokens: tokens of the whole batch.
      width: D.
      depth: number of blocks.
      attention: factorized or joint.
      branches: residual branches of all blocks: attention, cross-attention and MLP count one each.
      item_bytes: b.
      residual_bytes: r.
      accumulation: k.
    """
    data, seq, tensor = mesh["data"], mesh["seq"], mesh["tensor"]
    shards = mesh["fsdp"] * seq
    replicas = data * shards
    total = 0.0
    for trained, tree in ((True, params), (False, frozen)):
        for leaf in jax.tree.leaves(tree):
            axes = {axis for entry in leaf.sharding.spec if entry for axis in _names(entry)}
            size = leaf.size * item_bytes / (tensor if "tensor" in axes else 1)
            if {"fsdp", "seq"} & axes:
                total += (2 * accumulation + trained) * (shards - 1) / shards * size
                total += trained * 2 * (data - 1) / data * size / shards
            else:
                total += trained * 2 * (replicas - 1) / replicas * size
    x = tokens / replicas * width * item_bytes
    factorized = 4 * (depth // 2) * residual_bytes / item_bytes
    all_to_alls = factorized if attention == "factorized" else 8 * depth
    total += all_to_alls * (seq - 1) / seq * x
    total += branches * 4 * (tensor - 1) / tensor * x
    return round(total)


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry
