"""The sampler of a run's model, and the condition that it samples under."""

from typing import Any

import jax
import numpy as np

from videogen_jax.generate.generator import Programs, make_programs
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.run.model import Model


def make_run_programs(model: Model, settings: SamplerSettings, null_text: Any = None) -> Programs:
    """The programs from seeds to videos.

    Args:
      model: of `model.make_model`.
      settings: of the sampler.
      null_text: embedding of a negative prompt, without the batch axis; by default that of no caption.
    Returns:
      The programs.
    Raises:
      ValueError: the settings do not go with the model.
    """
    check_settings(model, settings)
    return make_programs(
        model.apply,
        model.schedule,
        model.null_text if null_text is None else null_text,
        model.mesh,
        model.param_shardings,
        settings,
        shape=model.video_shape,
        prediction=model.prediction,
        pixels=model.latent_space.pixels,
    )


def check_settings(model: Model, settings: SamplerSettings) -> None:
    """Raises ValueError for guidance by known frames that the model does not take, and for clipped latents."""
    scale, kind = settings.known_guidance_scale, model.conditioning.kind
    if scale is not None and kind != "frames":
        raise ValueError(
            f"known_guidance_scale is {scale:g}, but this model takes no known frames (model.conditioning={kind!r}): "
            "leave it out."
        )
    if settings.clip_x0 and not model.latent_space.pixels:
        raise ValueError(
            "clip_x0 is on, but the latents of this model have no bounds: set it to False."
        )


def make_condition(
    model: Model,
    text: Any,
    motion: float,
    shape: tuple[int, int, int, int] | None = None,
) -> dict[str, Any]:
    """The condition of videos without known frames.

    Args:
      model: of `model.make_model`.
      text: tree of rows of N, of `Texts.embed`.
      motion: bucket of the motion score, 0 (least) to 255; read by models with that micro-condition.
      shape: (F, H, W, C) of a video as the model sees it; by default a clip's.
    Returns:
      The condition, rows of N.
    """
    values = {"fps": model.fps, "motion": motion}
    count = len(jax.tree.leaves(text)[0])
    micro = {
        name: np.full(count, values[name], np.float32)
        for name in model.conditioning.batch_conditions
    }
    shape = model.video_shape if shape is None else shape
    return {"text": text} | micro | model.conditioning.empty((count, *shape))
