"""Optimizers and learning rates by name."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

OPTIMIZERS = ("adamw", "muon")


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
) -> optax.GradientTransformation:
    """Gradient clipping, then the named optimizer.

    Weight decay is on matrices alone, not on biases, norms and gates. `muon` orthogonalises the updates of the matrices
    inside the blocks, scaled to the size of Adam's, and leaves all other parameters to AdamW at the same rate.

    Args:
      name: one of OPTIMIZERS.
      learning_rate: step to rate.
      b1: decay of the first moment (Muon: momentum).
      b2: decay of the second moment.
      weight_decay: decoupled, times the learning rate.
      clip_norm: largest global gradient norm.
    Returns:
      The optax transformation.
    Raises:
      ValueError: the name is unknown.
    Source: AdamW, arXiv:1711.05101; Muon, arXiv:2502.16982, section 2.2 (update size 0.2).
    """
    clip = optax.clip_by_global_norm(clip_norm)
    if name == "adamw":
        return optax.chain(
            clip,
            optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=is_matrix),
        )
    if name == "muon":
        muon = optax.contrib.muon(
            learning_rate,
            beta=b1,
            weight_decay=weight_decay,
            weight_decay_mask=is_matrix,
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=muon_axes,
        )
        return optax.chain(clip, muon)
    raise ValueError(f"Unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}.")


def is_matrix(params: Any) -> Any:
    """True at the leaves that are weights of linear layers or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )


def muon_axes(params: Any) -> Any:
    """Which axes of each block matrix are its rows and columns; None at leaves that Muon leaves alone.

    Kernels of the blocks carry the layer axis in front. Queries, keys and values are three matrices.
    """

    def axes(path: tuple, _: jax.Array) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[0] != "blocks" or names[-1] != "kernel":
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
