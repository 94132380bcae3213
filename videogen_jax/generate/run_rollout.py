"""Long videos of a run's model: the chunks and prefixes that it was trained for, and its rollout."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from absl import logging

from videogen_jax.diffusion.tasks import allowed_lengths
from videogen_jax.generate.rollout import Rollout, Window, make_rollout
from videogen_jax.generate.run_sampler import check_settings
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.run.model import Grid, Model
from videogen_jax.run.state import compute_dtype


class Plan(NamedTuple):
    """How a long video is made of chunks, in latent frames."""

    chunk: int  # generated at a time
    lengths: tuple[int, ...]  # prefixes that a chunk attends to, rising


def plan_rollout(model: Model, chunk: int | None = None, prefix: int | None = None) -> Plan:
    """How a model makes long videos.

    Args:
      model: of `model.make_model`.
      chunk: latent frames generated at a time; by default the config's.
      prefix: latent frames that are cached; by default the most that the model was trained with.
    Returns:
      The plan.
    Raises:
      ValueError: the model makes no long videos, or was not trained for these numbers; the sentence names those.
    """
    config = model.config
    if not config.tasks.prefix or config.model.attention != "factorized":
        raise ValueError(
            f"This model makes videos of {config.data.frames} frames and continues none (model.causal is "
            f"{config.model.causal}, tasks.prefix {config.tasks.prefix:g}, model.attention "
            f"{config.model.attention!r}): leave --num_frames out, or train one like configs/long_512.py."
        )
    frames = model.token_grid[0]
    chunk = config.prefix.chunk if chunk is None else chunk
    trained = sorted(config.prefix.lengths)
    # The chunk after the first one must find the shortest prefix there.
    least, most = trained[0], frames - trained[0]
    if least > most:
        raise ValueError(
            f"This model was trained on {frames} latent frames with prefixes of {least} at least, so that none of its "
            "chunks is long enough to be continued: train one with a shorter one among prefix.lengths."
        )
    if not least <= chunk <= most:
        raise ValueError(
            f"A chunk of {chunk} latent frames is none that the model was trained with: its windows have {frames}, "
            f"with prefixes of {least} at least; choose one of {least} to {most}."
        )
    allowed = allowed_lengths(trained, frames, chunk)
    if prefix is not None and prefix not in allowed:
        raise ValueError(
            f"A prefix of {prefix} latent frames ahead of a chunk of {chunk} is none that the model was trained with: "
            f"choose one of {', '.join(map(str, allowed))}."
        )
    lengths = tuple(length for length in allowed if prefix is None or length <= prefix)
    return Plan(chunk, lengths)


def warn_of_hidden_frames(plan: Plan, given: int) -> None:
    """Warns where a chunk cannot attend to all earlier frames, since no prefix of training is as long.

    Args:
      plan: of `plan_rollout`.
      given: latent frames that the video begins with.
    """
    generated = range(given or plan.chunk, max(plan.lengths), plan.chunk)
    if hidden := [count for count in generated if count not in plan.lengths]:
        logging.warning(
            "Behind %s latent frames a chunk sees fewer of them: prefix.lengths of training are %s.",
            *(" and ".join(map(str, hidden)), ", ".join(map(str, plan.lengths))),
        )


def begins_with_image(model: Model, plan: Plan, image: bool) -> bool:
    """How a long video begins.

    Args:
      model: of `model.make_model`.
      plan: of `plan_rollout`.
      image: a first frame is given.
    Returns:
      Whether the image is the first latent frame, which the rest continues; else it conditions the first chunk as a
      known frame, or there is none.
    Raises:
      ValueError: the model was not trained to begin so.
    """
    config = model.config
    if not image:
        if not config.tasks.text:
            raise ValueError(
                "This model was trained to continue frames only (tasks.text=0): give it the first one with --image."
            )
        return False
    if (config.tasks.image and config.known.first == 1) or config.tasks.frames:
        return False
    if 1 not in plan.lengths or config.model.patch_size[0] != 1:
        raise ValueError(
            f"This model was not trained to begin with an image (tasks.image is {config.tasks.image:g}, "
            f"known.first {config.known.first}, prefix.lengths are {plan.lengths}, "
            f"patches have {config.model.patch_size[0]} frames): leave --image out, or train one with tasks.image "
            "above 0, or with 1 in prefix.lengths and patches of one frame."
        )
    return True


def chunk_shape(model: Model, plan: Plan) -> tuple[int, int, int, int]:
    """(F, H, W, C) of a chunk as the model sees it."""
    return (plan.chunk * model.patch_frames, *model.video_shape[1:])


def chunk_grid(model: Model, plan: Plan) -> Grid:
    """(T, H, W) of a chunk's tokens."""
    return (plan.chunk, *model.token_grid[1:])


def make_run_rollout(
    model: Model, plan: Plan, settings: SamplerSettings, null_text: Any = None
) -> Rollout:
    """The rollout of a model.

    Args:
      model: of `model.make_model`, for the tokens of `chunk_grid`.
      plan: of `plan_rollout`.
      settings: of the sampler.
      null_text: embedding of a negative prompt, without the batch axis; by default that of no caption.
    Returns:
      The rollout.
    Raises:
      ValueError: the settings do not go with the model.
    """
    check_settings(model, settings)
    options, grid = model.config.model, model.token_grid
    if settings.first_frame_guidance_scale is not None:
        logging.warning(
            "A long video has no last frame for guidance to grow to: guidance_scale is %g everywhere.",
            settings.guidance_scale,
        )
    window = Window(
        shape=chunk_shape(model, plan),
        cache=(
            options.depth // 2,
            grid[1] * grid[2],
            options.num_heads,
            options.width // options.num_heads,
        ),
        dtype=jnp.dtype(compute_dtype(model.config.train.precision)),
        patch_frames=model.patch_frames,
        lengths=plan.lengths,
        prefix_noise=model.config.prefix.sampling_noise,
    )
    return make_rollout(
        model.apply,
        model.schedule,
        model.null_text if null_text is None else null_text,
        model.mesh,
        model.param_shardings,
        window,
        settings,
        prediction=model.prediction,
        pixels=model.latent_space.pixels,
    )


def count_chunks(model: Model, plan: Plan, frames: int, given: int) -> int:
    """Chunks that a video of so many frames needs, of which `given` latent frames are there to begin with."""
    stride = model.latent_space.describe().downsample[0]
    latents = 1 + -(-(frames - 1) // stride)  # the first one is of one frame
    return max(0, -(-(latents - given) // (plan.chunk * model.patch_frames)))


def first_frame(model: Model, latent: int) -> int:
    """The first frame of the video that a latent is of, both counted from 0."""
    stride = model.latent_space.describe().downsample[0]
    return max(0, 1 + (latent - 1) * stride)
