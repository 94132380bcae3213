"""Samples in training are bounded in frames, size and memory, whatever the videos are."""

import struct

import numpy as np

from videogen_jax.data import video_io
from videogen_jax.train import log_samples, metrics


def test_shown_videos_are_bounded_and_decoded_one_by_one():
    decoded = []

    def decode(latents):
        """Frame t of video i is one grey of 100 i + t / 5."""
        decoded.append(len(latents))
        levels = latents.reshape(1, 1, 1, 1, 1) + np.arange(480).reshape(1, -1, 1, 1, 1) // 5
        return np.broadcast_to(levels, (1, 480, 512, 384, 3)).astype(np.uint8)

    latents = np.float32([0, 100]).reshape(2, 1, 1, 1, 1)
    shown, share = log_samples.reduce_videos(latents, decode, frames=64, side=192)
    assert shown.shape == (2, 64, 192, 144, 3) and decoded == [1, 1]
    assert (
        share == 64 / 480
    )  # the rate falls as the number of frames, so that a video takes its time
    assert shown[:, 0, 0, 0, 0].tolist() == [0, 100]
    assert shown[:, -1, 0, 0, 0].tolist() == [95, 195]
    assert np.all(np.diff(shown[0, :, 0, 0, 0].astype(int)) >= 0)


def test_small_and_short_videos_are_shown_as_they_are():
    videos = np.random.default_rng(0).integers(0, 256, (3, 8, 24, 16, 3), np.uint8)
    shown, share = log_samples.reduce_videos(videos, lambda video: video, frames=64, side=192)
    np.testing.assert_array_equal(shown, videos)
    assert share == 1


def test_files_are_small_and_captions_are_lines(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(metrics, "write_animation", lambda *arguments: sent.append(arguments))
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (2, 4, 16, 16, 3), np.uint8).repeat(4, 2).repeat(4, 3)
    captions = ["a\nb", "grün"]
    log_samples.write_videos(None, tmp_path, 7, "prompts", videos, 2.5, None, captions)
    folder = tmp_path / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_00000007.mp4",
        "step_00000007.txt",
    ]
    assert (folder / "step_00000007.txt").read_text("utf-8") == "a b\ngrün\n"
    frames = list(video_io.read_frames(folder / "step_00000007.mp4"))
    assert len(frames) == 4 and frames[0][1].shape == (68, 136, 3)
    np.testing.assert_allclose([seconds for seconds, _ in frames], [0, 0.4, 0.8, 1.2], atol=0.01)
    (sent,) = sent
    assert sent[2] == "samples/prompts" and sent[3][:6] == b"GIF89a"
    width, height = struct.unpack("<HH", sent[3][6:10])
    assert sent[4] == (width, height) and width >= 136 and height >= 68
