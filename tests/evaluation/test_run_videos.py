"""Reconstructions of held-out clips by a stand-in for an autoencoder; test_scoring makes videos with a run."""

import types

import numpy as np
import pytest

from videogen_jax.evaluation import run_videos
from videogen_jax.evaluation.clip_sets import Clip, Window
from videogen_jax.evaluation.run_videos import Run


def make_model(seen):
    """A model of latents whose autoencoder inverts pixels, and loses the last bit."""

    def encode(frames):
        seen.append(frames.shape)
        return (255 - frames.astype(np.float32)) / 2

    space = types.SimpleNamespace(
        make_encode=lambda latents: (encode, 1, False),
        make_decode=lambda latents: lambda videos: np.uint8(255 - 2 * np.floor(videos)),
    )
    return types.SimpleNamespace(model=types.SimpleNamespace(latent_space=space), latents="info")


def make_set(lengths, size=8):
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (length, size, size, 3), np.uint8) for length in lengths]
    return lambda: (Clip(str(i), video, 8.0) for i, video in enumerate(videos))


def test_the_middle_of_each_clip_is_reconstructed_in_order():
    clips, seen = make_set([6, 2, 7, 6, 6]), []
    run = Run(5, (8, 8), 8.0, "data", False)
    made = list(run_videos.reconstruct(make_model(seen), clips, Window(4), 3, run))
    usable = [clip.video for clip in clips() if len(clip.video) > 2][:3]
    assert len(made) == 3 and seen == [(5, 8, 8, 3)] * 3
    for video, clip in zip(made, usable, strict=True):
        middle = clip[(len(clip) - 5) // 2 :][:5]
        np.testing.assert_array_equal(video[0], middle | 1)


def test_frames_are_brought_to_the_size_of_the_run_and_short_clips_are_an_error():
    run, seen = Run(5, (4, 4), 8.0, "data", False), []
    made = list(run_videos.reconstruct(make_model(seen), make_set([6]), Window(4), 1, run))
    assert made[0].shape == (1, 5, 4, 4, 3)
    with pytest.raises(ValueError, match="0 of the reference cannot be .*has 4 frames, but 5"):
        list(run_videos.reconstruct(make_model(seen), make_set([4, 6]), Window(4), 2, run))
