"""Buckets and images: assignment, absence of distortion, and resuming after a kill."""

import json
import math
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from tests.packing.test_pack import add, command, frames_of, grey_video, read, run
from videogen_jax import pack
from videogen_jax.packing import bucket_assignment, pack_folder, per_file, shards
from videogen_jax.packing.bucket_assignment import (
    Bucket,
    Shape,
    choose_bucket,
    parse_buckets,
    plan_segments,
)

TABLE = parse_buckets("480x512x512, 240x512x512,120x384x640,1x512x512")


def video(height, width, frames):
    return Shape(height, width, frames, image=False)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (video(1080, 1080, 480), ["480x512x512 0 480"]),
        (video(1080, 1080, 479), ["240x512x512 0 240"]),
        (video(1080, 1080, 1000), ["480x512x512 0 960"]),
        (video(1080, 1080, 1300), ["480x512x512 0 960", "240x512x512 960 240"]),
        (
            video(1080, 1920, 1300),
            ["120x384x640 0 1200"],
        ),  # the nearest aspect ratio, although short
        # 4:3 would lose 25 % in a square and loses 20 % in 5:3.
        (video(720, 960, 500), ["120x384x640 0 480"]),
        (Shape(700, 600, 1, image=True), ["1x512x512 0 1"]),
        (Shape(1080, 1920, 1, image=True), ["1x512x512 0 1"]),  # loses 44 %
    ],
)
def test_segments_of_known_shapes(shape, expected):
    segments, reason = plan_segments(shape, TABLE)
    assert reason is None
    assert [f"{s.bucket.name} {s.first} {s.count}" for s in segments] == expected


@pytest.mark.parametrize(
    ("shape", "table", "reason"),
    [
        (video(512, 512, 119), TABLE, "too short: 119 frames, and the shortest bucket has 120"),
        (video(512, 512, 240), (Bucket(1, 512, 512),), "no bucket for videos"),
        (Shape(512, 512, 1, True), TABLE[:3], "no bucket for images"),
        (video(640, 384, 119), (Bucket(16, 384, 640),), "384 pixels would lose 64% .* 16x384x640"),
        (video(512, 1100, 480), (Bucket(16, 256, 256),), "512x1100 pixels would lose 53%"),
    ],
)
def test_unmatched_sources_have_a_reason(shape, table, reason):
    segments, found = plan_segments(shape, table)
    assert segments == []
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


def test_small_sources_prefer_a_smaller_bucket_to_enlargement():
    table = parse_buckets("16x512x512,16x256x256,32x128x128,16x256x480")
    names = {side: choose_bucket(video(side, side, 100), table)[0].name for side in range(8, 900)}
    assert names[512] == names[410] == "16x512x512"  # 512 / 410 is 1.249
    assert names[409] == names[205] == "16x256x256"
    assert names[204] == names[8] == "32x128x128"  # the smallest bucket
    assert choose_bucket(video(144, 256, 100), table)[0].name == "16x256x480"


def slow_choice(shape, table):
    """Independent implementation of the rule, in float64."""
    aspect = shape.width / shape.height
    rows = []
    for bucket in table:
        if (bucket.frames == 1) == shape.image and bucket.frames <= shape.frames:
            off = abs(np.log(aspect) - np.log(bucket.width / bucket.height))
            grow = max(bucket.width / shape.width, bucket.height / shape.height)
            rows.append(
                (off, grow, bucket.frames * bucket.height * bucket.width, bucket.frames, bucket)
            )
    if not rows or np.exp(-min(row[0] for row in rows)) < 0.5:
        return None
    rows = [row for row in rows if row[0] <= min(r[0] for r in rows) + 0.05]
    fine = [row for row in rows if row[1] <= 1.25]
    least = min(row[1] for row in rows)
    rows = fine or [row for row in rows if row[1] <= least * (1 + 1e-9)]
    return max(rows, key=lambda row: row[2:4])[-1]


