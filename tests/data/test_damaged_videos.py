"""Damage is an error, or the end of the video; what only looks like damage is read."""

import random
import struct
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest

from tests.data.made_videos import make_frames, numbers, remux, write
from videogen_jax.data import container as containers
from videogen_jax.data import gif_io
from videogen_jax.data.read_limits import Limits
from videogen_jax.data.video_decoding import DamagedError, VideoError
from videogen_jax.data.video_io import probe_video, read_frames
from videogen_jax.data.video_writer import write_video


def read(path, fps=8, **limits):
    cut = []
    frames = [f for _, f in read_frames(path, fps, limits=Limits(**limits), on_cut=cut.append)]
    return frames, cut


def damage_packet(packet, share=0.6):
    """Overwrites the end of a packet with other bytes, which a decoder conceals if it can."""
    data = bytearray(bytes(packet))
    start = int(share * len(data))
    data[start:] = bytes(b ^ 0x5A for b in data[start:])
    changed = av.Packet(bytes(data))
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.is_keyframe = packet.is_keyframe
    return changed


def with_damage(tmp_path, name, codec, at):
    frames = np.random.default_rng(0).integers(0, 256, (32, 48, 64, 3), np.uint8)
    whole = write(
        tmp_path / f"whole_{name}", frames, codec, options={"g": "8", "bf": "0", "crf": "20"}
    )
    count = iter(range(100))
    return remux(whole, tmp_path / name, lambda p: damage_packet(p) if next(count) == at else p)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg2video")]
)
@pytest.mark.parametrize("at", [0, 17])
def test_damage_that_the_decoder_conceals(tmp_path, name, codec, at):
    path = with_damage(tmp_path, name, codec, at)
    with av.open(str(path)) as container:  # libav itself gives all frames and raises no error
        assert sum(1 for _ in container.decode(video=0)) == 32
    with pytest.raises(
        DamagedError, match=rf"a\.\w+ breaks off after {at} frames .*or is damaged there"
    ):
        read(path)
    if not at:  # nothing comes before it
        with pytest.raises(DamagedError):
            read(path, damaged="cut")
        return
    frames, (sentence,) = read(path, damaged="cut")
    whole, _ = read(path.with_name(f"whole_{path.name}"))
    np.testing.assert_array_equal(frames, whole[:at])
    assert sentence.startswith(f"{path} breaks off after 17 frames") and "--damaged=cut" in sentence


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.avi", "mjpeg", "yuvj420p"), ("a.mp4", "libx265", "yuv420p"), ("a.mov", "png", "rgb24")],
)
def test_damage_that_the_decoder_only_logs(tmp_path, name, codec, pixels):
    """Zeros in the middle of the file: no frame is marked. What FFmpeg's command does not report, nobody can know."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path := tmp_path / name),
        "-f",
        "null",
        "-",
    ]
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    write(path, make_frames(32), codec, pixels, options=quiet)
    whole, data = read(path)[0], path.read_bytes()
    wrong = noticed = 0
    for at in range(len(data) // 5, len(data) * 3 // 5, len(data) // 60):
        path.write_bytes(data[:at] + bytes(60) + data[at + 60 :])
        try:
            frames = read(path)[0]
        except VideoError:
            noticed += 1
            continue
        if any(np.abs(a.astype(int) - b).mean() > 2 for a, b in zip(frames, whole, strict=False)):
            wrong += bool(subprocess.run(command, capture_output=True, check=False).stderr)
    assert noticed and not wrong


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".avi", ".gif"])
def test_a_truncated_file_is_cut_where_it_breaks_off(tmp_path, suffix):
    codec = {".webm": "libvpx", ".mkv": "libx264", ".avi": "mpeg4"}.get(suffix)
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 64, 3), np.uint8)
    if codec:
        write(path, noise, codec, options={"crf": "20"})
    else:
        write_video(path, noise, 8)
    whole, _ = read(path, None)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedError):
        read(path)
    frames, (sentence,) = read(path, None, damaged="cut")
    assert 8 <= len(frames) <= 20 and "breaks off" in sentence
    np.testing.assert_array_equal(frames, whole[: len(frames)])


def test_bytes_behind_the_end_of_a_gif_do_not_matter(tmp_path):
    path = tmp_path / "a.gif"
    write_video(path, make_frames(8), 10)
    data = path.read_bytes()
    for tail in (b"", b"\0" * 500, b"\r\n", b"<!-- saved from the web -->", data):
        path.write_bytes(data + tail)
        assert numbers(read(path, None)[0]) == list(range(8))
    path.write_bytes(data[:-1] + b"\0" * 500)
    with pytest.raises(DamagedError):
        read(path)


def test_the_blocks_of_a_gif(tmp_path):
    """A canvas of 3x2, a comment, and a frame that sticks out of it to 9x7; cut at each of its bytes."""
    comment = b"\x21\xfe\x05hello\x03abc\x00"
    frame = b"\x2c" + struct.pack("<4HB", 4, 2, 5, 5, 0x81) + bytes(12) + b"\x02\x02\x4c\x01\x00"
    data = b"GIF89a" + struct.pack("<2H3B", 3, 2, 0x80, 0, 0) + bytes(6) + comment + frame
    path = tmp_path / "a.gif"
    path.write_bytes(data + b";tail")
    assert gif_io.scan(path) == (7, 9, True)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        assert not gif_io.scan(path)[2]


def test_a_gif_without_a_frame(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"GIF89a" + struct.pack("<2H3B", 3, 2, 0x80, 0, 0) + bytes(6) + b";")
    for call in (read, lambda path: probe_video(path, 8)):
        with pytest.raises(
            VideoError, match=r"a\.gif (cannot be read as a GIF|holds not a single)"
        ):
            call(path)


def avi_with_empty_chunks(path, empty):
    """Writes an AVI in which the frames with these numbers are empty: the last one is shown on."""
    write(path, make_frames(24), "mjpeg", "yuvj420p")
    data = bytearray(path.read_bytes())
    start = data.index(b"movi") - 8
    size = int.from_bytes(data[start + 4 : start + 8], "little")
    position, end, chunks, index, number = start + 12, start + 8 + size, b"", b"", 0
    while position < end:
        name, length = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        content = data[position + 8 : position + 8 + length]
        if name == b"00dc":
            content = b"" if number in empty else content
            index += b"00dc" + struct.pack("<3I", 0x10, 4 + len(chunks), len(content))
            chunks += (
                b"00dc" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
            )
            number += 1
        position += 8 + length + length % 2
    assert number == 24
    movi = b"LIST" + struct.pack("<I", 4 + len(chunks)) + b"movi" + chunks
    idx1 = b"idx1" + struct.pack("<I", len(index)) + index
    body = bytes(data[8:start]) + movi + idx1
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


@pytest.mark.parametrize("empty", [{5, 6, 7, 15}, {20, 21, 22, 23}, {1}])
def test_empty_frames_of_an_avi_repeat_the_last_one(tmp_path, empty):
    path = avi_with_empty_chunks(tmp_path / "a.avi", empty)
    frames, _ = read(path)
    expected = [max(n for n in range(k + 1) if n not in empty) for k in range(24)]
    assert numbers(frames)[:20] == expected[:20] and len(frames) >= 20
    assert containers.count_avi_index(path, 0) == 24 and containers.count_avi_index(path, 1) == 0
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    assert containers.count_avi_index(path, 0) == 0
    with pytest.raises(DamagedError):
        read(path)


def test_what_pillow_raises_never_comes_out_as_it_is(tmp_path):
    """Flipped bits and cuts anywhere in a GIF: a sentence of ours, or frames."""
    path = tmp_path / "a.gif"
    write_video(path, make_frames(6, (20, 24)), 8)
    data, draw = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(6, len(data))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            outcomes.add(len(read(path, None)[0]))
        except VideoError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            outcomes.add("error")
    assert {6, "error"} <= outcomes


def test_a_codec_that_libav_does_not_know(tmp_path):
    path = write(tmp_path / "a.mp4", make_frames(4))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    for call in (read, lambda path: probe_video(path, 8)):
        with pytest.raises(
            VideoError, match=r"a\.mp4 has a video codec that this build of libav does not"
        ):
            call(path)


def test_a_frame_larger_than_allowed(tmp_path):
    path = write(tmp_path / "a.mkv", make_frames(2, (64, 128)))
    wide = write(tmp_path / "b.mkv", make_frames(2, (64, 64)), sample_aspect_ratio=8)
    write_video(tmp_path / "c.gif", make_frames(2, (64, 128)), 8)
    for file in (path, wide, tmp_path / "c.gif"):
        for call in (read, lambda path, **limits: probe_video(path, 8, Limits(**limits))):
            with pytest.raises(
                VideoError, match="more than --max_megapixels=0.005: scale it down, or raise"
            ):
                call(file, max_megapixels=0.005)
        assert len(read(file, max_megapixels=0.04)[0]) == 2


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "concat:x.mkv", "a%03d.mp4", "file:x.webm", "pipe:0.avi", "http:x.gif"]
)
def test_names_like_protocols_are_files(tmp_path, monkeypatch, name):
    folder = tmp_path / "run:1"
    folder.mkdir()
    if name.endswith((".mkv", ".avi")):
        plain = write(folder / f"plain{name[-4:]}", make_frames(8), "mpeg4")
        plain.rename(folder / name)
    else:
        write_video(folder / name, make_frames(8), 8)
    assert [path.name for path in folder.iterdir()] == [name]
    monkeypatch.chdir(folder)
    for path in (name, folder / name):
        assert len(read(path)[0]) == 8 and probe_video(path, 8) == (48, 64, 8)
