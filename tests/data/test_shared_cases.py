"""Small files that were misread once, where their folder is there: what a player shows of each."""

import pathlib

import numpy as np
import pytest

from tests.data.made_videos import BLUE, GREEN, RED, WHITE, numbers, quarters
from videogen_jax.data.image_io import ImageError, read_image
from videogen_jax.data.video_io import VideoError, probe_video, read_frames

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason=f"there are no files in {CASES}")

ALL = list(range(32))
UPRIGHT = (RED, GREEN, BLUE, WHITE)
CLEAR = (RED, (255,) * 3, BLUE, (255,) * 3)
SHOWN = {  # file: quarters, numbers of the frames at 8 frames per second
    "plain/plain.mp4": (UPRIGHT, ALL),
    "hflip/hflip.mp4": ((GREEN, RED, WHITE, BLUE), ALL),
    "vflip/vflip.mp4": ((BLUE, WHITE, RED, GREEN), ALL),
    "rot90/rot90.mp4": ((GREEN, WHITE, RED, BLUE), ALL),
    "mkvcrop/mkvcrop.mkv": ((GREEN, GREEN, WHITE, WHITE), None),
    "alpha_pngmov/alpha_pngmov.mov": (CLEAR, ALL),
    "alpha_qtrle/alpha_qtrle.mov": (CLEAR, ALL),
    "alpha_vp8/alpha_vp8.webm": (CLEAR, ALL),
    "alpha_vp9/alpha_vp9.webm": (CLEAR, ALL),
    "untagged_hd/untagged_hd.mp4": (UPRIGHT, ALL),
    "concat_webm/concat_webm.webm": (UPRIGHT, ALL + ALL),
    "jump/jump.mkv": (UPRIGHT, ALL[:16]),
    "twovideo/twovideo.mkv": (UPRIGHT, ALL),
    "start5mkv/start5mkv.mkv": (UPRIGHT, ALL),
    "start5webm/start5webm.webm": (UPRIGHT, ALL),
    "nokey.mkv": (UPRIGHT, ALL[16:]),
    "avidrop/avidrop.avi": (UPRIGHT, None),
    "gif_trailer/gif_trailer.gif": (UPRIGHT, [0, 1, 2, 3, 5, 6, 7]),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_player_shows(name):
    colours, expected = SHOWN[name]
    cut = []
    frames = [f for _, f in read_frames(CASES / "video" / name, fps=8, on_cut=cut.append)]
    for found, wanted in zip(quarters(frames[0]), colours, strict=True):
        assert np.abs(found - wanted).max() <= 8
    if expected:
        assert numbers(frames) == expected
    assert bool(cut) == (name == "jump/jump.mkv")
    assert probe_video(CASES / "video" / name, 8) == (*frames[0].shape[:2], len(frames))


REFUSED = {
    "video/flip1.mp4": "breaks off after 0 frames .* or is damaged there",
    "media/v024.gif": "breaks off after 16 frames",
    "media/v042.gif": "breaks off after 3 frames",
    "media/v074.mp4": "codec that this build of libav does not know",
    "media/tb_epoch.mkv": "jump by 1700000000 s there, more than --max_gap=60",
    "media/tb_hour.mp4": "jump by 3600 s there, more than --max_gap=60",
    "media/gifdur.gif": "jump by 600 s there, more than --max_gap=60",
    "media/big.gif": "13000x13000 .169.0 megapixels., more than --max_megapixels=50",
    "media/just.png": "13300x13300 .176.9 megapixels., more than --max_megapixels=50",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name):
    with pytest.raises((VideoError, ImageError), match=REFUSED[name]):
        if name.endswith(".png"):
            read_image(CASES / name)
        else:
            list(read_frames(CASES / name, fps=8))
