"""A frame is what a player shows: orientation, crop, pixel aspect, transparency and colours."""

import fractions
import itertools
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest

from tests.data import made_videos
from tests.data.made_videos import BLUE, GREEN, RED, WHITE, make_frames, numbers, quarters, write
from videogen_jax.data import color, orientation, video_io
from videogen_jax.data.video_io import VideoError, probe_video, read_frames, read_video


def assert_quarters(frame, *expected, within=8):
    for found, wanted in zip(quarters(frame), expected, strict=True):
        assert np.abs(found - wanted).max() <= within, (quarters(frame), expected)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "plain.mp4", make_frames())


# a, b, c, d of the display matrix: pixel (p, q) is shown at (a p + c q, b p + d q).
MATRICES = {
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (-1, 0, 0, -1): lambda x: x[::-1, ::-1],
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (0, -1, 1, 0): lambda x: np.rot90(x),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations(tmp_path, plain, matrix):
    path = tmp_path / "turned.mp4"
    path.write_bytes(plain.read_bytes())
    made_videos.set_display_matrix(path, *matrix)
    frames = read_video(path)
    expected = np.stack([MATRICES[matrix](frame) for frame in read_video(plain)])
    np.testing.assert_array_equal(frames, expected)
    assert probe_video(path, 8) == (*expected.shape[1:3], 8)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", path]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    ).stdout
    assert (
        np.abs(frames - np.frombuffer(raw, np.uint8).reshape(frames.shape).astype(int)).max() < 12
    )


def test_other_matrices_are_taken_for_the_nearest_orientation():
    """A pixel goes where the matrix sends it, for all signs and for a shear or scale on top."""
    image = np.arange(6).reshape(2, 3, 1)
    rows, columns = np.mgrid[:2, :3]
    for a, b, c, d in itertools.product((-2, 0, 1), repeat=4):
        straight = abs(a) + abs(d) > abs(b) + abs(c)
        if 0 in ((a, d) if straight else (b, c)) or abs(a) + abs(d) == abs(b) + abs(c):
            continue
        shown = orientation.apply(
            image, orientation.from_display_matrix([a, b, 0, c, d, 0, 0, 0, 1])
        )
        x = np.sign(a) * columns if straight else np.sign(c) * rows
        y = np.sign(d) * rows if straight else np.sign(b) * columns
        np.testing.assert_array_equal(shown[y - y.min(), x - x.min()], image)


def test_the_crop_comes_before_the_pixel_aspect(tmp_path):
    frames = make_frames(8)
    half = made_videos.write_cropped_matroska(
        tmp_path / "half.mkv", frames, (32, 0, 0, 0), (48, 64)
    )
    shown = read_video(half)
    assert shown.shape == (8, 48, 64, 3) and probe_video(half, 8) == (48, 64, 8)
    assert_quarters(shown[3], GREEN, GREEN, WHITE, WHITE)
    edges = made_videos.write_cropped_matroska(
        tmp_path / "edges.mkv", frames, (8, 8, 12, 4), (32, 48)
    )
    shown = read_video(edges)
    assert shown.shape == (8, 32, 48, 3)
    np.testing.assert_allclose(quarters(shown[0])[0], RED, atol=8)
    # The border of red and blue was at row 24, that of red and green at column 32.
    assert shown[0, 10, 2, 0] > 120 > shown[0, 13, 2, 0]
    assert shown[0, 2, 22, 0] > 120 > shown[0, 2, 25, 0]


def test_a_crop_that_leaves_nothing_is_refused(tmp_path):
    path = tmp_path / "nothing.mkv"
    made_videos.write_cropped_matroska(path, make_frames(2), (40, 24, 0, 0), (48, 64))
    with pytest.raises(VideoError, match=r"nothing\.mkv (has a crop|cannot be read)"):
        read_video(path)


CLEAR = {  # codec and pixel format of files that may be transparent
    "prores.mov": ("prores_ks", "yuva444p10le"),
    "png.mov": ("png", "rgba"),
    "qtrle.mov": ("qtrle", "argb"),
    "ffv1.mkv": ("ffv1", "yuva420p"),
    "utvideo.avi": ("utvideo", "gbrap"),
    "cfhd.mov": ("cfhd", "gbrap12le"),
    "vp8.webm": ("libvpx", "yuva420p"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
}


@pytest.mark.parametrize("name", CLEAR)
def test_transparent_pixels_are_white(tmp_path, name):
    """The right half is transparent, with other colours hidden in it; a quarter is half transparent."""
    codec, pixel_format = CLEAR[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this build of libav has no {codec}")
    frames = np.concatenate([make_frames(4), np.full((4, *made_videos.SIZE, 1), 255, np.uint8)], -1)
    frames[:, :, 32:, 3] = 0
    frames[:, 24:, :32, 3] = 128
    video = read_video(write(tmp_path / name, frames, codec, pixel_format))
    assert video.shape == (4, 48, 64, 3)
    half = tuple(round(255 - (255 - value) * 128 / 255) for value in BLUE)
    for frame in video:
        assert_quarters(frame, RED, (255,) * 3, half, (255,) * 3, within=10)


def test_transparency_and_orientation_together(tmp_path):
    frames = np.concatenate([make_frames(4), np.full((4, *made_videos.SIZE, 1), 255, np.uint8)], -1)
    frames[:, :, 32:, 3] = 0
    path = write(tmp_path / "a.mov", frames, "png", "rgba")
    made_videos.set_display_matrix(path, 0, 1, -1, 0)  # a quarter clockwise
    video = read_video(path)
    assert video.shape == (4, 64, 48, 3)
    assert_quarters(video[0], BLUE, RED, (255,) * 3, (255,) * 3)


def test_transparency_that_no_decoder_reads_is_a_reason_to_skip(tmp_path, monkeypatch):
    frames = np.full((2, *made_videos.SIZE, 4), 100, np.uint8)
    path = write(tmp_path / "a.webm", frames, "libvpx", "yuva420p")
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libvpx"})
    with pytest.raises(VideoError, match=r"a\.webm has transparency beside its pictures \(vp8\)"):
        read_video(path)


def flat_yuv(tmp_path, name, size, rgb, matrix, **tags):
    """A file of one colour whose pixels were computed with a matrix of ITU-T H.273, tagged as `tags` say."""
    frame = av.VideoFrame.from_ndarray(np.full((*size, 3), rgb, np.uint8), format="rgb24")
    frame = frame.reformat(
        format="yuv420p", dst_colorspace=matrix, dst_color_range=tags.get("color_range")
    )
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(
            "libx264", rate=8, options={"crf": "1", "preset": "ultrafast"}
        )
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for tag, value in tags.items():
            setattr(stream.codec_context, tag, value)
        frame.colorspace = tags.get("colorspace", 2)
        frame.color_range = tags.get("color_range", 0)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return tmp_path / name


@pytest.mark.parametrize("rgb", [(200, 30, 30), (30, 200, 30)])
@pytest.mark.parametrize(
    ("size", "matrix", "tags"),
    [
        ((720, 960), 1, {}),  # untagged: BT.709 from 720 lines
        ((544, 1280), 1, {}),  # or 1280 columns on,
        ((576, 720), 5, {}),  # else BT.601
        ((64, 64), 1, {"colorspace": 1}),  # a tag counts whatever the size
        ((720, 960), 5, {"colorspace": 5}),
        ((64, 64), 9, {"colorspace": 9}),
        ((64, 64), 5, {"color_range": 2}),
    ],
)
def test_the_colour_matrix_is_that_of_a_player(tmp_path, size, matrix, tags, rgb):
    frame = read_video(flat_yuv(tmp_path, "a.mp4", size, rgb, matrix, **tags))[0]
    assert np.abs(frame[size[0] // 2, size[1] // 2].astype(int) - rgb).max() <= 3


def test_a_matrix_that_cannot_be_computed_is_refused(tmp_path):
    path = flat_yuv(tmp_path, "a.mp4", (64, 64), (200, 30, 30), 5, colorspace=8)
    with pytest.raises(VideoError, match=r"a\.mp4 has colours by a matrix .*number 8 .*BT\.709"):
        read_video(path)


def pq_code(nits):
    """SMPTE ST 2084."""
    x = (np.asarray(nits) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * x) / (1 + 18.6875 * x)) ** 78.84375


def test_hdr_is_tone_mapped(tmp_path):
    """Grey stays grey and in order, becomes brighter than its code read as SDR, and peaks do not clip at once."""
    nits = np.array([0, 5, 20, 100, 203, 600, 1500, 4000])
    grey = np.repeat(np.uint8(np.round(255 * pq_code(nits))), 16)
    image = np.broadcast_to(grey[None, :, None], (32, 128, 3))
    tags = {"colorspace": 9, "color_trc": 16, "color_primaries": 9, "color_range": 1}
    frames = np.stack([image, image])
    path = write(tmp_path / "pq.mkv", frames, "ffv1", "yuv444p10le", **tags)
    shown = read_video(path)[0, 16, 8::16].astype(int)
    assert np.abs(shown - shown[:, :1]).max() <= 4
    steps = np.diff(shown[:, 1])
    assert (steps > 0).all() and shown[0, 1] <= 3 and shown[-1, 1] < 255
    as_sdr = grey[8::16].astype(int)
    assert (np.abs(shown[1:-1, 1] - as_sdr[1:-1]) > 5).sum() >= 4


def test_hdr_without_tone_mapping_is_a_reason_to_skip(tmp_path, monkeypatch):
    tags = {"colorspace": 9, "color_trc": 18, "color_primaries": 9, "color_range": 1}
    path = write(tmp_path / "hlg.mkv", make_frames(2), "ffv1", "yuv444p10le", **tags)
    monkeypatch.setattr(color, "_TONE_MAPPING", "out_gamut=none")  # an option that no build knows
    color._tone_mapping_graph.cache_clear()
    with pytest.raises(
        VideoError, match=r"hlg\.mkv is HDR \(HLG\), which this build of libav cannot"
    ):
        read_video(path)
    color._tone_mapping_graph.cache_clear()


def test_orientation_crop_and_aspect_together():
    """The converter by itself: crop, then square pixels, then the orientation."""
    frame = av.VideoFrame.from_ndarray(make_frames(1)[0], format="rgb24")
    convert = color.Converter(
        (0, 32, 0, 0), fractions.Fraction(3, 1), video_io.read_limits.DEFAULTS
    )
    image = convert(frame)
    assert image.shape == (48, 96, 3)
    assert_quarters(image, RED, RED, BLUE, BLUE)
    with pytest.raises(color.ConversionError, match="megapixels"):
        color.Converter((0, 0, 0, 0), fractions.Fraction(10**6), video_io.read_limits.DEFAULTS)(
            frame
        )


def test_the_track_marked_as_default_is_read(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=8) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for frames in zip(make_frames(8), make_frames(8)[:, ::-1], strict=True):
            for stream, image in zip(streams, frames, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    frames = [frame for _, frame in read_frames(path)]
    assert numbers(frames) == list(range(8))
    assert_quarters(frames[0], BLUE, WHITE, RED, GREEN)
