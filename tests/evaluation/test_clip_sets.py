"""Sets of clips: windows, skipped clips, cached features, and the comparison of reports."""

import json

import numpy as np
import pytest

from tests.data.packed import write_records
from videogen_jax import evaluate
from videogen_jax.data import video_writer
from videogen_jax.evaluation import clip_sets, feature_cache, json_report, video_folders
from videogen_jax.generate import contact_sheet


def video(length, seed=0, size=(8, 10)):
    return np.random.default_rng(seed).integers(0, 256, (length, *size, 3), np.uint8)


def make_set(*videos):
    found = [
        clip_sets.Clip(str(i), each, 8.0, "" if each is not None else "it is broken")
        for i, each in enumerate(videos)
    ]
    return lambda: iter(found)


def test_a_window_is_a_centre_crop_with_a_stride():
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert clip_sets.Window(4).crop(frames)[:, 0, 0, 0].tolist() == [3, 4, 5, 6]
    assert clip_sets.Window(3, stride=4).crop(frames)[:, 0, 0, 0].tolist() == [1, 5, 9]
    window = clip_sets.Window(2, repeat=3)
    assert window.repeat_frames(window.crop(frames))[:, 0, 0, 0].tolist() == [4, 4, 4, 5, 5, 5]
    with pytest.raises(ValueError, match="11 frames, but 13 are needed"):
        clip_sets.Window(4, stride=4).crop(frames)


def test_unusable_clips_are_left_out_with_a_reason():
    found = clip_sets.summarize(
        make_set(video(5), None, video(3), video(9, 1), video(5, 2)), clip_sets.Window(4)
    )
    assert found.names == ["0", "3", "4"] and len(found.motion) == 3
    reasons = {entry["file"]: entry["reason"] for entry in found.left_out}
    assert reasons == {"1": "it is broken", "2": "it has 3 frames, but 4 are needed"}
    first = clip_sets.summarize(
        make_set(video(5), None, video(5, 1), video(5, 2)), clip_sets.Window(4), count=2
    )
    assert first.names == ["0", "2"]


def test_too_few_clips_and_different_sizes_are_errors():
    with pytest.raises(ValueError, match=r"Only 1 clips .* \(left out: 1: it is broken\): add"):
        clip_sets.summarize(make_set(video(5), None), clip_sets.Window(4))
    other = make_set(video(5), video(5, size=(9, 10)))
    with pytest.raises(
        ValueError, match="1 has 9x10 pixels, but the clips before it have 8x10: .*--size"
    ):
        clip_sets.summarize(other, clip_sets.Window(4))
    assert clip_sets.summarize(other, clip_sets.Window(4, size=(6, 6))).shape == (6, 6)


def test_motion_is_per_second_at_any_stride():
    """Luma levels 0, 51, 0, 51 at 8 frames per second change by 0.2 per frame; at stride 2 they are constant.

    A ramp of 25 per frame changes twice as much per frame at stride 2, but half as often.
    """
    flicker, ramp = (
        np.uint8(levels)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
        for levels in ([0, 51] * 4, range(0, 200, 25))
    )
    slope = 25 / 255 * 8
    for video, stride, expected in (
        (flicker, 1, 0.2 * 8),
        (flicker, 2, 0),
        (ramp, 1, slope),
        (ramp, 2, slope),
    ):
        found = clip_sets.summarize(make_set(video, video), clip_sets.Window(4, stride=stride))
        np.testing.assert_allclose(found.motion, [expected] * 2, atol=1e-6)
        assert found.fps == 8


def test_the_digest_covers_the_cropped_frames():
    def digest(window, *videos):
        return clip_sets.summarize(make_set(*videos), window).digest

    one, other, changed = video(6), video(6, 1), video(6)
    changed[0, 0, 0, 0] ^= 1  # outside of the window
    window = clip_sets.Window(4)
    same = digest(window, one, other)
    assert same == digest(window, changed, other)
    assert same != digest(window, other, one)
    assert same != digest(clip_sets.Window(4, repeat=4), one, other)
    changed[1, 0, 0, 0] ^= 1
    assert same != digest(window, changed, other)


