"""Times of frames: from 0 on whatever the file says, continued where they start anew, ended before a jump."""

import av
import numpy as np
import pytest
from PIL import Image

from tests.data import made_videos
from tests.data.made_videos import make_frames, numbers, remux, write
from videogen_jax.data import read_limits
from videogen_jax.data.clock import Clock, order_packets
from videogen_jax.data.read_limits import Limits
from videogen_jax.data.video_io import VideoError, probe_video, read_frames, read_video


def run(timestamps, gap=0.125, **limits):
    clock = Clock(gap, Limits(**limits))
    return [clock.advance(time) for time in timestamps], clock


@pytest.mark.parametrize(
    ("timestamps", "expected"),
    [
        ([5.0, 5.125, 5.25], [0, 0.125, 0.25]),
        ([-0.25, -0.125, 0.0], [0, 0.125, 0.25]),
        ([None, None, None], [0, 0.125, 0.25]),
        ([1.0, None, 1.5, None], [0, 0.125, 0.5, 0.875]),  # the gap is that of the frames before
        ([0.0, 0.2, 0.4, 0.0, 0.2, 0.4], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([9.0, 10.0, 11.0, 3.0, 4.0], [0, 1, 2, 3, 4]),
        ([0.0, 0.2, 0.19, 0.4], [0, 0.2, 0.2, 0.4]),  # disorder, no new start
        ([0.0, 0.0, 0.125, 0.125], [0, 0, 0.125, 0.125]),
        ([0.0, 0.5, 2.0, 2.5], [0, 0.5, 2.0, 2.5]),
    ],
)
def test_seconds_of_timestamps(timestamps, expected):
    seconds, clock = run(timestamps)
    np.testing.assert_allclose(seconds, expected, atol=1e-9)
    assert clock.ended is None and clock.count == len(expected)


def test_a_jump_ends_the_video():
    seconds, clock = run([0, 1, 2, 63], max_gap=60)
    assert seconds == [0, 1, 2, None] and (clock.count, clock.jump) == (3, 61)
    assert clock.ended == (
        "ends after 3 frames (2.00 s), because its timestamps jump by 61 s there, more than --max_gap=60"
    )
    assert run([0, 1, 2, 62], max_gap=60)[0][-1] == 62


def test_packets_in_the_order_of_showing():
    decoding = [(0, True), (3, False), (1, False), (2, False), (6, True), (4, False), (5, False)]
    assert list(order_packets(decoding)) == [0, 1, 2, 3, 4, 5, 6]
    anew = [*decoding, (0, True), (2, False), (1, False)]
    assert list(order_packets(anew)) == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert list(order_packets([(None, True), (None, False)])) == [None, None]


TIMES = np.arange(32) / 8
CONTAINERS = {"a.mkv": "libx264", "a.webm": "libvpx-vp9", "a.mp4": "libx264", "a.mov": "mpeg4"}


def read(path, fps=8, **limits):
    cut = []
    frames = [f for _, f in read_frames(path, fps, limits=Limits(**limits), on_cut=cut.append)]
    return frames, cut


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("start", [0.5, 5, 3000])
def test_a_start_above_zero_counts_as_zero(tmp_path, name, start):
    path = write(tmp_path / name, make_frames(32), CONTAINERS[name], times=start + TIMES)
    frames, cut = read(path)
    assert numbers(frames) == list(range(32)) and not cut
    assert probe_video(path, 8) == (48, 64, 32)


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_segment_of_a_stream_that_was_split(tmp_path, suffix):
    """The second half of a stream, from within a group of pictures on, with the timestamps of the whole."""
    whole = write(tmp_path / "whole.ts", make_frames(32), options={"g": "8", "bf": "2"})
    count = iter(range(100))
    later = remux(whole, tmp_path / f"later{suffix}", lambda p: p if next(count) >= 11 else None)
    frames, _ = read(later)
    assert numbers(frames) == list(range(16, 32))
    assert probe_video(later, 8)[2] in (15, 16, 17)  # it knows of packets alone


CUT = {
    "a.mkv": "libx264",
    "a.mp4": "libx264",
    "a.mov": "mpeg4",
    "a.avi": "mpeg4",
    "a.webm": "libvpx",
    "b.webm": "libvpx-vp9",
    "b.mkv": "mpeg2video",
    "h.avi": "h263",
    "h.mkv": "libx265",
}


@pytest.mark.parametrize("name", CUT)
def test_without_a_first_keyframe_the_next_one_is_the_start(tmp_path, name):
    codec = CUT[name]
    frames = make_frames(32, (144, 176) if codec == "h263" else made_videos.SIZE)
    x265 = "keyint=16:min-keyint=16:bframes=0:log-level=0"
    options = {"g": "16", "bf": "0", "x265-params": x265}
    whole = write(tmp_path / f"whole_{name}", frames, codec, fps=25, options=options)
    count = iter(range(100))
    path = remux(whole, tmp_path / name, lambda p: p if next(count) else None)
    found = [frame for _, frame in read_frames(path)]
    assert numbers(found) == list(range(16, 32))


def test_video_that_begins_after_its_audio(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(48):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 8000, 1000 * i
            container.mux(audio.encode(sound))
        for i, image in enumerate(make_frames(32)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = 16 + i
            container.mux(video.encode(frame))
        container.mux(video.encode())
        container.mux(audio.encode())
    assert numbers(read(path)[0]) == list(range(32))


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx"), ("a.mkv", "libx264")])
def test_timestamps_that_start_anew_continue(tmp_path, name, codec):
    """Two files of Matroska one behind the other are one whose timestamps start anew."""
    path = write(
        tmp_path / name,
        make_frames(32),
        codec,
        times=TIMES,
        options={"g": "8", "auto-alt-ref": "0"},
    )
    data = path.read_bytes()
    clusters = data.index(bytes.fromhex("1f43b675"))
    end = data.find(bytes.fromhex("1c53bb6b"), clusters)  # Cues
    end = len(data) if end < 0 else end
    segment = data.index(bytes.fromhex("18538067")) + 4
    unknown = bytes.fromhex("01ffffffffffffff")  # size of the segment
    joined = data[:segment] + unknown + data[segment + 8 : end] + data[clusters:end]
    path.write_bytes(joined)
    frames, cut = read(path)
    assert numbers(frames) == [*range(32), *range(32)] and not cut
    assert probe_video(path, 8) == (48, 64, 64)
    assert read_video(path).shape[0] == 64


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".gif"])
def test_a_jump_of_minutes_ends_the_video_and_is_told(tmp_path, suffix):
    path = tmp_path / f"jump{suffix}"
    if suffix == ".gif":
        pages = [Image.fromarray(frame) for frame in make_frames(32)]
        durations = [120] * 15 + [600_000] + [120] * 16
        pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations)
    else:
        write(path, make_frames(32), times=np.where(np.arange(32) < 16, TIMES, TIMES + 600))
    frames, cut = read(path)
    assert numbers(frames)[:16:4] == [0, 4, 8, 12] and len(frames) in (15, 16)
    (sentence,) = cut
    assert sentence.startswith(f"{path} ends after 16 frames") and "--max_gap=60" in sentence
    assert probe_video(path, 8) == (48, 64, len(frames))
    assert len(read(path, max_gap=1000)[0]) > 4800 and not read(path, max_gap=1000)[1]


def test_times_out_of_all_proportion_are_refused(tmp_path):
    path = write(tmp_path / "hour.mp4", make_frames(4), times=[0, 0.125, 0.25, 3600])
    for call in (read, lambda path: probe_video(path, 8)):
        with pytest.raises(
            VideoError,
            match=r"hour\.mp4 ends after 3 frames .*3600 s there, more than --max_gap=60 for",
        ):
            call(path)
    slow = write(tmp_path / "slow.mp4", make_frames(8), times=30 * np.arange(8))
    for call in (read, lambda path, **limits: probe_video(path, 8, Limits(**limits))):
        with pytest.raises(
            VideoError, match=r"slow\.mp4 is due 240 frames .* holds 2, more than --max_repeats=100"
        ):
            call(slow, max_repeats=100)
    assert len(read(slow)[0]) == 1920 and read_limits.DEFAULTS.max_repeats == 300
