"""Frames that a video is to show: from the user's pictures to what the model is told."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.video_io import fit_frame
from videogen_jax.diffusion.tasks import spread_known
from videogen_jax.generate import run_sampler
from videogen_jax.models.chunks import encode_chunks, make_encoder
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import conditioning
from videogen_jax.run import model as run_model

Frames = Mapping[int, np.ndarray]  # number of the frame in its video, from 0, to (h, w, 3) uint8


def check_known(config: ml_collections.ConfigDict, videos: Sequence[Frames]) -> None:
    """Refuses frames that the model cannot be told of.

    Args:
      config: of the run.
      videos: known frames of each video.
    Raises:
      ValueError: says which it can be told of.
    """
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
    if not config.tasks.frames and numbers != [0]:
        raise ValueError(
            f"Frames {', '.join(map(str, numbers))} are said to be known, but this model was trained with the first "
            "frame alone (tasks.frames=0): give frame 0, or train one with tasks.frames above 0."
        )


def fit_known(config: ml_collections.ConfigDict, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Brings known frames to the size of the config's clips, and says so where that cuts something off.

    Args:
      config: of the run.
      frames: of one video.
    Returns:
      (n, H, W, 3) uint8 in order, and (F,) bool, which of a video's frames these are.
    """
    size = (config.data.height, config.data.width)
    mask = np.zeros(config.data.frames, bool)
    mask[list(frames)] = True
    fitted = []
    for number in sorted(frames):
        height, width = frames[number].shape[:2]
        if height * size[1] != width * size[0]:
            logging.info(
                "Frame %d of %dx%d pixels has another aspect than the model's videos: resized to cover %dx%d, and "
                "cut in the middle.",
                *(number, height, width, *size),
            )
        fitted.append(fit_frame(frames[number], size))
    return np.stack(fitted), mask


def encode_known(
    config: ml_collections.ConfigDict, latents: LatentInfo | None, videos: Sequence[Frames]
) -> tuple[np.ndarray, np.ndarray]:
    """Known frames as the model sees videos; only these are encoded.

    Args:
      config: of the run.
      latents: of its data set; None for pixels.
      videos: known frames of each of N videos.
    Returns:
      (N, F, H, W, C) float32, in latents where the model has them, zeros at frames that are not known; and (N, F) bool,
      those that are.
    Raises:
      ValueError: frames are known that a latent frame has only a part of, or the autoencoder's weights are others than
        those that encoded the data set.
      FileNotFoundError: they are not there.
    """
    encode, stride, causal = lambda pixels: pixels.astype(np.float32) / 127.5 - 1, 1, False
    if latents is not None:
        autoencoder, params = run_sampler.load_autoencoder(config, latents)
        stride, causal = autoencoder.downsample[0], autoencoder.causal
        devices = jax.local_devices()
        mesh = meshes.make_mesh(data=len(devices), devices=devices)
        size = (config.data.height, config.data.width)
        encoder = make_encoder(autoencoder, mesh, config.vae.chunk_frames * mesh.size, size)
        params = encoder.put_params(params)
        encode = lambda pixels: np.concatenate(list(encode_chunks(encoder, params, pixels)))  # noqa: E731
    encoded, masks = [], []
    for frames in videos:
        pixels, mask = fit_known(config, frames)
        mask = latent_mask(mask, stride) if causal else mask
        video = np.zeros(run_model.video_shape(config), np.float32)
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


def tell_known(
    config: ml_collections.ConfigDict, video: np.ndarray, mask: np.ndarray, seeds: Sequence[int]
) -> dict[str, Any]:
    """What the model is told of known frames: with a little noise, as in training, of each video's own seed.

    Args:
      config: of the run.
      video: of `encode_known`, as the mask.
      mask: (N, F) bool.
      seeds: N.
    Returns:
      Entries of a condition.
    """
    sigma = config.known.sampling_noise
    noise = [np.random.default_rng([seed, 0]).standard_normal(video.shape[1:]) for seed in seeds]
    noisy = video + np.float32(sigma) * np.stack(noise).astype(np.float32)
    known = spread_known(jnp.asarray(noisy), mask, config.model.causal)
    shown = {"known": np.asarray(known), "mask": mask.astype(np.float32)}
    return conditioning.tell_nothing(config, video) | shown
