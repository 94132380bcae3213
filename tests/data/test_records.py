import errno
import io
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from videogen_jax.data import atomic_files, record_decoding, records
from videogen_jax.data.records import encode_clip, encode_strips, motion_score


def smooth_video(frames, height, width):
    """Makes a drifting coloured pattern, as smooth as natural video."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 5 + t / 3), np.cos(y / 7 - t / 4), np.sin((x + y) / 9 + t / 5)]
    return np.uint8(127.5 + 120 * np.stack(waves, axis=-1))


def decode(strips, height):
    images = [np.asarray(Image.open(io.BytesIO(strip))) for strip in strips]
    return [image.reshape(-1, height, *image.shape[1:]) for image in images]


@pytest.mark.parametrize("frames", [1, 7, 16, 17, 32, 40])
def test_strips_hold_16_frames_at_more_than_35_db(frames):
    video = smooth_video(frames, 36, 50)
    strips = decode(encode_strips(video), 36)
    assert len(strips) == -(-frames // 16)
    assert {len(strip) for strip in strips} == {min(frames, 16)}
    decoded = np.concatenate(strips)
    error = decoded[:frames].astype(float) - video
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 35
    # The last strip is padded with the last frame.
    filled = decoded[frames:].astype(float) - video[-1]
    assert not len(filled) or np.abs(filled).mean() < 5


def test_strips_are_decoded_as_exactly_as_by_pillow():
    """TensorFlow's default transform turns grey levels of 8 beside saturated colours into 0."""
    video = np.zeros((16, 48, 64, 3), np.uint8)
    video[:, :24, :32], video[:, :24, 32:], video[:, 24:, :32] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    )
    video[:, 24:, 32:] = 255
    video[:, 18:30, 24:40] = 8 * np.arange(16)[:, None, None, None]
    strips = records.encode_strips(video)
    data = types.SimpleNamespace(frames=16, height=48, width=64)
    decoded = record_decoding.decode_strips(tf.constant(strips), data).numpy()
    with Image.open(io.BytesIO(strips[0])) as image:
        reference = np.asarray(image).reshape(video.shape)
    assert np.abs(decoded.astype(int) - reference).max() <= 2
    np.testing.assert_allclose(decoded[:, 24, 32, 0], 8 * np.arange(16), atol=2)


def test_strips_keep_full_colour_resolution():
    video = np.zeros((1, 32, 32, 3), np.uint8)
    video[:, :, ::2, 0] = 255  # red and blue columns, one pixel wide
    video[:, :, 1::2, 2] = 255
    (strip,) = decode(encode_strips(video), 32)
    assert np.abs(strip.astype(int) - video).mean() < 12  # 4:2:0 makes it purple: above 80


def test_a_strip_too_large_for_jpeg_is_refused():
    with pytest.raises(ValueError, match="at most 4093"):
        encode_strips(np.zeros((16, 4094, 1, 3), np.uint8))
    assert len(encode_strips(np.zeros((16, 4093, 1, 3), np.uint8))) == 1


def test_motion_score_closed_forms():
    still = np.full((5, 24, 40, 3), 77, np.uint8)
    assert motion_score(still, 8) == 0
    assert motion_score(still[:1], 8) == 0
    flicker = np.zeros((5, 24, 40, 3), np.uint8)
    flicker[1::2] = 255  # luma jumps by 1 from frame to frame
    assert motion_score(flicker, 8) == pytest.approx(8)
    green = flicker * np.uint8([0, 1, 0])
    assert motion_score(green, 30) == pytest.approx(30 * 0.587)
    tiny = flicker[:, :3, :5]
    assert motion_score(tiny, 8) == pytest.approx(8)


def test_motion_score_averages_over_blocks():
    video = np.zeros((2, 16, 19, 3), np.uint8)
    video[1, :8, :8] = 255  # one of the 2 x 2 whole blocks
    video[1, :, 16:] = 255  # an incomplete block
    assert motion_score(video, 4) == pytest.approx(4 * 0.25)
    checks = np.indices((16, 16)).sum(0) % 2 * 255
    swap = np.stack([checks, 255 - checks]).astype(np.uint8)[..., None].repeat(3, -1)
    assert motion_score(swap, 8) == pytest.approx(0, abs=1e-6)  # equal means at 1/8 scale


def test_motion_score_per_second_does_not_depend_on_the_frame_rate():
    y, x = np.mgrid[:64, :64]
    ramp = np.stack([(x + 2 * t) for t in range(16)]).astype(np.uint8)[..., None].repeat(3, -1)
    assert motion_score(ramp[::2], 8) == pytest.approx(motion_score(ramp, 16), rel=1e-4)


def test_tfds_reads_the_records(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    videos = [smooth_video(frames, 20, 30) + np.uint8(frames) for frames in (16, 40, 5)]
    captions = ["a red circle", "猫が走る", "x" * 10_000]
    examples = [
        encode_clip(video, caption, 7.5, f"sub/{len(video)}.mp4")
        for video, caption in zip(videos, captions, strict=True)
    ]
    assert examples[0] == encode_clip(videos[0], captions[0], 7.5, "sub/16.mp4")  # same bytes
    sizes = []
    for shard, part in enumerate([examples[:2], examples[2:]]):
        sizes.append(records.write_shard(tmp_path / records.shard_name("train", shard, 2), part))
    assert sizes == [(2, len(examples[0]) + len(examples[1])), (1, len(examples[2]))]
    (tmp_path / "work").mkdir()
    records.write_dataset_info(tmp_path, {"train": sizes}, tmp_path / "work")
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.splits["train"].num_examples == 3
    assert builder.info.splits["train"].shard_lengths == [2, 1]
    read = {
        item["captions"]["text"][0].decode(): item
        for item in tfds.as_numpy(builder.as_dataset("train"))
    }
    assert sorted(read) == sorted(captions)
    for video, caption in zip(videos, captions, strict=True):
        item = read[caption]
        frames = item["strips"].reshape(-1, 20, 30, 3)[: item["num_frames"]]
        error = frames.astype(float) - video
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 35
        assert (item["num_frames"], item["height"], item["width"]) == video.shape[:3]
        assert item["fps"] == 7.5 and item["source"] == f"sub/{len(video)}.mp4".encode()
        assert item["motion_score"] == pytest.approx(motion_score(video, 7.5), rel=1e-6)


def test_a_full_disk_leaves_no_shard(tmp_path):
    (tmp_path / "shard.unfinished").symlink_to("/dev/full")  # a real ENOSPC
    with pytest.raises(OSError) as info:
        records.write_shard(tmp_path / "shard", [b"x" * 100_000] * 30)
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_error_while_serializing_leaves_no_shard(tmp_path):
    def broken():
        yield b"x"
        raise RuntimeError("stop")

    (tmp_path / "shard").write_text("older")
    with pytest.raises(RuntimeError, match="stop"):
        records.write_shard(tmp_path / "shard", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert (tmp_path / "shard").read_text() == "older"


def test_text_files_are_replaced_atomically(tmp_path):
    atomic_files.write_text(tmp_path / "a.json", json.dumps({"a": 1}))
    atomic_files.write_text(tmp_path / "a.json", "猫")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "猫"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
