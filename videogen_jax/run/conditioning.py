"""What a config has a model told beside the noisy video: micro-conditions, and frames that are known."""

from typing import Any

import jax
import ml_collections
import numpy as np

from videogen_jax.diffusion.tasks import (
    AUGMENTATION,
    TASKS,
    Tasks,
    augmentation_level,
    check_tasks,
)
from videogen_jax.models.dit import CONDITIONINGS
from videogen_jax.models.positions import ADDED_IN_TIME

BATCH_CONDITIONS = ("fps", "motion")  # what a batch can tell of a clip beside its caption
MICRO_CONDITIONS = (*BATCH_CONDITIONS, AUGMENTATION)


def make_tasks(config: ml_collections.ConfigDict, frames: int) -> Tasks | None:
    """The config's tasks.

    Args:
      config: of the run.
      frames: latent frames of a clip, T.
    Returns:
      The tasks; None for a model that is told of no frames.
    Raises:
      ValueError: shares, prefixes and model do not go together; the sentence names the line.
    """
    model = config.model
    shares = {name: config.tasks[name] for name in TASKS}
    if frames == 1:
        # A picture, in a bucket beside those of videos, has no other frames to be told of.
        shares = dict.fromkeys(TASKS, 0.0) | {"text": 1.0}
    tasks = Tasks(
        shares=shares,
        patch_frames=model.patch_size[0],
        causal=model.causal,
        noise_mean=config.known.noise_mean,
        noise_std=config.known.noise_std,
        lengths=tuple(config.prefix.lengths),
        prefix_noise=config.prefix.noise,
        time_cycle=model.time_cycle,
    )
    check_tasks(tasks, frames)
    if not 0 <= config.prefix.sampling_noise < 1:
        raise ValueError(
            f"prefix.sampling_noise is {config.prefix.sampling_noise}: it is a share of the clock, 0 to 1."
        )
    # Each of these takes in what the ones before it do.
    if model.conditioning in CONDITIONINGS[: CONDITIONINGS.index(tasks.conditioning)]:
        raise ValueError(
            f"model.conditioning is {model.conditioning!r}, but the tasks of the config tell the model of frames: set "
            f"it to {tasks.conditioning!r}, or tasks.text to 1 and the others to 0."
        )
    if tasks.shares["prefix"] and not model.time_cycle and model.positions in ADDED_IN_TIME:
        raise ValueError(
            f"tasks.prefix is {tasks.shares['prefix']:g}, but positions {model.positions!r} without a cycle end with "
            f"the clip: set model.time_cycle to {frames} or more, or model.positions to 'rope' or 'dit'."
        )
    if model.time_cycle and model.time_cycle < frames:
        raise ValueError(
            f"model.time_cycle of {model.time_cycle} is less than the {frames} latent frames of a clip, two of which "
            "would have the same position: set it to at least as many, or to 0."
        )
    return None if model.conditioning == "none" and not model.time_cycle else tasks


def check_micro_conditions(config: ml_collections.ConfigDict) -> None:
    """Refuses micro-conditions that nothing can tell.

    Raises:
      ValueError: lists those that there are.
    """
    names = config.model.micro_conditions
    unknown = [name for name in names if name not in MICRO_CONDITIONS]
    if unknown:
        raise ValueError(
            f"Unknown model.micro_conditions {', '.join(map(repr, unknown))}: "
            f"choose among {', '.join(MICRO_CONDITIONS)}."
        )
    if AUGMENTATION in names and config.model.conditioning != "frames":
        raise ValueError(
            f"model.micro_conditions have {AUGMENTATION!r}, the noise on known frames, but model.conditioning is "
            f"{config.model.conditioning!r}: set it to 'frames', or leave the micro-condition out."
        )


def batch_conditions(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The micro-conditions that a batch brings with it."""
    return tuple(name for name in config.model.micro_conditions if name in BATCH_CONDITIONS)


def frame_conditions(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What else the model is told of frames: arguments of `VideoDiT`."""
    told = {"none": (), "prefix": ("mask",), "frames": ("known", "mask")}
    return told[config.model.conditioning] + (("start",) if config.model.time_cycle else ())


def input_channels(config: ml_collections.ConfigDict, channels: int) -> int:
    """Channels of what the model patches: the video's own, and those that tell what is known."""
    return {"none": channels, "prefix": channels + 1, "frames": 2 * channels + 1}[
        config.model.conditioning
    ]


def tell_nothing(config: ml_collections.ConfigDict, video: Any) -> dict[str, Any]:
    """What a model is told of frames where none is known.

    Args:
      config: of the run.
      video: (B, F, H, W, C), or its shape and type.
    Returns:
      Name -> array of zeros, as of `frame_conditions`, and the micro-condition of the noise on known frames.
    """
    shapes = {"known": video.shape, "mask": video.shape[:2]}
    told = {
        name: np.zeros(shapes[name], np.float32)
        for name in frame_conditions(config)
        if name in shapes
    }
    if "start" in frame_conditions(config):
        told["start"] = np.zeros(video.shape[0], np.int32)
    if AUGMENTATION in config.model.micro_conditions:
        level = augmentation_level(np.log(config.known.sampling_noise))
        told[AUGMENTATION] = np.full(video.shape[0], level, np.float32)
    return told


def abstract_conditions(config: ml_collections.ConfigDict, count: int) -> dict[str, Any]:
    """Shapes and types of the micro-conditions of a batch of `count` clips."""
    return {name: jax.ShapeDtypeStruct((count,), np.float32) for name in batch_conditions(config)}
