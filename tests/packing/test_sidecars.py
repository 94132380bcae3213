"""Captions over time, episodes and numbers per frame: from name.json to the records, frame by frame."""

import json

import numpy as np
import pytest

from tests.data.made_videos import make_frames, write
from tests.data.made_videos import numbers as numbers_of
from videogen_jax import pack
from videogen_jax.data import bucketed_data, json_files, pipeline
from videogen_jax.data.vocabulary import split_words
from videogen_jax.packing import (
    bucket_assignment,
    merge_parts,
    pack_buckets,
    pack_folder,
    shards,
    sidecars,
    sources,
)
from videogen_jax.packing.settings import Settings

FRAMES = 24  # of each file, at 12 frames per second
TIMELINES = (
    ((0, "up"), (5, "down"), (6, "up"), (17, "still")),
    ((0, "a ball"),),
    ((0, "a"), (1, "b"), (2, "c"), (23, "d")),
)


def make_settings(**options):
    defaults = {"size": (48, 64), "fps": 8.0, "frames": 6, "min_frames": 2}
    defaults |= {"validation_fraction": 0.3, "clips_per_shard": 4}
    return Settings(**defaults | options)


def write_json(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def actions(index):
    return [round(0.1 * frame + index, 3) for frame in range(FRAMES)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twelve videos of four episodes, packed at two thirds of their frame rate; returns (folder, report)."""
    folder = tmp_path_factory.mktemp("sidecars")
    for index in range(12):
        video = folder / "clips" / f"{index:02d}.mp4"
        write_json(
            video.with_suffix(".json"),
            captions=[[list(entry) for entry in timeline] for timeline in TIMELINES]
            if index % 2
            else ["pong", *([list(entry) for entry in timeline] for timeline in TIMELINES)],
            episode=f"pong/{index % 4}",
            numbers={"action": actions(index), "score": [index] * FRAMES}
            if index
            else {"action": actions(0)},
        )
        write(video, make_frames(FRAMES), fps=12)
    report = pack_folder.pack(folder / "clips", folder / "data", make_settings(), workers=1)
    return folder, report


def read_all(data, split):
    """(frames (T, H, W, 3), source, annotations) of each clip in order."""
    return [
        (clip["video"], clip["source"].decode(), clip["annotations"])
        for path in data.files.get(split, [])
        for clip in pipeline.read_clips(path, data)
    ]


def check_clips(clips):
    """Compares texts and numbers with those of the frames of the file, which the pixels tell."""
    for video, source, said in clips:
        index = int(source[:2])
        frames = numbers_of(video)
        assert said.episode == f"pong/{index % 4}"
        timelines = TIMELINES if index % 2 else (((0, "pong"),), *TIMELINES)
        assert len(said.captions) == len(timelines)
        for found, timeline in zip(said.captions, timelines, strict=True):
            assert found[0][0] == 0
            shown = [[text for at, text in found if at <= t][-1] for t in range(len(frames))]
            assert shown == [[text for at, text in timeline if at <= f][-1] for f in frames]
            texts = [text for _, text in found]
            assert all(one != other for one, other in zip(texts, texts[1:], strict=False))
        assert set(said.numbers) == ({"action", "score"} if index else {"action"})
        expected = np.float32(actions(index))[frames]
        np.testing.assert_array_equal(said.numbers["action"], expected)


def test_each_packed_frame_has_the_texts_and_numbers_of_its_frame_of_the_file(packed):
    folder, report = packed
    data = pipeline.open_data(folder / "data")
    clips = read_all(data, "train") + read_all(data, "validation")
    assert len(clips) == sum(report["clips"].values()) == 12 * 3  # of 16 frames: 6, 6 and 4
    check_clips(clips)


def test_the_report_counts_captions_episodes_and_numbers(packed):
    folder, report = packed
    again = pack_folder.pack(folder / "clips", folder / "data", make_settings(), workers=1)
    assert again["finished_before"] and again["annotations"] == report["annotations"]
    expected = {"captions_per_file": {"3": 6, "4": 6}, "numbers": {"action": 12, "score": 11}}
    assert report["annotations"] == expected | {"episodes": 4}
    line = "captions of a clip: 3 to 4; episodes: 4; numbers per frame: action, score"
    assert line in pack.summarize(report, "data")


def test_parts_are_merged_to_the_same_clips_and_counts(packed, tmp_path):
    folder, whole = packed
    for part in range(2):
        options = {"workers": 1, "share": (part, 2)}
        pack_folder.pack(folder / "clips", tmp_path / "data", make_settings(), **options)
    report = merge_parts.merge(tmp_path / "data")
    assert report["clips"] == whole["clips"] and report["annotations"] == whole["annotations"]
    one, other = (pipeline.open_data(place / "data") for place in (folder, tmp_path))
    assert (one.words, one.numbers, other.annotated) == (other.words, other.numbers, True)
    for split in one.files:
        said = [
            sorted((source, said.captions) for _, source, said in read_all(data, split))
            for data in (one, other)
        ]
        assert said[0] == said[1]


def test_parts_of_two_kinds_of_records_are_not_merged(tmp_path):
    part_sets = []
    for name, annotated in (("now", True), ("old", False)):
        (tmp_path / name).mkdir()
        features = {"features": {"captions" if annotated else "caption": {}}}
        (tmp_path / name / "features.json").write_text(json.dumps(features))
        part_sets.append(merge_parts.PartSet(tmp_path / name, {}, [None], {}))
    merge_parts._check_fields(part_sets[:1])
    merge_parts._check_fields(part_sets[1:])
    with pytest.raises(ValueError, match="the records of .*old have one caption.*pack that part"):
        merge_parts._check_fields(part_sets)


def test_buckets_hold_the_texts_and_numbers_of_their_segments(packed, tmp_path):
    folder, _ = packed
    table = bucket_assignment.parse_buckets("10x48x64,6x48x64")
    settings = pack_buckets.BucketSettings(tuple(table), 8.0, 0.3, 4)
    report = pack_buckets.pack_buckets(folder / "clips", tmp_path / "data", settings, workers=1)
    assert (
        set(report["buckets"]) == {"10x48x64", "6x48x64"} and report["annotations"]["episodes"] == 4
    )
    sets = bucketed_data.open_buckets(tmp_path / "data").values()
    assert all(data.numbers == ("action",) for data in sets)
    episodes = {"train": set(), "validation": set()}
    for data in sets:
        for split in data.files:
            clips = read_all(data, split)
            check_clips(clips)
            episodes[split] |= {said.episode for *_, said in clips}
    assert not episodes["train"] & episodes["validation"] and all(episodes.values())


def test_clips_of_an_episode_are_in_one_split_and_mixed_in_it(packed):
    folder, _ = packed
    data = pipeline.open_data(folder / "data")
    episodes = {
        split: [said.episode for _, _, said in read_all(data, split)] for split in data.files
    }
    assert not set(episodes["train"]) & set(episodes["validation"])
    assert set(episodes["train"]) | set(episodes["validation"]) == {f"pong/{i}" for i in range(4)}
    turns = sum(a != b for a, b in zip(episodes["train"], episodes["train"][1:], strict=False))
    assert turns > len(set(episodes["train"]))  # not episode after episode


def test_statistics_count_the_words_of_all_captions_and_name_the_shared_numbers(packed):
    folder, _ = packed
    data = pipeline.open_data(folder / "data")
    words = [
        word
        for _, _, said in read_all(data, "train")
        for text in said.texts
        for word in split_words(text)
    ]
    assert data.words == {word: words.count(word) for word in set(words)}
    names = {
        index: "score" in said.numbers
        for index, (_, _, said) in enumerate(read_all(data, "train") + read_all(data, "validation"))
    }
    assert not all(names.values()) and data.numbers == ("action",)


def listing(folder, **options):
    found, skipped = sources.list_sources(folder, **options)
    return {source.name for source in found}, skipped


GOOD = {"captions": ["a dog"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "the caption a.json is damaged (Expecting property name"),
        ("[]", "its content should be a mapping, but is []"),
        ({}, "the field captions is missing"),
        ({"captions": "a dog"}, 'captions should be a list, but is "a dog"'),
        ({"captions": []}, "the caption a.json: captions is empty: list at least one"),
        ({"captions": [" "]}, "captions[0] is empty"),
        ({"captions": ["a", [[0, "b"], [4, ""]]]}, "captions[1] is empty from frame 4 on"),
        ({"captions": [[]]}, "captions[0] should be a text, or a list of [first frame, text]"),
        ({"captions": [3]}, "captions[0] should be a text"),
        ({"captions": [[[0, "a", 1]]]}, "captions[0] should be a text"),
        ({"captions": [[[True, "a"]]]}, "captions[0] should be a text"),
        ({"captions": [[[0.5, "a"]]]}, "captions[0] should be a text"),
        ({"captions": [[[1, "a"]]]}, "captions[0] begins at frame 1: begin at 0"),
        ({"captions": [[[0, "a"], [4, "b"], [4, "c"]]]}, "captions[0] has frame 4 after 4"),
        ({"captions": ["x" * 60, "y" * 60]}, "texts of 120 bytes, more than --max_caption_bytes=100"),
        (GOOD | {"label": 3}, "the field label is not known to this version"),
        (GOOD | {"episode": 17}, "episode should be text, but is 17"),
        (GOOD | {"numbers": [1]}, "numbers should be a mapping"),
        (GOOD | {"numbers": {"action": [1, "up"]}}, 'numbers.action[1] should be a number, but is "up"'),
        (GOOD | {"numbers": {"action": [True]}}, "numbers.action[0] should be a number"),
        ('{"captions": ["a"], "numbers": {"action": [NaN]}}', "numbers.action[0] should be a number"),
        (GOOD | {"numbers": {"action": [10**400]}}, "numbers.action[0] should be a number"),
        (GOOD | {"numbers": {"action": [1e39]}}, "numbers.action has a number too large for float32"),
        (GOOD | {"numbers": {"": [1]}}, "numbers has an empty name"),
        (GOOD | {"numbers": {"a": [1], "b": [1, 2]}}, "lists of several lengths (1 of 'a', 2 of 'b')"),
        ({"captions": ["\ud83d"]}, "captions has a letter that is no Unicode text"),
        (GOOD | {"episode": "\ud83d"}, "episode has a letter that is no Unicode text"),
    ],
)  # fmt: skip
def test_unusable_files_are_skipped_with_the_field(tmp_path, content, reason):
    for name in ("a.mp4", "good.mp4"):
        (tmp_path / name).write_bytes(b"video")
    (tmp_path / "good.txt").write_text("a dog")
    content = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "a.json").write_text(content)
    found, skipped = listing(tmp_path, max_caption_bytes=100)
    assert found == {"good.mp4"}
    assert skipped["a.mp4"].startswith("the caption a.json") and reason in skipped["a.mp4"]


def test_a_clip_has_one_file_of_captions_and_names_its_episode_where_others_do(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("a dog")
    write_json(tmp_path / "a.json", captions=["a cat"])
    write_json(tmp_path / "b.json", url="of another program", caption="a cow")
    write_json(tmp_path / "d.json", captions=["a cat"])
    found, skipped = listing(tmp_path)
    assert found == {"b.mp4", "c.mp4", "d.mp4"}
    assert skipped == {"a.mp4": "both a.txt and a.json hold its captions: remove one of them"}
    write_json(tmp_path / "d.json", captions=["a cat"], episode="7")
    found, skipped = listing(tmp_path)
    assert found == {"d.mp4"} and skipped["b.mp4"] == skipped["c.mp4"] == sources.NO_EPISODE


@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        (None, None, False),
        (None, {"url": "of another program"}, False),
        (None, {"captions": ["a cat"]}, True),
        ("a dog", None, True),
        ("a dog", {"url": "of another program"}, True),
        ("a dog", {"captions": ["a cat"]}, "both a.txt and a.json hold its captions"),
        (" ", None, "the caption a.txt is empty"),
        (None, {"captions": []}, "captions is empty"),
        (None, "{", "a.json is damaged"),
        (None, "[]", "its content should be a mapping"),
        (None, {"numbers": {"action": [1]}}, "the field captions is missing"),
        (None, {"episode": "7"}, "the field captions is missing"),
    ],
)
def test_whether_a_clip_has_captions(tmp_path, text, content, expected):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    if content is not None:
        content = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(content)
    if isinstance(expected, bool):
        assert sidecars.has_captions(tmp_path / "a.mp4", tmp_path) is expected
    else:
        with pytest.raises(sidecars.SidecarError, match=expected):
            sidecars.has_captions(tmp_path / "a.mp4", tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"numbers": {"action": [0.0] * 23}}, "numbers.action has 23 numbers for 24 frames"),
        ({"numbers": {"action": [0.0] * 25}}, "numbers.action has 25 numbers for 24 frames"),
        ({"captions": [[[0, "a"], [24, "b"]]]}, "from frame 24 on, but the file has 24 frames"),
    ],
)
def test_wrong_lengths_are_a_reason_once_the_frames_are_counted(tmp_path, fields, reason):
    for name in ("a", "good"):
        write(tmp_path / f"{name}.mp4", make_frames(FRAMES), fps=12)
    write_json(tmp_path / "a.json", **{"captions": ["a dog"]} | fields)
    write_json(tmp_path / "good.json", captions=[[[0, "a"], [23, "b"]]])
    settings = make_settings(validation_fraction=0.0)
    report = pack_folder.pack(tmp_path, tmp_path / "data", settings, workers=1)
    assert [item["file"] for item in report["skipped"]] == ["a.mp4"]
    assert reason in report["skipped"][0]["reason"] and report["clips"]["train"] == 3


def test_the_fingerprint_covers_all_fields(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    fields = {"captions": [[[0, "a"], [2, "b"]]], "episode": "1", "numbers": {"action": [1.0]}}
    variants = [
        fields,
        fields | {"captions": [[[0, "a"], [3, "b"]]]},
        fields | {"episode": "2"},
        fields | {"numbers": {"action": [2.0]}},
        fields | {"numbers": {"push": [1.0]}},
    ]
    seen = []
    for variant in variants:
        write_json(tmp_path / "a.json", **variant)
        found, skipped = sources.list_sources(tmp_path)
        seen.append(
            (
                sources.fingerprint(found, skipped)["digest"],
                sources.sum_fingerprint(found)["digest"],
            )
        )
    assert len(set(seen)) == len({a for a, _ in seen}) == len({b for _, b in seen}) == len(variants)


def test_the_fingerprints_of_text_files_are_those_of_earlier_versions(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "a.txt").write_text("a dog")
    found, skipped = sources.list_sources(tmp_path)
    # Computed by the version whose sources had one caption each.
    assert sources.fingerprint(found, skipped)["digest"] == "6b61b5b81bd2902ce9e715c86ef1c812"
    assert sources.sum_fingerprint(found)["digest"] == "444e0e164653bc753460772878da3e1b"


def test_shards_of_an_earlier_version_are_not_continued(tmp_path):
    work = tmp_path / "unfinished"
    work.mkdir()
    shard = {"split": "train", "shard": 0, "packed": [[0, 1]], "next": [0, 1], "clips": 1}
    shard |= {"motion_scores": [0.0], "bytes": 1, "file_bytes": 17, "skipped": {}, "cut_off": {}}
    (work / "journal.jsonl").write_text(json_files.dump_checked(shard) + "\n")
    with pytest.raises(ValueError, match="begun by an earlier version.*choose another --output"):
        shards.read_journal(tmp_path, work)
