"""Parts of videos: the frames of decoding from the start, without decoding from the start."""

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.made_videos import make_frames, numbers, remux, write
from videogen_jax.data import video_decoding
from videogen_jax.data.video_io import VideoError, probe_video, read_frames, read_numbered_frames
from videogen_jax.data.video_spans import Span

COUNT = 120
FPS = 8
OPEN_GOP = {"x264-params": "open-gop=1:keyint=16:min-keyint=16:bframes=3:scenecut=0", "crf": "8"}
UNEVEN = np.cumsum([0, *np.tile([0.05, 0.2, 0.125, 0.08, 0.17], 24)])[:COUNT]


def moving_frames():
    """Frames whose centre and corners differ from one to the next, so that wrong references show."""
    rng = np.random.default_rng(0)
    frames = np.concatenate([make_frames(30)] * 4)
    frames[:, :16] = rng.integers(0, 256, (COUNT, 2, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return frames


CASES = {
    "closed.mp4": ("libx264", {"g": "16", "bf": "3"}, None),
    "open.mp4": ("libx264", OPEN_GOP, None),
    "open.mkv": ("libx264", OPEN_GOP, None),
    "one_keyframe.mp4": ("libx264", {"g": "1000"}, None),
    "refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=16:bframes=0"}, None),
    "uneven.mp4": ("libx264", {"g": "16", "bf": "3"}, UNEVEN),
    "late.mkv": ("libx264", {"g": "16"}, 3.3 + np.arange(COUNT) / FPS),
    "vp9.webm": ("libvpx-vp9", {"g": "16", "crf": "20"}, None),
    "fragments.mp4": ("libx264", {"g": "16", "bf": "3"}, None),
    "mpeg4.avi": ("mpeg4", {"g": "16"}, None),
    "pages.gif": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    frames = moving_frames()
    for name, case in CASES.items():
        if case is None:
            pages = [Image.fromarray(frame) for frame in frames]
            pages[0].save(folder / name, save_all=True, append_images=pages[1:], duration=120)
            continue
        codec, options, times = case
        write(folder / name, frames, codec, times=times, fps=FPS, options=options)
    with (
        av.open(str(folder / "closed.mp4")) as source,
        av.open(
            str(folder / "fragments.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}
        ) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return folder


def expected(path, span):
    """The frames of a span by their times, from a reading of the whole file."""
    end = np.inf if span.end is None else span.end
    found = [(t, f) for t, f in read_frames(path) if span.start - 0.002 <= t < end - 0.002]
    return [t - found[0][0] for t, _ in found], [f for _, f in found]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "span",
    [Span(0.5, 1.0), Span(5.0, 7.5), Span(6.1, 6.3), Span(9.4, 12.0), Span(10.0), Span(0, 4.0)],
)
def test_a_span_holds_the_frames_of_decoding_from_the_start(folder, name, span):
    times, frames = expected(folder / name, span)
    found = list(read_numbered_frames(folder / name, span=span))
    assert [index for index, _, _ in found] == list(range(len(frames)))
    np.testing.assert_allclose([t for _, t, _ in found], times, atol=1e-6)
    assert all(np.array_equal(got, want) for (_, _, got), want in zip(found, frames, strict=True))


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "vp9.webm", "uneven.mp4"])
def test_only_the_span_and_its_group_of_pictures_are_decoded(folder, name, monkeypatch):
    decoded = []
    whole_frames = video_decoding._whole_frames

    def count(*arguments):
        for frame in whole_frames(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video_decoding, "_whole_frames", count)
    assert list(read_numbered_frames(folder / name, span=Span(12.0, 13.0)))
    assert len(decoded) <= 1 + 16 + 8 + 1 + 8  # the first, a group, the span, what ends it


def test_a_span_is_resampled_from_its_first_frame_and_probed_alike(folder):
    path, span = folder / "uneven.mp4", Span(5.03, 8.2)
    times, frames = expected(path, span)
    for fps in (4, 8, 30):
        found = list(read_numbered_frames(path, fps, span=span))
        for index, seconds, frame in found:
            latest = np.flatnonzero(np.asarray(times) <= seconds + 0.002)[-1]
            assert index == latest and np.array_equal(frame, frames[latest])
        assert probe_video(path, fps, span=span) == (48, 64, len(found))
        part = list(read_numbered_frames(path, fps, first=3, count=5, span=span))
        assert [seconds for _, seconds, _ in part] == [seconds for _, seconds, _ in found[3:8]]


