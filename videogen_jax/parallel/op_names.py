"""Where in the model, and in which pass, an operation of a compiled program comes from.

JAX writes the stack of transformations, modules and scopes into each operation's metadata, such as
"jit(step)/transpose(jvp(VideoDiT))/VideoDiT._blocks/while/body/closed_call/checkpoint/blocks/rematted_computation/
spatial/attention/qkv/dot_general".

A gradient that is written out (models/offloaded_scan.py) differentiates inside of the backward pass:
"jit(step)/transpose(jvp(VideoDiT))/while/body/jvp(spatial)/mlp/dot_general" is computed again, and
".../transpose(jvp(spatial))/mlp/dot_general" is its gradient.
"""

import re

PHASES = ("forward", "recomputed", "backward", "update")

_OP_NAME = re.compile(r'op_name="([^"]*)"')

# Parts of a stack that are no module: control flow and transformations.
_NO_MODULE = {
    *("while", "body", "cond", "branch", "closed_call", "core_call", "eval_jaxpr", "shard_map"),
    *("checkpoint", "rematted_computation", "remat", "remat2", "remat3"),
    *("custom_jvp_call", "custom_vjp_call", "blocks"),
}


def read_op_name(attributes: str) -> str:
    """The op_name of an instruction's metadata; empty without one."""
    found = _OP_NAME.search(attributes)
    return found[1] if found else ""


def is_gradient(op_name: str) -> bool:
    """Whether an operation belongs to a backward pass, to what it computes again included."""
    return "transpose(" in op_name


def _differentiated(op_name: str) -> list[str]:
    """The parts of a stack that are differentiated, outermost first: "jvp(spatial)", "transpose(jvp(spatial))"."""
    return [part for part in op_name.split("/") if "jvp(" in part]


def find_phase(op_name: str, training: bool) -> str:
    """The pass that an operation belongs to: one of PHASES.

    Args:
      op_name: not empty.
      training: whether the program has a backward pass; without one, all is forward.
    """
    if "rematted_computation" in op_name:
        return "recomputed"
    if is_gradient(op_name):
        innermost = (_differentiated(op_name) or [op_name])[-1]
        return "backward" if is_gradient(innermost) else "recomputed"
    # The optimizer is outside of what is differentiated, and of every module.
    return "update" if training and "jvp(" not in op_name and not find_layer(op_name) else "forward"


def find_layer(op_name: str) -> str:
    """The path of modules and named scopes, such as "spatial/attention/qkv"; empty outside of all."""
    stack = op_name.split(";")[0]
    # "spatial/(attention/qkv/dot:mlp/up/dot)" names several operations behind what they share.
    combined = re.search(r"(^|/)\(", stack)
    parts = (stack[: combined.start()] + "/" if combined else stack).split("/")[:-1]
    # The outermost is the model; further ones are modules of it.
    inner = {part: re.sub(r".*\(|\)", "", part) for part in _differentiated(stack)[1:]}
    parts = [inner.get(part, part) for part in parts]
    return "/".join(
        part for part in parts if part not in _NO_MODULE and not re.search(r"[(.<]", part)
    )
