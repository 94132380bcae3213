"""Batches: a pure function of (seed, step) with each record once per epoch, cropped and flipped clip by clip."""

import gc
import itertools
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.data.packed import write_records
from videogen_jax.data import draws, packed_data, pipeline, prefetch, video_writer
from videogen_jax.packing import pack_folder

CLIPS, PACKED_FRAMES, SIZE = 23, 20, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20-frame clips in two strips and several shards: frame f has brightness 60 + 8 f.

    The left third is darker, so that flips are visible.
    """
    folder = tmp_path_factory.mktemp("clips")
    for c in range(CLIPS):
        video = np.zeros((PACKED_FRAMES, SIZE, SIZE, 3), np.uint8)
        video += (60 + 8 * np.arange(PACKED_FRAMES, dtype=np.uint8))[:, None, None, None]
        video[:, :, : SIZE // 3] -= 40
        video_writer.write_video(folder / f"{c:02d}.mp4", video, fps=8)
        (folder / f"{c:02d}.txt").write_text(f"clip{c}")
    settings = pack_folder.Settings(
        size=(SIZE, SIZE),
        fps=8.0,
        frames=PACKED_FRAMES,
        min_frames=PACKED_FRAMES,
        validation_fraction=0.1,
        clips_per_shard=5,
    )
    output = tmp_path_factory.mktemp("packed") / "data"
    pack_folder.pack(folder, output, settings, workers=1)
    return output


def batches(data, count, split="train", **options):
    options = {"batch_size": 4, "frames": 6, "seed": 1, "shuffle_window": 7} | options
    return list(itertools.islice(pipeline.make_clips(data, split, **options), count))


def captions(clips):
    return [caption for batch in clips for caption in batch["caption"]]


def assert_same(a, b):
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("window", [1, 3, 7, 1000])
def test_batches_are_a_function_of_seed_and_step(data, window):
    whole = batches(data, 24, shuffle_window=window, flip=True)
    for step in (1, 2, 4, 5, 6, 11, 17, 23):  # within a window, across windows, across epochs
        again = batches(data, 1, shuffle_window=window, flip=True, start_step=step)[0]
        assert_same(again, whole[step])


def test_each_epoch_has_each_clip_once_in_a_new_order(data):
    total = sum(pipeline.open_data(data).lengths["train"])
    order = captions(batches(data, 3 * total, batch_size=1))
    epochs = [order[i * total : (i + 1) * total] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(set(order))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert captions(batches(data, 3 * total, batch_size=1, seed=2)) != order


@pytest.mark.parametrize(
    "per_shard, window",
    [(12, 12), (1, 1)],  # a single shard: only its window is shuffled; windows of 1: only shards
)
def test_shards_and_windows_are_reshuffled_in_every_epoch(tmp_path, per_shard, window):
    clips = [np.zeros((1, 16, 16, 3), np.uint8)] * 12
    folder = write_records(tmp_path / "data", clips, 1, per_shard)
    order = captions(batches(folder, 3, batch_size=12, frames=1, shuffle_window=window))
    assert len({tuple(order[i : i + 12]) for i in (0, 12, 24)}) == 3


def test_processes_share_one_global_batch(data):
    whole = batches(data, 8, flip=True)
    parts = [batches(data, 8, flip=True, share=(i, 2)) for i in range(2)]
    for step in range(8):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]
        }
        assert_same(joined, whole[step])


def test_crops_are_consecutive_frames_from_all_starts(data):
    starts = set()
    for batch in batches(data, 40):
        frames = (batch["video"][:, :, :, SIZE // 2 :].mean((2, 3, 4)) - 60) / 8  # (B, T)
        np.testing.assert_allclose(np.diff(frames, axis=1), 1, atol=0.3)
        starts |= set(np.round(frames[:, 0]).astype(int))
    assert starts == set(range(PACKED_FRAMES - 6 + 1))


def test_flips_apply_to_whole_clips(data):
    mirrored = []
    for batch in batches(data, 40, flip=True):
        left, right = batch["video"][..., :4, :], batch["video"][..., -4:, :]
        darker = left.mean((2, 3, 4)) < right.mean((2, 3, 4))  # (B, T)
        assert np.all(darker == darker[:, :1])
        mirrored += list(~darker[:, 0])
    assert 0.35 < np.mean(mirrored) < 0.65
    for batch in batches(data, 10, flip=False):
        assert np.all(batch["video"][..., :4, :].mean() < batch["video"][..., -4:, :].mean())


def test_crop_and_flip_of_a_clip_are_independent(data):
    """A key shared by both would give every mirrored clip an odd start, or a start in the same quarter."""
    starts, mirrored = [], []
    for batch in batches(data, 100, flip=True, frames=5):  # 16 starts: parity and halves show
        middle = batch["video"][:, 0, :, SIZE // 2 - 2 : SIZE // 2 + 2].mean((1, 2, 3))
        starts += list(np.round((middle - 60) / 8).astype(int))
        left, right = (batch["video"][:, 0, :, side] for side in (slice(4), slice(-4, None)))
        mirrored += list(left.mean((1, 2, 3)) > right.mean((1, 2, 3)))
    starts, mirrored = np.array(starts), np.array(mirrored)
    assert set(starts) == set(range(16))
    for bit in (1, 2, 4, 8):
        share = np.mean(mirrored == (starts & bit > 0))
        assert abs(share - 0.5) < 0.1  # 4 standard deviations


def test_validation_is_in_order_centre_cropped_and_repeats(data):
    clips = list(pipeline.make_validation_clips(data, batch_size=2, frames=6, num_batches=5))
    assert len(clips) == 5
    total = sum(pipeline.open_data(data).lengths["validation"])
    order = captions(clips)
    assert order == (order[:total] * 10)[:10] and len(set(order)) == min(total, 10)
    first = (clips[0]["video"][0, 0, :, SIZE // 2 :].mean() - 60) / 8
    assert round(first) == (PACKED_FRAMES - 6) // 2
    part = pipeline.make_validation_clips(data, batch_size=2, frames=6, num_batches=1, share=(1, 2))
    np.testing.assert_array_equal(next(part)["video"][0], clips[0]["video"][1])


def test_locate_window_finds_the_shard_and_record():
    lengths, order = [5, 5, 3], np.array([2, 0, 1])
    found = [draws.locate_window(lengths, order, record) for record in range(13)]
    expected = [(0, i) for i in range(3)] + [(1, i) for i in range(5)] + [(2, i) for i in range(5)]
    assert found == expected


def test_resuming_reads_only_the_shards_of_its_window(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shards = sorted(copy.glob("*train*"))
    whole = {path: path.read_bytes() for path in shards}
    home = {}  # caption -> its shard
    for path in shards:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            example = tf.train.Example.FromString(record)
            home[example.features.feature["captions/text"].bytes_list.value[0]] = path
    total, window = len(home), 5
    options = {"batch_size": 1, "shuffle_window": window}
    stream = batches(copy, 4 * total, **options)
    for start in range(3 * total, 4 * total, window):
        here = stream[start : min(start + window, 4 * total)]
        needed = {home[caption] for caption in captions(here)}
        assert len(needed) < len(shards)
        for path in set(shards) - needed:
            path.write_bytes(bytes(byte ^ 0xFF for byte in whole[path]))
        for step in range(start, start + len(here)):
            assert_same(batches(copy, 1, start_step=step, **options)[0], stream[step])
        for path in shards:
            path.write_bytes(whole[path])


@pytest.mark.parametrize("frames", [12, 40])  # one strip; three strips, the last one padded
def test_pixels_match_the_source(tmp_path, frames):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, frames, 2, 3, 3), np.uint8)
    source = coarse.repeat(8, axis=2).repeat(8, axis=3)  # (3, frames, 16, 24, 3)
    folder = write_records(tmp_path / "data", list(source), frames)
    for batch in batches(folder, 20, batch_size=3, frames=9, flip=True):
        assert {name: value.dtype for name, value in batch.items()} == {
            "video": np.uint8,
            "caption": object,
            "fps": np.float32,
            "motion_score": np.float32,
        }
        assert batch["video"].shape == (3, 9, 16, 24, 3)
        for video, caption, fps in zip(batch["video"], batch["caption"], batch["fps"], strict=True):
            clip = source[int(caption)].astype(int)
            candidates = [
                view[start : start + 9]
                for start in range(frames - 8)
                for view in (clip, clip[:, :, ::-1])
            ]
            error = [np.abs(video - candidate).mean() for candidate in candidates]
            assert min(error) < 3  # other crops: 60 or more
            assert np.sort(error)[1] > 30
            assert fps == 8


def test_clips_shorter_than_the_crop_are_refused(tmp_path):
    clips = [np.zeros((frames, 16, 16, 3), np.uint8) for frames in (5, 20, 20)]
    folder = write_records(tmp_path / "data", clips, 20)
    with pytest.raises(pipeline.DataError, match=r"data\.frames is 6, .* set .*frames=5 or less"):
        batches(folder, 1)
    assert len(batches(folder, 3, frames=5)) == 3


@pytest.mark.parametrize("damage", ["flip", "length", "truncate", "between records", "empty"])
def test_damaged_record_file_is_refused(data, tmp_path, damage):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    victim = sorted(copy.glob("*train*"))[2]
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    elif damage == "length":
        content[0] ^= 0xFF
    elif damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "between records":
        content = content[: 16 + int.from_bytes(content[:8], "little")]
    else:
        content = b""
    victim.write_bytes(bytes(content))
    with pytest.raises(pipeline.DataError, match=f"{victim.name} is damaged: bring back a copy"):
        batches(copy, 20)


def test_unsupported_arguments_are_refused(data, tmp_path):
    with pytest.raises(pipeline.DataError, match=r"data\.frames is 99, .* have 20 frames"):
        batches(data, 1, frames=99)
    with pytest.raises(
        pipeline.DataError, match="batch_size of 4 does not divide over 3 processes"
    ):
        batches(data, 1, share=(0, 3))
    with pytest.raises(pipeline.DataError, match="no data set in .*nowhere: run videogen_jax.pack"):
        pipeline.open_data(tmp_path / "nowhere")
    with pytest.raises(pipeline.DataError, match="is not finished: run videogen_jax.pack again"):
        pipeline.open_data(tmp_path)
    with pytest.raises(pipeline.DataError, match="has no test clips: pack more"):
        batches(data, 1, split="test")
    for option in ("batch_size", "frames", "shuffle_window"):
        with pytest.raises(pipeline.DataError, match=f"{option} is 0: make it 1 or more"):
            batches(data, 1, **{option: 0})


@pytest.mark.parametrize("name", ["dataset_info.json", "statistics.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_descriptions_are_refused(data, tmp_path, name, content):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / name).write_text(content)
    with pytest.raises(pipeline.DataError, match=f"{name}.* is damaged .*: bring back"):
        pipeline.open_data(copy)


def test_no_module_of_a_data_set_is_imported(data, tmp_path, monkeypatch):
    """TFDS imports whatever module features.json names."""
    shutil.copytree(data, tmp_path / "copy")
    (tmp_path / "intruder.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "copy" / "features.json"
    name = "tensorflow_datasets.core.features.text_feature.Text"
    text = path.read_text().replace(name, "intruder.Text")
    for key in ("pythonClassName", "python_class_name", "type"):
        path.write_text(text.replace("pythonClassName", key))
        with pytest.raises(pipeline.DataError, match="names 'intruder.Text', a class that is not"):
            pipeline.open_data(tmp_path / "copy")
    path.write_text(
        json.dumps({"featuresDict": {"content": json.dumps({"type": "intruder.Text"})}})
    )
    with pytest.raises(pipeline.DataError, match="names 'intruder.Text', a class that is not"):
        pipeline.open_data(tmp_path / "copy")


def test_a_wrong_byte_count_is_accepted_if_records_are_complete(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["numBytes"] = "1"
    (copy / "dataset_info.json").write_text(json.dumps(info))
    assert pipeline.open_data(copy).lengths == pipeline.open_data(data).lengths


def test_prefetching_runs_ahead_and_measures_the_wait():
    def slow():
        for i in range(3):
            time.sleep(0.1)
            yield {"x": np.full(2, i)}

    with prefetch.prefetch_to_mesh(slow(), lambda batch: batch["x"] + 1) as ready:
        assert int(next(ready)[0]) == 1
        assert ready.wait_seconds > 0.05  # the batch was not ready
        ready.wait_seconds = 0.0
        time.sleep(0.35)
        assert [int(next(ready)[0]) for _ in range(2)] == [2, 3]
        assert ready.wait_seconds < 0.09  # both were ready
        for _ in range(2):  # stays exhausted
            with pytest.raises(StopIteration):
                next(ready)


def test_an_error_in_the_thread_reaches_the_consumer():
    def broken():
        yield {"x": np.zeros(1)}
        raise pipeline.DataError("the file is damaged")

    with prefetch.prefetch_to_mesh(broken(), lambda batch: batch) as ready:
        next(ready)
        with pytest.raises(pipeline.DataError, match="damaged"):
            next(ready)


def test_closing_ends_the_thread_of_an_endless_source():
    before = threading.active_count()
    with prefetch.prefetch_to_mesh(itertools.repeat({}), lambda batch: batch) as ready:
        next(ready)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ready)
    ready.close()


def test_the_thread_ends_when_the_iterator_is_collected():
    before = threading.active_count()
    ready = prefetch.prefetch_to_mesh(itertools.repeat({}), lambda batch: batch)
    next(ready)
    assert threading.active_count() == before + 1
    del ready
    gc.collect()
    assert threading.active_count() == before


def break_mid_way(data, folder, monkeypatch, change):
    """Reads batches while the shards change."""
    shutil.copytree(data, folder)
    monkeypatch.setattr(pipeline, "SECONDS_BETWEEN_CHECKS", 0.0)
    clips = pipeline.make_clips(
        folder, "train", batch_size=4, frames=8, seed=0, shuffle_window=4, threads=1
    )
    next(clips)
    for path in sorted(folder.glob("*train*")):
        change(path)
    with pytest.raises(pipeline.DataError) as error:
        for _ in range(200):
            next(clips)
    return str(error.value)


def test_data_that_vanishes_is_not_called_damaged(data, tmp_path, monkeypatch):
    message = break_mid_way(data, tmp_path / "data", monkeypatch, lambda path: path.unlink())
    assert "has vanished while it was in use: bring it back" in message
    assert "damaged" not in message


def test_data_that_is_replaced_is_noticed(data, tmp_path, monkeypatch):
    def replace(path):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))

    message = break_mid_way(data, tmp_path / "data", monkeypatch, replace)
    assert "was replaced while it was in use" in message


def test_a_file_that_may_not_be_read_is_not_called_damaged(monkeypatch):
    def refuse(*arguments, **options):
        raise tf.errors.PermissionDeniedError(None, None, "no")

    monkeypatch.setattr(tf.data, "TFRecordDataset", refuse)
    with pytest.raises(PermissionError, match="a.tfrecord may not be read: permission denied"):
        packed_data.find_damaged(["a.tfrecord"])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("words", {"a": "many"}, 'words.a should be a whole number, but is "many"'),
        ("frames", 2.5, "frames should be a whole number, but is 2.5"),
        ("fps", None, "fps should be a number, but is null"),
        ("motion_score_buckets", [None], r"motion_score_buckets\[0\] should be a number"),
        ("latents", {"autoencoder": "sd"}, "the field latents.weights is missing"),
        ("texts", [], r"texts should be a mapping, but is \[\]"),
    ],
)
def test_fields_of_the_wrong_type_are_named(data, tmp_path, field, value, reason):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    content = json.loads((copy / "statistics.json").read_text())
    (copy / "statistics.json").write_text(json.dumps(content | {field: value}))
    with pytest.raises(pipeline.DataError, match=rf"statistics.json is damaged \({reason}"):
        pipeline.open_data(copy)


@pytest.mark.parametrize("name", ["statistics.json", "motion_scores.npy"])
def test_a_flipped_bit_in_the_statistics_is_noticed(data, tmp_path, name):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    if name == "statistics.json":
        content = content.replace(b'"fps": 8.0', b'"fps": 9.0')
        (copy / name).write_bytes(content)
    with pytest.raises(pipeline.DataError, match=f"{name} is damaged, or was changed"):
        pipeline.open_data(copy)
        packed_data.read_scores(copy)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickled", "table", "nan", "float64"])
def test_damaged_motion_scores_are_refused(tmp_path, damage):
    path = tmp_path / "motion_scores.npy"
    arrays = {"text": ["a"], "table": np.ones((2, 2), np.float32), "float64": np.ones(2)}
    arrays |= {"nan": np.float32([np.nan]), "pickled": np.array([{}], object)}
    np.save(path, arrays.get(damage, np.ones(64, np.float32)), allow_pickle=True)
    if damage in ("empty", "cut"):
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -3])
    with pytest.raises(pipeline.DataError, match="motion_scores.npy .*: bring back a copy"):
        packed_data.read_scores(tmp_path)