def test_rule_matches_an_independent_implementation_on_random_tables():
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(3000):
        sides = 16 * rng.integers(2, 40, (rng.integers(1, 7), 2))
        frames = rng.choice([1, 1, 2, 8, 16, 33, 120], len(sides))
        table = tuple(
            Bucket(int(t), int(h), int(w)) for t, (h, w) in zip(frames, sides, strict=True)
        )
        image = bool(rng.integers(2))
        height, width = rng.integers(20, 1000, 2)
        shape = Shape(int(height), int(width), 1 if image else int(rng.integers(1, 200)), image)
        chosen, reason = choose_bucket(shape, table)
        assert chosen == slow_choice(shape, table), (shape, table)
        assert (chosen is None) == bool(reason)
        decided += chosen is not None
        segments, _ = plan_segments(shape, table)
        end = 0
        for bucket, first, count in segments:  # consecutive, of one size and kind
            assert first == end and count % bucket.frames == 0 and count
            assert bucket[1:] == chosen[1:] and (bucket.frames == 1) == image
            end += count
        assert end <= shape.frames
        if segments:
            same = [b.frames for b in table if b[1:] == chosen[1:] and b.frames <= chosen.frames]
            assert shape.frames - end < min(t for t in same if (t == 1) == image)
    assert 500 < decided < 2500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16x64x64,64x64", "'64x64'"),
        ("16x64x64,", "''"),
        ("16x64x0", "'16x64x0'"),
        ("-1x64x64", "'-1x64x64'"),
        ("16x64x64,8x64x64,16x64x64", "16x64x64 twice"),
        ("16x5000x64", "5000x64 pixels do not fit"),
    ],
)
def test_malformed_table_is_refused_naming_the_entry(text, message):
    with pytest.raises(ValueError, match=message):
        parse_buckets(text)


def disc(height, width, frames, grow=0.3):
    """Makes a video of a centred white disc on black; its radius is a fraction of the shorter side."""
    y, x = np.mgrid[:height, :width]
    radius = grow * min(height, width)
    inside = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2
    video = np.repeat((255 * inside)[None, ..., None], frames, 0).repeat(3, -1).astype(np.uint8)
    video[:, 0, 0] = 9 * np.arange(frames)[:, None]  # GIF merges equal frames
    return video