def test_features_are_extracted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path))
    calls = []

    def extract(videos):
        for each in videos:
            calls.append(each.shape)
            yield np.full(3, each.mean(), np.float32)

    sets = make_set(video(6), None, video(7, 1))
    window = clip_sets.Window(4, repeat=3)
    made = feature_cache.load_or_extract(sets, window, extract, "a" * 64)
    assert calls == [(12, 8, 10, 3)] * 2
    np.testing.assert_allclose(made[0], window.crop(video(6)).mean(), rtol=1e-6)
    np.testing.assert_array_equal(
        feature_cache.load_or_extract(sets, window, extract, "a" * 64), made
    )
    assert len(calls) == 2
    feature_cache.load_or_extract(sets, window, extract, "b" * 64)  # other weights
    assert len(calls) == 4


def test_stored_videos_are_read_back_unchanged(tmp_path):
    batches = [np.stack([video(3, i), video(3, i + 1)]) for i in (0, 2)]
    stored = clip_sets.store_videos(tmp_path / "stored.npy", iter(batches), 4, fps=8)
    for _ in range(2):  # repeatedly
        for i, clip in enumerate(stored()):
            np.testing.assert_array_equal(clip.video, video(3, i))
    seconds = [clip.name for clip in clip_sets.take_every_second(stored, 1)()]
    assert seconds == ["0001", "0003"]


def test_clips_of_data_sets_and_folders(tmp_path):
    data, packed = tmp_path / "data", [video(4, i, (16, 16)) for i in range(3)]
    write_records(data, packed, frames=4)
    for clip, original in zip(clip_sets.read_data(data, "train")(), packed, strict=True):
        assert clip.video.shape == original.shape and clip.fps == 8.0
        assert np.abs(clip.video.astype(int) - original).mean() < 30  # JPEG of noise
    folder = tmp_path / "folder"
    folder.mkdir()
    video_writer.write_video(folder / "a.mp4", video(4, size=(16, 16)), 8)
    (folder / "b.mp4").write_bytes(b"no video")
    read = list(clip_sets.read_folder(folder)())
    assert read[0].video.shape == (4, 16, 16, 3) and read[0].fps == pytest.approx(8)
    assert read[1].video is None and read[1].reason
    with pytest.raises(ValueError, match="no clips in its split 'test': choose another --split"):
        clip_sets.read_data(data, "test")


def write_report(path, **protocol):
    score = {"name": "FVD", "value": 123.4, "low": 100.0, "high": 150.0}
    path.write_text(json.dumps({"scores": [score], "protocol": protocol}))
    return path


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:-5], lambda b: b"x" + b[1:]])
def test_damaged_features_are_extracted_again(tmp_path, monkeypatch, caplog, spoil):
    monkeypatch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path))
    window, sets = clip_sets.Window(4), make_set(video(5), video(5, 1))
    extract = lambda clips: (np.float32(clip.mean((0, 1, 2))) for clip in clips)  # noqa: E731
    made = feature_cache.load_or_extract(sets, window, extract, "a" * 64)
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    again = feature_cache.load_or_extract(sets, window, extract, "a" * 64)
    np.testing.assert_array_equal(again, made)
    assert "is damaged" in caplog.text and file.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        '{"scores": [{"name": "a", "value": "high"}], "protocol": {}}',
        '{"scores": [{"name": "a", "value": 1, "floor": "low"}], "protocol": {}}',
        '{"scores": [{"name": 1, "value": 2}], "protocol": {}}',
        '{"scores": [1], "protocol": {}}',
        '{"scores": [], "protocol": 3}',
        "[" * 99_999,
    ],
)
def test_a_damaged_report_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is not a report of videogen_jax\.evaluate"):
        json_report.read_report(tmp_path / "a.json")


def test_comparison_of_reports_begins_with_differences_of_protocol(tmp_path):
    a = write_report(tmp_path / "a.json", frames=16, ddof=1, step=5, workdir="a")
    b = write_report(tmp_path / "b.json", frames=16, ddof=0, step=9, num_generated=64)
    text = json_report.compare(a, b).splitlines()
    assert text[0] == "The protocols differ: the scores are not comparable."
    assert text[1:4] == ["  ddof: 1 | 0", "  num_generated: - | 64", "Compared:"]
    assert text[4:6] == ["  step: 5 | 9", "  workdir: a | -"]
    assert text[-4].split() == ["FVD", *["123.4", "(100", "to", "150)"] * 2]
    assert json_report.compare(a, a).startswith("Same protocol.")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json is not a report of videogen_jax\.evaluate"):
        json_report.compare(a, tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match=r"There is no .*d\.json: run"):
        json_report.compare(a, tmp_path / "d.json")


