"""A scan over groups of blocks whose inputs wait in pinned host memory for the backward pass.

    forward, group g = 0, 1, ...:     h_i = enter_i(x);  store h_i on the host;  x = leave_i(block_i(h_i))
    backward, group g = ..., 1, 0:    block_i is computed again from h_i, and its gradient taken,
                                      while the input that is needed next is copied to the device

The gradient is written out, since JAX's own copies an input of a checkpointed block when the block needs it, and the
device waits for it. Here each copy has the whole backward pass of a block to hide behind, for one more input on the
device. `enter` and `leave`, such as all-to-alls, are not repeated.

Source: arXiv:1604.06174 for recomputation; activations on the host with prefetching as in vDNN, arXiv:1602.08124.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp


class Stage(NamedTuple):
    """One block of a group. All functions are pure."""

    name: str  # of its parameters
    enter: Callable[
        [jax.Array, jax.Array, Any], jax.Array
    ]  # (x, index, constants) to h; affine in x
    block: Callable[[Any, jax.Array, Any, Any], jax.Array]  # (params, h, shared, constants) to y
    leave: Callable[[jax.Array], jax.Array]  # y to x; linear


def scan_offloaded(
    stages: Sequence[Stage], params: Any, x: jax.Array, shared: Any, constants: Any
) -> jax.Array:
    """Applies G groups of blocks in sequence.

    The loop is not unrolled: XLA would stack the inputs of unrolled groups on the host's processor.

    Args:
      stages: the blocks of a group, in order.
      params: stage name to its parameters, (G, ...) each.
      x: (B, T, N, D), of floating type.
      shared: tree of floating arrays that all blocks read.
      constants: tree of arrays that all blocks read, and that have no gradient.
    Returns:
      (B, T, N, D). It has a gradient for `params`, `x` and `shared`, in reverse mode only; what is not differentiated
      in them, such as frozen parameters, costs nothing.
    """
    count = len(jax.tree.leaves(params)[0])
    blocks = _trace_blocks(stages, params, x, shared, constants)

    def forward(params: Any, x: jax.Array, shared: Any, constants: Any, store: bool) -> Any:
        def run_group(x: jax.Array, group: Any) -> tuple[jax.Array, list[jax.Array]]:
            index, params = group
            inputs = []
            for stage, block in zip(stages, blocks, strict=True):
                h = stage.enter(x, index, constants)
                if store:
                    inputs.append(jax.device_put(h, jax.memory.Space.Host))
                x = stage.leave(block.run(params[stage.name], h, shared, constants))
            return x, inputs

        return jax.lax.scan(run_group, x, (jnp.arange(count), params))

    @jax.custom_vjp
    def run(params: Any, x: jax.Array, shared: Any, constants: Any) -> jax.Array:
        return forward(params, x, shared, constants, store=False)[0]

    def run_forward(*primals: Any) -> Any:
        out, inputs = forward(*jax.tree.map(lambda leaf: leaf.value, primals), store=True)
        params, _, shared, constants = primals
        constants = jax.tree.map(lambda leaf: leaf.value, constants)
        return out, (_split(params), _split(shared), constants, inputs)

    def run_backward(saved: Any, dx: jax.Array) -> Any:
        params, (shared, fixed), constants, inputs = saved

        def fetch(stage: int, index: jax.Array) -> jax.Array:
            h = jax.lax.dynamic_index_in_dim(inputs[stage], index, keepdims=False)
            return jax.device_put(h, jax.memory.Space.Device)

        def differentiate_group(carry: Any, group: Any) -> Any:
            dx, h, dshared = carry
            index, (trained, frozen) = group
            dparams = {}
            for i in reversed(range(len(stages))):
                stage, block = stages[i], blocks[i]
                # The input needed next; that of group -1 is never used.
                following = fetch(i - 1, index if i else jnp.maximum(index - 1, 0))
                dy = _pull_back(stage.leave, block.y, dx)

                def run_block(
                    params: Any,
                    h: jax.Array,
                    shared: Any,
                    block: _Block = block,
                    rest: Any = frozen[stage.name],
                ) -> jax.Array:
                    return block.run(_merge(params, rest), h, _merge(shared, fixed), constants)

                _, differentiate = jax.vjp(run_block, trained[stage.name], h, shared)
                gradients = differentiate(dy)
                # The next copy and recomputation begin only after this block, whose activations are then free.
                gradients, h, index, trained, frozen = jax.lax.optimization_barrier(
                    (gradients, following, index, trained, frozen)
                )
                dparams[stage.name], dh, ds = gradients
                dshared = jax.tree.map(jnp.add, dshared, ds)
                enter = functools.partial(stage.enter, index=index, constants=constants)
                dx = _pull_back(enter, block.x, dh)
            return (dx, h, dshared), dparams

        start = (dx, fetch(-1, jnp.array(count - 1)), jax.tree.map(jnp.zeros_like, shared))
        groups = (jnp.arange(count), params)
        (dx, _, dshared), dparams = jax.lax.scan(differentiate_group, start, groups, reverse=True)
        return dparams, dx, dshared, None

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    return run(params, x, shared, constants)


def _split(tree: Any) -> tuple[Any, Any]:
    """The leaves that are differentiated, and the others, such as frozen parameters, with None for the rest."""
    return (
        jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, tree),
        jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, tree),
    )


def _merge(tree: Any, rest: Any) -> Any:
    """The inverse of `_split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, rest, is_leaf=lambda x: x is None)


class _Block(NamedTuple):
    """A stage's block as a program, with the shapes around it."""

    run: Callable[..., jax.Array]  # (params, h, shared, constants) to y
    x: jax.ShapeDtypeStruct  # before `enter`
    y: jax.ShapeDtypeStruct  # before `leave`


def _trace_blocks(
    stages: Sequence[Stage], params: Any, x: jax.Array, shared: Any, constants: Any
) -> list[_Block]:
    """Traces the blocks here, since the backward pass is traced outside of Flax's interceptors (LoRA)."""
    blocks = []
    for stage in stages:
        group = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params[stage.name]
        )
        h = jax.eval_shape(stage.enter, x, jnp.array(0), constants)
        traced, y = jax.make_jaxpr(stage.block, return_shape=True)(group, h, shared, constants)
        flat = jax.extend.core.jaxpr_as_fun(traced)
        blocks.append(_Block(lambda *args, flat=flat: flat(*jax.tree.leaves(args))[0], x, y))
        x = jax.eval_shape(stage.leave, y)
    return blocks


def _pull_back(
    affine: Callable[[jax.Array], jax.Array], argument: jax.ShapeDtypeStruct, gradient: jax.Array
) -> jax.Array:
    """The gradient of the argument of an affine function, from that of its result."""
    # The gradient does not depend on the argument, so XLA drops the computation from zeros.
    _, pull_back = jax.vjp(affine, jnp.zeros(argument.shape, argument.dtype))
    return pull_back(gradient)[0]
