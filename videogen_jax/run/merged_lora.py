"""A model trained by LoRA as the model that samples: its updates are in its parameters."""

from typing import Any

import jax
import ml_collections

from videogen_jax.models import lora
from videogen_jax.run.model import Grid, Model, make_lora, make_model


def without_lora(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the merged model; its train.lora is the default."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.lora.update({"rank": 0, "alpha": None, "full": ()})
    return config


def merge_lora(model: Model, params: Any, grid: Grid | None = None) -> tuple[Model, Any]:
    """Adds LoRA's updates into the parameters.

    Args:
      model: of a run, with LoRA or without.
      params: its parameters, laid out as `model.param_shardings`.
      grid: as of `make_model`.
    Returns:
      (the model without LoRA, its parameters, laid out on the same mesh); the same ones if there is none.
    """
    options = make_lora(model.config)
    if options is None:
        return model, params
    merged = make_model(without_lora(model.config), model.mesh, model.null_text, grid)
    merge = jax.jit(lora.merge, static_argnums=1, out_shardings=merged.param_shardings)
    return merged, merge(params, options.scale)