def test_comparison_tells_other_protocols_of_a_score_from_scores_of_one_report(tmp_path):
    common = {"frames": 16, "kernel": "cubic", "label": "a"}
    a = write_report(tmp_path / "a.json", **common, floor="8 clips, x", memorization="500 clips")
    b = write_report(tmp_path / "b.json", **common | {"kernel": "rbf", "label": "b"})
    report = json.loads(a.read_text())
    report["scores"][0] |= {"floor": 50.0, "ceiling": 150.0, "share": 0.266}
    a.write_text(json.dumps(report))
    text = json_report.compare(a, b).splitlines()
    assert text[0] == "The protocols differ: the scores are not comparable."
    assert text[1:4] == ["  kernel: cubic | rbf", "  label: a | b", "In one report only:"]
    assert text[4:6] == ["  floor: 8 clips, x | -", "  memorization: 500 clips | -"]
    rows = {line.split("  ")[0]: line.split()[-2:] for line in text if line.startswith("FVD, ")}
    assert rows == {
        "FVD, floor": ["50", "-"],
        "FVD, ceiling": ["150", "-"],
        "FVD, share of the way": ["0.266", "-"],
    }
    c = write_report(tmp_path / "c.json", frames=16, kernel="cubic", label="a")
    assert json_report.compare(a, c).startswith("Same protocol.\nIn one report only:")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--size=big", "--size is 'big': write it like 256x256"),
        ("--paired", "--paired needs two folders"),
        ("--workdir=x", "Either --workdir or --generated is needed: give one of them"),
    ],
)
def test_inconsistent_flags_are_errors(flag, message, tmp_path):
    from absl import flags

    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--generated={tmp_path}", flag])
    with pytest.raises(ValueError, match=message):
        evaluate.check_flags(values)
        evaluate.choose_window(values, clip_sets.CLIP_FRAMES)


def test_pairs_are_matched_by_name(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, ("b.mp4", "a.gif")), (other, ("a.mp4", "b.mp4"))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    assert video_folders.list_pairs(one, other) == (["a.gif", "b.mp4"], ["a.mp4", "b.mp4"])
    (one / "a.mp4").touch()
    with pytest.raises(ValueError, match="one holds two videos named a"):
        video_folders.list_pairs(one, other)
    (one / "a.mp4").rename(one / "c.mp4")
    with pytest.raises(
        ValueError, match=r"c is in .*one only: give both videos of a pair the same name"
    ):
        video_folders.list_pairs(one, other)


def test_videos_of_the_report_are_downscaled():
    assert contact_sheet.downscale(video(2, size=(8, 10)), 10).shape == (2, 8, 10, 3)
    assert contact_sheet.downscale(video(2, size=(8, 100)), 50).shape == (2, 4, 50, 3)


@pytest.mark.parametrize(
    ("frames", "window", "firsts"),
    [(32, clip_sets.Window(16), [0, 16]), (40, clip_sets.Window(16), [0, 16, 24]), (16, clip_sets.Window(16), [0]),
     (20, clip_sets.Window(4, stride=3), [0, 10])],
)  # fmt: skip
def test_windows_cover_a_video(frames, window, firsts):
    video = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    clip = clip_sets.Clip("a.mp4", video, 8.0, caption="pong")
    found = list(clip_sets.split_windows(lambda: [clip], window)())
    assert [each.name for each in found] == [f"a.mp4@{first}" for first in firsts]
    for each, first in zip(found, firsts, strict=True):
        frames_seen = window.crop(each.video)[:, 0, 0, 0]
        np.testing.assert_array_equal(frames_seen, first + window.stride * np.arange(window.frames))
        assert (each.caption, clip_sets.find_window(each.name)) == ("pong", first)


def test_short_and_unreadable_clips_stay_as_they_are():
    clips = [
        clip_sets.Clip("a", None, reason="damaged"),
        clip_sets.Clip("b@x", np.zeros((3, 2, 2, 3), np.uint8)),
    ]
    assert list(clip_sets.split_windows(lambda: clips, clip_sets.Window(16))()) == clips
    assert [clip_sets.find_window(clip.name) for clip in clips] == [None, None]
