"""Floating-point operations of the products, attention and convolutions of a compiled program, from its HLO text.

A multiply and an add are two FLOPs. M x K by K x N is 2 M N K; attention of B clips, K heads, N queries and M keys of
head dimension Dh is 4 B K N M Dh forward and 10 backward, of which 2 are the scores computed again; a convolution is
twice the elements of its output times the elements of a filter. A causal mask halves attention (N + 1 of 2 N keys),
since cuDNN skips the tiles above the diagonal; padded keys count, since they are computed. All other operations count
as none.
"""

import json
import math
import re

from videogen_jax.parallel import hlo
from videogen_jax.parallel.hlo import Array, Computation, Instruction


def count_operation_flops(computation: Computation, line: Instruction) -> tuple[str, float, str]:
    """FLOPs of an instruction, without those of the computations that it calls.

    Args:
      computation: where the operands are.
      line: any instruction.
    Returns:
      ("product", "attention forward", "attention backward", "convolution" or "", FLOPs, type of the first operand).
    """
    kind = _operation(line)
    if not kind:
        return "", 0.0, ""
    operands = [hlo.parse_type(computation[name].type)[0] for name in line.operands]
    result = hlo.parse_type(line.type)[0]
    if kind == "product":
        flops = _product(line, operands, result)
    elif kind == "convolution":
        flops = _convolution(line, operands, result)
    else:
        flops = _attention(line, operands[0], 10 if kind == "attention backward" else 4)
    return kind, flops, operands[0].dtype


def _operation(line: Instruction) -> str:
    if line.opcode in ("dot", "convolution"):
        return "product" if line.opcode == "dot" else "convolution"
    if line.opcode.removesuffix("-start") != "custom-call":
        return ""
    target = re.search(r'custom_call_target="([^"]*)"', line.attributes)
    name = target[1].lower() if target else ""
    if "fmha" in name:
        return "attention backward" if "backward" in name else "attention forward"
    if "conv" in name and name.startswith("__cudnn"):
        return "convolution"
    return "product" if "cublas" in name or "matmul" in name else ""


def _product(line: Instruction, operands: list[Array], result: Array) -> float:
    """2 x elements of the result x length of the contracted axes."""
    contracted = _axes(line, "lhs_contracting_dim")
    if contracted is None:  # of a library call that does not say
        contracted = [len(operands[0].shape) - 1]
    return 2.0 * result.size * math.prod(operands[0].shape[axis] for axis in contracted)


def _axes(line: Instruction, field: str) -> list[int] | None:
    """Axes in either form: lhs_contracting_dims={1} or "lhs_contracting_dimensions":["1"]."""
    found = re.search(rf'{field}\w*"?[=:]\s*[\[{{]([^\]}}]*)[\]}}]', line.attributes)
    return [int(axis) for axis in re.findall(r"\d+", found[1])] if found else None


def _attention(line: Instruction, queries: Array, factor: int) -> float:
    """From the scores' shape (B, K, N, M), which does not depend on the layout of the queries."""
    scores = re.search(
        r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*(\[[^\]]*\])', line.attributes
    )
    if not scores:
        raise ValueError(
            f"The attention {line.name} of the compiled program does not name the shape of its scores, so FLOPs cannot "
            "be counted."
        )
    keys = float(json.loads(scores[1])[-1])
    mask = re.search(r'"mask_type":\s*"(\w*)"', line.attributes)
    if mask and "CAUSAL" in mask[1]:
        keys = (keys + 1) / 2
    return factor * queries.size * keys


def _convolution(line: Instruction, operands: list[Array], result: Array) -> float:
    """2 x elements of the output x elements of a filter; the gradients swap the parts."""
    output, filters = result, operands[1]
    if "BackwardInput" in line.attributes:
        output = operands[0]
    elif "BackwardFilter" in line.attributes:
        output, filters = operands[1], result
    labels = re.search(r"dim_labels=\w+_(\w+)->", line.attributes)
    return 2.0 * output.size * filters.size / filters.shape[labels[1].index("o")]
