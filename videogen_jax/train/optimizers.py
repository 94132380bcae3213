"""Optimizers and learning rates by name.

| name          | bytes per parameter beside it, float32 (bfloat16 first moment) | source           |
| ------------- | -------------------------------------------------------------- | ---------------- |
| adamw         | 8 (6)                                                          | arXiv:1711.05101 |
| adafactor     | 4 (2), none if b1 is 0; a row and a column for each matrix     | arXiv:1804.04235 |
| lion          | 4 (2)                                                          | arXiv:2302.06675 |
| muon          | 4 (2) in the matrices of attention and MLPs, elsewhere 8 (6)   | arXiv:2502.16982 |
| schedule_free | 8                                                              | arXiv:2405.15682 |
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, ScheduleFreeState

from videogen_jax.parallel.sharding import ADAPTERS

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "schedule_free")
MOMENT_TYPES = ("float32", "bfloat16")


def make_learning_rate(
    peak: float, warmup_steps: int, steps: int, final_fraction: float
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine down to a fraction of the peak.

    Args:
      peak: highest rate.
      warmup_steps: steps until it is reached.
      steps: length of the run, warm-up included.
      final_fraction: of the peak, at the last step.
    Returns:
      Step to rate.
    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    if warmup_steps >= steps:
        raise ValueError(
            f"learning_rate.warmup_steps of {warmup_steps} is not below train.steps of {steps}: "
            "shorten the warm-up."
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=peak * final_fraction,
    )


def make_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    mu_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Gradient clipping, then the named optimizer.

    Weight decay is on matrices alone, not on biases, norms and gates, and times the learning rate with all of them.
    `adafactor` factors its second moment over the two largest axes (of 32 or more, so that the matrices of attention
    heads are factored too), lets its decay rise as 1 - t^-0.8 up to b2, clips updates to a mean square of 1, and b1 is
    its momentum; it does not scale by the size of the parameters. `muon` orthogonalises the updates of the matrices of
    attention and MLPs in the blocks, scaled to the size of Adam's, and leaves all other parameters (also the blocks'
    modulation) to AdamW with Nesterov's momentum at the same rate. `schedule_free` is AdamW whose momentum is an
    interpolation with an average: see `evaluation_params`; its learning rate must not fall.

    Args:
      name: one of OPTIMIZERS.
      learning_rate: step to rate.
      b1: decay of the first moment (Muon: momentum; schedule_free: share of the average); adafactor has none at 0.
      b2: decay of the second moment (Lion: of the momentum; adafactor: its highest).
      weight_decay: decoupled, times the learning rate.
      clip_norm: largest global gradient norm.
      mu_dtype: one of MOMENT_TYPES, of the first moment.
    Returns:
      The optax transformation.
    Raises:
      ValueError: a name is unknown, or schedule_free is given a bfloat16 moment or a b1 of 0.
    Source: the table above; Muon's update size of 0.2 from arXiv:2502.16982, section 2.2; Adafactor's highest decay and
      momentum from arXiv:2106.04560.
    """
    if mu_dtype not in MOMENT_TYPES:
        raise ValueError(
            f"Unknown optimizer.mu_dtype {mu_dtype!r}: choose one of {', '.join(MOMENT_TYPES)}."
        )
    dtype, decay = jnp.dtype(mu_dtype), {"weight_decay": weight_decay, "mask": is_matrix}
    if name == "adamw":
        steps = [optax.adamw(learning_rate, b1=b1, b2=b2, mu_dtype=dtype, **decay)]
    elif name == "adafactor":
        # Not optax.adafactor, whose weight decay is not times the learning rate.
        steps = [
            optax.scale_by_factored_rms(
                min_dim_size_to_factor=32,
                # Without a bound the second moment stands still late in a long run.
                decay_rate_fn=lambda n, power: jnp.minimum(1 - (n + 1.0) ** -power, b2),
            ),
            optax.clip_by_block_rms(1.0),
            *([optax.ema(b1, debias=False, accumulator_dtype=dtype)] if b1 else []),
            optax.add_decayed_weights(**decay),
            optax.scale_by_learning_rate(learning_rate),
        ]
    elif name == "lion":
        steps = [optax.lion(learning_rate, b1=b1, b2=b2, mu_dtype=dtype, **decay)]
    elif name == "muon":
        steps = [
            # Rate and decay follow it, for its own decay of what it leaves to AdamW has no mask. Its sign is turned.
            optax.contrib.muon(
                1.0,
                beta=b1,
                mu_dtype=dtype,
                adam_b1=b1,
                adam_b2=b2,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=muon_axes,
            ),
            optax.add_decayed_weights(-weight_decay, is_matrix),
            optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        ]
    elif name == "schedule_free":
        steps = [_schedule_free(learning_rate, b1, b2, decay, mu_dtype)]
    else:
        raise ValueError(f"Unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}.")
    return optax.chain(optax.clip_by_global_norm(clip_norm), *steps)


