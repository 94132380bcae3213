"""Videos written: what other programs find in the files, and what happens when writing fails."""

import errno
import os
import re

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from videogen_jax.data.video_io import read_frames
from videogen_jax.data.video_writer import open_writer, write_lossless, write_video


def noise(frames, height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_the_same_video_gives_the_same_bytes(tmp_path):
    write_video(tmp_path / "a.mp4", noise(4), 8)
    write_video(tmp_path / "b.mp4", noise(4), 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_without_loss_every_byte_comes_back(tmp_path):
    for height, width in [(64, 64), (31, 17)]:
        video = noise(5, height, width)
        write_lossless(tmp_path / "a.mp4", video, 8)
        seconds, frames = zip(*read_frames(tmp_path / "a.mp4"), strict=True)
        np.testing.assert_array_equal(np.stack(frames), video)
        np.testing.assert_allclose(seconds, np.arange(5) / 8, atol=1e-3)
    with pytest.raises(ValueError, match="cannot write a.gif without loss: name it with .mp4"):
        write_lossless(tmp_path / "a.gif", video, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("side", [32, 33])
def test_frames_written_in_any_portions_give_the_same_file(tmp_path, suffix, side):
    video = noise(50, side, side + 2)
    write_video(tmp_path / f"whole{suffix}", video, 8)
    path = tmp_path / f"portions{suffix}"
    with open_writer(path, 8) as write:
        for first, last in [(0, 1), (1, 30), (30, 33), (33, 50)]:
            assert not path.exists()
            write(video[first:last])
    files = [file.read_bytes() for file in (path, tmp_path / f"whole{suffix}")]
    # Matroska numbers its tracks at random: TrackUID, of 8 bytes, in the track and in its tags.
    files = [re.sub(rb"(?s)[\x63\x73]\xc5\x88.{8}", b"", file) for file in files]
    assert files[0] == files[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_frames_are_encoded_while_others_are_still_to_come(tmp_path):
    """What is in the unfinished file is no longer in memory; the codec looks ahead 50 frames."""
    with open_writer(tmp_path / "long.mp4", 8) as write:
        for _ in range(4):
            write(noise(50))
        (unfinished,) = tmp_path.iterdir()
        halfway = unfinished.stat().st_size
    assert halfway > 0.5 * (tmp_path / "long.mp4").stat().st_size


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_writing_that_is_broken_off_leaves_nothing_new(tmp_path, suffix, count):
    (tmp_path / f"old{suffix}").write_bytes(b"old")
    for name in ("old", "new"):
        with (
            pytest.raises(KeyboardInterrupt),
            open_writer(tmp_path / f"{name}{suffix}", 8) as write,
        ):
            for _ in range(count):
                write(noise(1))
            raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_frames_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frame was written to .*none.mp4"):
        with open_writer(tmp_path / "none.mp4", 8):
            pass
    with pytest.raises(ValueError, match="convert it first"):
        with open_writer(tmp_path / "zero.mp4", 8) as write:
            write(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="frames of 16x18 to two.mp4, which began with 16x16"):
        with open_writer(tmp_path / "two.mp4", 8) as write:
            write(noise(1, 16, 16))
            write(noise(1, 16, 18))
    for name, message in [("a.gif", "a.gif frame by frame: write mp4 or webm"), ("a.avi", ".webm")]:
        with pytest.raises(ValueError, match=message), open_writer(tmp_path / name, 8):
            pass
    with pytest.raises(ValueError, match="at 0 frames per second"):
        with open_writer(tmp_path / "still.mp4", 0):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"missing.a\.mp4"):
        with open_writer(tmp_path / "missing" / "a.mp4", 8) as write:
            write(noise(1))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_full_disk_is_told_whoever_notices_it(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    (tmp_path / f".{path.name}.{os.getpid()}.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*a.*space") as info:
        with open_writer(path, 8) as write:
            write(noise(100))
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_for_a_gif_too(tmp_path):
    (tmp_path / f".a.gif.{os.getpid()}.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*a.gif.*space"):
        write_video(tmp_path / "a.gif", noise(2), 8)
    assert not list(tmp_path.iterdir())


def test_writing_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match="convert it first"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.float32), 8)
    with pytest.raises(ValueError, match=r"\.mp4, \.webm, \.gif"):
        write_video(tmp_path / "a.avi", np.zeros((2, 8, 8, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="at most 50"):
        write_video(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.uint8), 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".webm", "vp9")])
def test_the_file_says_its_rate_its_pixels_and_its_colours(tmp_path, suffix, codec):
    path = tmp_path / f"a{suffix}"
    write_video(path, noise(5, 33, 47), 23.976)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert codec in context.name
        assert (context.height, context.width, context.pix_fmt) == (34, 48, "yuv420p")
        assert stream.average_rate == pytest.approx(24000 / 1001, rel=1e-4)
        # ITU-T H.273: 6 is SMPTE 170M; of the ranges, 1 is the limited one.
        assert (context.colorspace, context.color_range) == (6, 1)
        assert sum(1 for _ in container.decode(stream)) == 5


def test_the_encoder_works_with_the_options_of_this_project(tmp_path):
    """x264 writes its settings into the stream."""
    write_video(tmp_path / "a.mp4", noise(2, 256, 256), 8)  # small frames get one thread anyway
    data = (tmp_path / "a.mp4").read_bytes()
    settings = re.search(rb"x264 - core .*? - options: ([ -~]*)", data)[1].decode().split()
    # "threads" as in thread_count; 0 for mbtree. "subme=2" and "ref=1" make up "veryfast".
    for setting in ("crf=12.0", "threads=1", "mbtree=0", "subme=2", "ref=1"):
        assert setting in settings


def test_pillow_reads_from_a_gif_what_was_written(tmp_path):
    greys = np.uint8([20, 60, 60, 200, 250])
    video = np.broadcast_to(greys[:, None, None, None], (5, 9, 14, 3))
    write_video(tmp_path / "a.gif", video, 8)
    with Image.open(tmp_path / "a.gif") as image:
        pages = [
            (page.info["duration"], np.asarray(page.convert("RGB")))
            for page in ImageSequence.Iterator(image)
        ]
        assert (image.format, image.info["loop"]) == ("GIF", 0)
    # In hundredths of a second: 0, 12, 25, 38, 50, 62; equal neighbours are one longer frame.
    assert [duration for duration, _ in pages] == [120, 260, 120, 120]
    for (_, page), grey in zip(pages, (20, 60, 200, 250), strict=True):
        np.testing.assert_array_equal(page, np.full((9, 14, 3), grey))
    write_video(tmp_path / "one.gif", video[:1], 8)
    with Image.open(tmp_path / "one.gif") as image:
        assert image.n_frames == 1 and image.convert("RGB").getpixel((0, 0)) == (20, 20, 20)


def test_an_error_of_the_callers_own_is_passed_on_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        with open_writer(tmp_path / "a.mp4", 8) as write:
            write(noise(1))
            raise FileNotFoundError("elsewhere")
    assert not list(tmp_path.iterdir())
