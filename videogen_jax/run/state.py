"""The train state: one pure pytree."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# Folded into the key of a run's seed, so that its random numbers are independent by purpose.
PARAMETERS, TRAINING, VALIDATION = range(3)

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@flax.struct.dataclass
class LossScale:
    """Dynamic loss scale of float16 training: keeps small gradients above float16's floor."""

    scale: jax.Array  # () float32
    good_steps: jax.Array  # () int32, finite steps since the scale last changed


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes. Parameters, EMA and moments are float32.

    `params`, `ema` and `opt_state` hold what is trained; `parameter_paths.combine(params, frozen)` is the model's tree.
    """

    step: jax.Array  # () int32, optimizer steps taken
    params: Any
    ema: dict[str, Any]  # name of a moving average to a tree as params
    opt_state: Any  # of the optax optimizer
    rng: jax.Array  # () typed key, never advanced: steps fold their number into it
    loss_scale: LossScale | None  # None unless float16
    frozen: Any = None  # the parameters that no step changes; None if all are trained


def compute_dtype(precision: str) -> jnp.dtype:
    """The type of the matrix products.

    Args:
      precision: one of PRECISIONS.
    Returns:
      The jax type.
    Raises:
      ValueError: the name is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def init_state(
    params: Any,
    init_moments: Callable[[Any], Any],
    averages: Iterable[str],
    rng: jax.Array,
    precision: str,
    frozen: Any = None,
) -> TrainState:
    """The state before the first step, with every moving average at the initial parameters.

    Args:
      params: float32 tree, of what is trained.
      init_moments: params to the optimizer state, `init` of an optax optimizer.
      averages: names of the moving averages.
      rng: () typed key of the run.
      precision: one of PRECISIONS.
      frozen: tree of the other parameters; None if there are none.
    Returns:
      The state.
    """
    loss_scale = None
    if precision == "float16":
        loss_scale = LossScale(jnp.float32(2.0**15), jnp.int32(0))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        # Copies: the step donates them all.
        ema={name: jax.tree.map(jnp.copy, params) for name in averages},
        opt_state=init_moments(params),
        rng=rng,
        loss_scale=loss_scale,
        frozen=frozen,
    )