def _schedule_free(
    learning_rate: optax.Schedule, b1: float, b2: float, decay: dict[str, Any], mu_dtype: str
) -> optax.GradientTransformation:
    if mu_dtype != "float32":
        raise ValueError(
            "schedule_free keeps weights where others keep a moment, and small steps would be lost in bfloat16: "
            "set optimizer.mu_dtype=float32."
        )
    if not 0 < b1 < 1:
        raise ValueError(f"optimizer.b1 is {b1}: schedule_free needs one above 0 and below 1.")
    adam = optax.chain(
        optax.scale_by_rms(b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(**decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    # Its count starts at 1; with this the average weighs a step by the rate of that step, as in the paper.
    return optax.contrib.schedule_free(adam, lambda count: learning_rate(count - 1), b1=b1)


def count_updates(opt_state: optax.OptState) -> jax.Array:
    """Updates that an optimizer has made, the step that its learning rate is at.

    In float16 they are fewer than the steps of the run: a step whose gradients are not finite makes none.

    Args:
      opt_state: of an optimizer of `make_optimizer`.
    Returns:
      () int32.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_schedule)
    return next(node.count for node in nodes if is_schedule(node))


def evaluation_params(opt_state: optax.OptState, params: Any) -> Any:
    """The parameters to validate, average and sample with: for schedule_free its average x, else those of the steps.

    Args:
      opt_state: after the step.
      params: after the step.
    Returns:
      A tree as params.
    Source: schedule-free, arXiv:2405.15682, eq. 6 to 8: x = (y - (1 - b1) z) / b1.
    """

    def is_free(node: Any) -> bool:
        return isinstance(node, ScheduleFreeState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_free):
        if is_free(node):
            return optax.contrib.schedule_free_eval_params(node, params)
    return params


def is_matrix(params: Any) -> Any:
    """True at the leaves that are weights of linear layers or embeddings, and at LoRA's factors."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding", *ADAPTERS), params
    )


def muon_axes(params: Any) -> Any:
    """Which axes of each block matrix are its rows and columns; None at leaves that Muon leaves alone.

    Kernels of the transformer's blocks carry the layer axis in front. Queries, keys and values are three matrices. In
    an autoencoder each kernel is the matrix of all that it sees.
    """

    def axes(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return None
        if names[0] in ("encoder", "decoder"):
            *inputs, output = range(leaf.ndim)
            return MuonDimensionNumbers(reduction_axis=tuple(inputs), output_axis=(output,))
        if names[0] != "blocks":
            return None
        return {
            "qkv": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(3, 4)),
            "key_value": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(3, 4)),
            "query": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3)),
            "out": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,)),
            "up": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,)),
            "down": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,)),
            "modulation": None,
        }[names[-2]]

    return jax.tree_util.tree_map_with_path(axes, params)