def test_files_whose_times_start_anew_are_decoded_from_the_start(tmp_path):
    path = write(tmp_path / "a.mkv", make_frames(30), options={"g": "4"})
    data = path.read_bytes()
    clusters = data.index(bytes.fromhex("1f43b675"))
    end = data.find(bytes.fromhex("1c53bb6b"), clusters)  # Cues
    segment = data.index(bytes.fromhex("18538067")) + 4
    unknown = bytes.fromhex("01ffffffffffffff")
    path.write_bytes(data[:segment] + unknown + data[segment + 8 : end] + data[clusters:end])
    for span in (Span(2.5, 3.5), Span(4.5, 6.0)):
        _, frames = expected(path, span)
        found = [frame for _, _, frame in read_numbered_frames(path, span=span)]
        assert numbers(found) == numbers(frames) and len(found) >= 8


def test_damage_outside_a_span_is_not_looked_for(folder, tmp_path):
    with av.open(str(folder / "closed.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size and 2.2 < p.pts * p.time_base < 3]
        places = [(packet.pos, packet.size) for packet in packets]
    spoilt = bytearray((folder / "closed.mp4").read_bytes())
    for position, size in places:
        spoilt[position + 8 : position + size] = b"\xff" * (size - 8)
    path = tmp_path / "a.mp4"
    path.write_bytes(spoilt)
    with pytest.raises(VideoError, match="breaks off"):
        list(read_frames(path))
    with pytest.raises(VideoError, match="breaks off after .* or is damaged there"):
        list(read_numbered_frames(path, span=Span(2.1, 4.0)))
    for span in (Span(0.0, 2.0), Span(8.0, 9.0)):
        _, frames = expected(folder / "closed.mp4", span)
        found = [frame for _, _, frame in read_numbered_frames(path, span=span)]
        assert len(found) == len(frames) and all(map(np.array_equal, found, frames))


@pytest.mark.parametrize("name", ["closed.mp4", "vp9.webm", "pages.gif", "mpeg4.avi"])
def test_a_span_without_frames_is_an_error(folder, name):
    last = 119 * (0.12 if name.endswith("gif") else 1 / FPS)
    with pytest.raises(VideoError, match=rf"{name} has its last frame at {last:.2f} s, before"):
        list(read_numbered_frames(folder / name, 8, span=Span(20.0, 21.0)))
    with pytest.raises(VideoError, match=rf"{name} has no frame from 5.01 s to 5.02 s"):
        list(read_numbered_frames(folder / name, 8, span=Span(5.01, 5.02)))
    with pytest.raises(VideoError, match="before"):
        probe_video(folder / name, 8, span=Span(20.0))


def test_a_film_is_not_decoded_up_to_the_span(tmp_path, monkeypatch):
    """Of 50 minutes at a frame every five seconds, a span near the end."""
    frames = np.zeros((600, 16, 16, 3), np.uint8)
    frames[:] = (np.arange(600) % 250)[:, None, None, None]
    times = 5.0 * np.arange(600)
    path = write(tmp_path / "film.mp4", frames, times=times, options={"g": "25"})
    advanced = []
    advance = video_decoding.clock.Clock.advance
    monkeypatch.setattr(
        video_decoding.clock.Clock,
        "advance",
        lambda self, time: advanced.append(time) or advance(self, time),
    )
    found = list(read_numbered_frames(path, span=Span(2950.0, 2990.0)))
    means = [frame.mean() for _, _, frame in found]
    np.testing.assert_allclose(means, np.arange(590, 598) % 250, atol=3)
    assert len(advanced) < 50


def test_spans_of_remuxed_files_without_some_packets(folder, tmp_path):
    """A file that begins with frames that no keyframe precedes: its seconds count from the first keyframe."""
    count = 0

    def drop(packet):
        nonlocal count
        count += 1
        return None if count == 1 else packet

    path = remux(folder / "closed.mp4", tmp_path / "cut.mkv", drop)
    span = Span(5.0, 7.0)
    _, frames = expected(path, span)
    found = [frame for _, _, frame in read_numbered_frames(path, span=span)]
    assert len(found) == len(frames) > 10 and all(map(np.array_equal, found, frames))
