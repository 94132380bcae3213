"""Which parameters a run does not train.

Those of train.frozen; with LoRA, all but its own and those of train.lora.full.
"""

from typing import Any

import ml_collections

from videogen_jax.models.lora import is_adapter
from videogen_jax.models.parameter_paths import find_matches, list_paths
from videogen_jax.run.model import make_lora


def find_frozen(config: ml_collections.ConfigDict, params: Any) -> frozenset[str]:
    """The paths of the frozen parameters.

    Args:
      config: of the run.
      params: tree of all its parameters, or of their shapes.
    Returns:
      Paths of leaves.
    Raises:
      ValueError: a pattern matches no parameter, or all are frozen.
    """
    paths = list_paths(params)
    if make_lora(config) is not None:
        base = [path for path in paths if not is_adapter(path)]
        return frozenset(base) - find_matches("train.lora.full", config.train.lora.full, base)
    frozen = find_matches("train.frozen", config.train.frozen, paths)
    if len(frozen) == len(paths):
        raise ValueError(
            f"train.frozen is {config.train.frozen}, which matches all {len(paths)} parameters, so that nothing is "
            "trained: write patterns that leave some out."
        )
    return frozen