def extent(frame):
    """Measures height and width of the disc with subpixel accuracy, along the middle column and row."""
    frame = frame.astype(float).mean(-1) / 255
    height, width = frame.shape
    return frame[:, width // 2].sum(), frame[height // 2].sum()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Videos of several shapes, images and unmatched files, packed into buckets without interruption."""
    folder = tmp_path_factory.mktemp("mixed")
    videos = folder / "videos"
    add(videos, "square.mp4", disc(96, 96, 17), "a disc")
    add(videos, "square2.gif", disc(64, 64, 8), "a disc")
    add(videos, "wide.mp4", disc(72, 128, 21), "a wide disc")
    add(videos, "tall.webm", disc(120, 80, 9), "a tall disc")
    add(videos, "tall2.mp4", disc(90, 60, 12), "a tall disc")
    add(videos, "short.mp4", disc(96, 96, 3), "too short")
    add(videos, "banner.mp4", disc(32, 128, 9), "far too wide")
    add(videos, "still.mp4", disc(96, 96, 9), None)
    for index in range(6):
        picture = np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(picture).resize((48, 48), Image.Resampling.BICUBIC)
        image.save(videos / f"image{index}.png")
        (videos / f"image{index}.txt").write_text("colours")
    Image.fromarray(disc(80, 120, 1)[0]).save(videos / "photo.jpg", quality=95)
    (videos / "photo.txt").write_text("word " * 76)
    options = dict(
        input=videos,
        buckets="16x64x64,8x64x64,8x64x112,8x72x48,1x48x48",
        clips_per_shard=3,
        validation_fraction=0.1,
    )
    report = run(**options, output=folder / "packed", workers=2)
    return folder, options, report


def clips(folder, bucket):
    found = []
    for split in shards.SPLITS:
        if list((folder / bucket).glob(f"clips-{split}*")):
            found += read(folder / bucket, split)
    return found


def test_each_source_is_in_its_bucket(mixed):
    folder, _, report = mixed
    table = json.loads((folder / "packed" / "buckets.json").read_text())["buckets"]
    found = {
        name: sorted(i["source"].decode() for i in clips(folder / "packed", name)) for name in table
    }
    expected = {
        "16x64x64": ["square.mp4"],
        "8x64x64": ["square2.gif"],
        "8x64x112": ["wide.mp4", "wide.mp4"],
        "8x72x48": ["tall.webm", "tall2.mp4"],
        "1x48x48": [*(f"image{i}.png" for i in range(6)), "photo.jpg"],
    }
    left = report["left_out"]  # depends on the hashes of the names
    assert {**found, **dict.fromkeys(left)} == {
        n: None if n in left else v for n, v in expected.items()
    }
    assert table == [name for name in expected if name not in left]
    assert len(left) < 3 and all("validation clips only" in reason for reason in left.values())
    assert not any((folder / "packed" / name).exists() for name in left)
    reasons = {item["file"]: item["reason"] for item in report["skipped"]}
    assert reasons.keys() == {"short.mp4", "banner.mp4", "still.mp4"}
    assert "too short: 3 frames" in reasons["short.mp4"] and "too wide" in reasons["banner.mp4"]
    assert report["frames_cut_off"] == {
        "square.mp4": 1, "wide.mp4": 5, "tall.webm": 1, "tall2.mp4": 4
    }  # fmt: skip
    assert report["long_captions"] == ["photo.jpg"]
    assert "more than 75 words" in pack.summarize(report, "x")
    assert report["clips"]["train"] == sum(b["train"] for b in report["buckets"].values())


def test_discs_are_neither_distorted_nor_cropped(mixed):
    folder, _, report = mixed
    scale = {"wide.mp4": 64 / 72, "square.mp4": 64 / 96, "square2.gif": 1.0, "photo.jpg": 48 / 80}
    scale |= {"tall.webm": 72 / 120, "tall2.mp4": 72 / 90}
    short = {"wide.mp4": 72, "square.mp4": 96, "square2.gif": 64, "photo.jpg": 80}
    short |= {"tall.webm": 80, "tall2.mp4": 60}
    seen = set()
    for name in report["buckets"]:
        for item in clips(folder / "packed", name):
            source = item["source"].decode()
            if source in scale:
                seen.add(source)
                for frame in frames_of(item)[:: item["num_frames"] // 2 + 1]:
                    height, width = extent(frame)
                    assert height == pytest.approx(0.6 * short[source] * scale[source], abs=1.2)
                    assert height == pytest.approx(width, abs=0.7)
    assert len(seen) >= 3


def test_images_change_only_by_jpeg_compression(mixed):
    folder, _, _ = mixed
    for item in clips(folder / "packed", "1x48x48"):
        assert item["num_frames"] == 1 and item["motion_score"] == 0 and item["fps"] == 8
        if item["source"] != b"photo.jpg":
            original = np.asarray(Image.open(folder / "videos" / item["source"].decode()))
            assert np.abs(frames_of(item)[0].astype(int) - original).max() < 20
            assert np.abs(frames_of(item)[0].astype(int) - original).mean() < 2.5


def test_motion_scores_match_the_training_clips(mixed):
    folder, _, report = mixed
    for name in report["buckets"]:
        scores = np.load(folder / "packed" / name / "motion_scores.npy")
        assert scores.dtype == np.float32
        assert scores.tolist() == [
            i["motion_score"] for i in read(folder / "packed" / name, "train")
        ]


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pack_report.json"  # contains the elapsed seconds
    }


def test_resuming_after_several_kills_gives_the_same_bytes(mixed, tmp_path, monkeypatch):
    folder, options, _ = mixed
    output = tmp_path / "packed"
    process = subprocess.Popen(command(**options, output=output, workers=1))
    probes = output / "unfinished" / "probes.jsonl"
    deadline = time.monotonic() + 120
    while not probes.exists() or probes.read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "buckets.json").exists()
    with open(probes, "a") as file:  # an incomplete last line
        file.write('["wide.mp4", [7')
    probed = [json.loads(line)[0] for line in probes.read_text().splitlines()[:5]]
    requested = []
    original = per_file.run
    monkeypatch.setattr(
        per_file,
        "run",
        lambda f, found, *rest: (
            requested.extend(s.name for s in found) or original(f, found, *rest)
        ),
    )
    # Then a call that is interrupted between two buckets.
    packs = []

    def pack_sources(*arguments, **named):
        packs.append(named["label"])
        if len(packs) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    real = pack_folder.pack_sources
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_folder, "pack_sources", pack_sources)
        with pytest.raises(KeyboardInterrupt):
            run(**options, output=output)
    assert not set(requested) & set(probed)  # probed files are not probed again
    with pytest.raises(ValueError, match="fps was 8.0 and is now 4.0"):
        run(**options, output=output, fps=4)
    report = run(**options, output=output)
    assert len(requested) == len(set(requested)) and not report["finished_before"]
    assert files(output) == files(folder / "packed")
    assert not (output / "unfinished").exists()
    assert run(**options, output=output)["finished_before"]


def test_other_settings_are_refused(mixed, tmp_path):
    folder, options, _ = mixed
    with pytest.raises(ValueError, match="buckets was .*16x64x64.* and is now .*8x8x8"):
        run(**{**options, "buckets": "8x8x8"}, output=folder / "packed")
    with pytest.raises(ValueError, match="it was bucketed and is now plain"):
        run(input=options["input"], output=folder / "packed")
    shutil.copytree(options["input"], tmp_path / "more")
    (tmp_path / "more" / "image0.txt").write_text("other colours")
    with pytest.raises(ValueError, match="videos or their captions changed"):
        run(**{**options, "input": tmp_path / "more"}, output=folder / "packed")


def test_table_that_fits_no_source_is_an_error_with_a_suggestion(tmp_path):
    add(tmp_path / "videos", "a.mp4", grey_video(range(5), 48, 64))
    add(tmp_path / "videos", "b.mp4", grey_video(range(9), 64, 64))
    with pytest.raises(ValueError) as info:
        run(input=tmp_path / "videos", output=tmp_path / "packed", buckets="16x64x64,1x64x64")
    message = str(info.value)
    assert "none of the 2 sources" in message and "5 to 9 frames at 8 per second" in message
    assert "48x64 to 64x64 pixels" in message and "too short" in message
    advice = message.split("--buckets=")[1].split()[0]
    assert run(input=tmp_path / "videos", output=tmp_path / "packed", buckets=advice)["clips"][
        "train"
    ]


