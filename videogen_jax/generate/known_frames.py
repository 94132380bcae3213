"""Known frames of videos: from the user's images to the model's condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.video_io import fit_frame
from videogen_jax.diffusion.tasks import nearest_known
from videogen_jax.run.model import Model

Frames = Mapping[int, np.ndarray]  # number of the frame in its video, from 0, to (h, w, 3) uint8


def check_known(model: Model, videos: Sequence[Frames]) -> None:
    """Raises ValueError for frames that the model cannot be conditioned on, naming those that it can.

    Args:
      model: of `model.make_model`.
      videos: known frames of each video.
    """
    config = model.config
    numbers = sorted({number for frames in videos for number in frames})
    if not numbers:
        return
    if config.model.conditioning != "frames":
        raise ValueError(
            f"This model was trained with model.conditioning={config.model.conditioning!r} and knows no frames: leave "
            "the pictures out, or train one like configs/i2v_512.py."
        )
    frames = config.data.frames
    if numbers[0] < 0 or numbers[-1] >= frames:
        worst = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise ValueError(
            f"Frame {worst} is said to be known, but a video of this model has frames 0 to {frames - 1}: choose among "
            "them."
        )
    if not config.tasks.frames and not config.tasks.image:
        raise ValueError(
            "This model was never shown known frames (tasks.image=0, tasks.frames=0): leave the pictures out, or train "
            "one with tasks.image above 0."
        )
    first = list(range(config.known.first))
    if not config.tasks.frames and any(sorted(frames) != first for frames in videos if frames):
        alone = "frame alone" if len(first) == 1 else f"{len(first)} frames alone"
        wanted = "frame 0" if len(first) == 1 else f"frames 0 to {first[-1]}"
        raise ValueError(
            f"Frames {', '.join(map(str, numbers))} are said to be known, but this model was trained with the first "
            f"{alone} (tasks.frames=0): give {wanted}, or train one with tasks.frames above 0."
        )


def fit_known(frames: Frames, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes and crops known frames to the size of the model's videos, and logs where that cuts something off.

    Args:
      frames: of one video.
      count: F, frames of the video.
      size: (H, W).
    Returns:
      (n, H, W, 3) uint8 in order, and (F,) bool, which of the video's frames these are.
    """
    mask = np.zeros(count, bool)
    mask[list(frames)] = True
    fitted = []
    for number in sorted(frames):
        height, width = frames[number].shape[:2]
        if height * size[1] != width * size[0]:
            logging.info(
                "Frame %d of %dx%d pixels has another aspect than the model's videos: resized to cover %dx%d, and "
                "cropped to the centre.",
                *(number, height, width, *size),
            )
        fitted.append(fit_frame(frames[number], size))
    return np.stack(fitted), mask


def encode_known(
    model: Model, latents: LatentInfo | None, videos: Sequence[Frames]
) -> tuple[np.ndarray, np.ndarray]:
    """Known frames as the model sees videos; only these are encoded.

    Args:
      model: of `model.make_model`.
      latents: of its data set; None for pixels.
      videos: known frames of each of N videos.
    Returns:
      (N, F, H, W, C) float32, in latents where the model has them, zeros at unknown frames; and (N, F) bool, the known
      ones.
    Raises:
      ValueError: only a part of a latent's frames is known, or the autoencoder's weights are others than those that
        encoded the data set.
      FileNotFoundError: they are not there.
    """
    encode, stride, causal = model.latent_space.make_encode(latents)
    frames, *size = model.clip_shape
    encoded, masks = [], []
    for known in videos:
        video = np.zeros(model.video_shape, np.float32)
        mask = np.zeros(len(video), bool)
        if known:
            pixels, mask = fit_known(known, frames, tuple(size))
            mask = latent_mask(mask, stride) if causal else mask
            video[mask] = encode(pixels)
        encoded.append(video)
        masks.append(mask)
    return np.stack(encoded), np.stack(masks)


def latent_mask(known: np.ndarray, stride: int) -> np.ndarray:
    """Which latent frames of a causal autoencoder are known: those all of whose frames are, and all frames before.

    Args:
      known: (1 + k stride,) bool.
      stride: frames of a latent; the first is of the first frame alone.
    Returns:
      (1 + k,) bool.
    Raises:
      ValueError: a latent is known in part, or an earlier frame is not.
    """
    parts = known[1:].reshape(-1, stride)
    if np.any(known[1:] & ~known[:-1]) or np.any(parts.any(1) != parts.all(1)):
        raise ValueError(
            f"The autoencoder makes a latent of {stride} frames, which depends on all frames before: known frames "
            f"must be the first 1, {1 + stride}, {1 + 2 * stride} and so on."
        )
    return np.concatenate([known[:1], parts.all(1)])


def condition_on_frames(
    model: Model, video: np.ndarray, mask: np.ndarray, seeds: Sequence[int]
) -> dict[str, Any]:
    """The condition of known frames: with a little noise, as in training, of each video's own seed.

    Args:
      model: of `model.make_model`.
      video: (N, F, H, W, C) of `encode_known`.
      mask: (N, F) bool.
      seeds: N.
    Returns:
      Entries of a condition.
    """
    conditioning = model.conditioning
    noise = [np.random.default_rng([seed, 0]).standard_normal(video.shape[1:]) for seed in seeds]
    sigma = np.float32(conditioning.sampling_noise)
    noisy = video + sigma * np.stack(noise).astype(np.float32)
    known = nearest_known(jnp.asarray(noisy), mask, model.config.model.causal)
    frames = {"known": np.asarray(known), "mask": mask.astype(np.float32)}
    return conditioning.empty(video.shape) | frames