def test_remaining_frames_become_a_shorter_clip(tmp_path):
    for name in "ab":
        add(tmp_path / "videos", f"{name}.mp4", grey_video(20 + 6 * np.arange(29)))
    options = dict(input=tmp_path / "videos", buckets="9x32x32,4x32x32,3x32x32,1x32x32")
    report = run(**options, output=tmp_path / "packed", validation_fraction=0)
    assert report["buckets"] == {"9x32x32": {"train": 6, "validation": 0}}
    assert report["frames_cut_off"] == {"a.mp4": 2, "b.mp4": 2}  # no clip of a single frame
    options["buckets"] = "9x32x32,2x32x32,1x32x32"
    run(**options, output=tmp_path / "again", validation_fraction=0)
    items = read(tmp_path / "again" / "9x32x32", "train") + read(
        tmp_path / "again" / "2x32x32", "train"
    )
    of_a = [frames_of(item).mean((1, 2, 3)) for item in items if item["source"] == b"a.mp4"]
    assert [len(means) for means in of_a] == [9, 9, 9, 2]
    np.testing.assert_allclose(np.concatenate(of_a), 20 + 6 * np.arange(29), atol=3)


def test_video_shorter_than_its_index_is_skipped(tmp_path, monkeypatch):
    for name in "ab":
        add(tmp_path / "videos", f"{name}.mp4", grey_video(range(8)))
    wrong = {"a.mp4": Shape(32, 32, 20, False), "b.mp4": Shape(32, 32, 8, False)}
    monkeypatch.setattr(
        per_file, "run", lambda f, found, *_: ((s.name, wrong[s.name]) for s in found)
    )
    options = dict(buckets="20x32x32,8x32x32", validation_fraction=0)
    report = run(input=tmp_path / "videos", output=tmp_path / "packed", **options)
    assert report["clips"]["train"] == 1
    (skip,) = report["skipped"]
    assert skip["file"] == "a.mp4" and "8 frames" in skip["reason"] and "lists 20" in skip["reason"]
    assert report["left_out"].keys() == {"20x32x32"}


def test_images_are_packed_only_as_single_frames(tmp_path):
    videos = tmp_path / "videos"
    add(videos, "a.mp4", grey_video(range(4)))
    add(videos, "b.mp4", grey_video(range(4)))
    Image.new("RGB", (32, 32)).save(videos / "a.jpg")  # the video's poster, with its caption
    report = run(input=videos, output=tmp_path / "packed", frames=4, size=32, strict=True)
    assert [(i["file"], "--frames=1" in i["reason"]) for i in report["skipped"]] == [
        ("a.jpg", True)
    ]
    (videos / "a.jpg").unlink()  # skipped images may be removed
    assert run(input=videos, output=tmp_path / "packed", frames=4, size=32)["finished_before"]
    for index in range(3):
        Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / f"{index}.webp")
        (tmp_path / f"{index}.txt").write_text("blue")
    report = run(input=tmp_path, output=tmp_path / "images", frames=1, size=32)
    assert report["clips"]["train"] + report["clips"]["validation"] == 3 + 2 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": "16x64x64", "size": "64"}, "remove --size"),
        ({"buckets": "16x64x64", "min_frames": 4}, "remove --min_frames"),
        ({"buckets": "64"}, "'64'"),
        ({"buckets": ""}, "''"),
        ({"shard": "4/4"}, "3/64"),
    ],
)
def test_mutually_exclusive_flags_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(input="x", output="x", **options)


def test_clips_of_a_video_are_in_one_split_in_all_buckets(tmp_path):
    for index in range(12):
        add(tmp_path / "videos", f"{index}.mp4", grey_video(range(7)))
    options = dict(buckets="4x32x32,3x32x32", validation_fraction=0.4)
    report = run(input=tmp_path / "videos", output=tmp_path / "packed", **options)
    sides = [
        {item["source"] for item in read(tmp_path / "packed" / name, split)}
        for split in shards.SPLITS
        for name in ("4x32x32", "3x32x32")
    ]
    assert sides[0] == sides[1] and sides[2] == sides[3] and not sides[0] & sides[2]
    assert report["clips"] == {"train": 2 * len(sides[0]), "validation": 2 * len(sides[2])}
    assert math.isclose(len(sides[2]), 0.4 * 12, abs_tol=3)


def test_describe_unmatched_without_readable_files():
    assert "no readable files" in bucket_assignment.describe_unmatched([], ["it is empty"], 8)
