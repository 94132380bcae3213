"""Bounds of size, aspect, length and motion: what they leave out, and how it is counted."""

import numpy as np
import pytest
from PIL import Image

from tests.packing.test_pack import add, grey_video, read, run, shard_bytes
from videogen_jax import merge, pack
from videogen_jax.packing import merge_parts
from videogen_jax.packing.filters import Filters


def flicker(frames, step, height=32, width=32):
    """Grey frames that alternate between two values: a motion score of 8 x step / 255 a second."""
    return grey_video(100 + step * (np.arange(frames) % 2), height, width)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """At 8 frames a second: one still, one that flickers, one wide, one long, one small."""
    folder = tmp_path_factory.mktemp("videos")
    add(folder, "still.mp4", flicker(8, 0))
    add(folder, "flicker.mp4", flicker(8, 80))
    add(folder, "calm.mp4", flicker(8, 20))
    add(folder, "wide.mp4", flicker(8, 20, 32, 96))
    add(folder, "long.mp4", flicker(24, 20))
    add(folder, "small.mp4", flicker(8, 20, 16, 16))
    return folder


PLAIN = dict(size=16, frames=4, validation_fraction=0, workers=1)
BUCKETS = dict(buckets="4x16x16,4x16x48", validation_fraction=0, workers=1)
CASES = {  # options -> (counts, sources that are packed)
    "min_motion=0.3": ({"min_motion": 2}, "calm flicker long small wide"),
    "max_motion=1.5": ({"max_motion": 2}, "calm long small still wide"),
    "min_size=32": ({"min_size": 1}, "calm flicker long still wide"),
    "max_aspect=2": ({"max_aspect": 1}, "calm flicker long small still"),
    "min_aspect=2": ({"min_aspect": 5}, "wide"),
    "max_seconds=1": ({"max_seconds": 1}, "calm flicker small still wide"),
    "min_seconds=1.5": ({"min_seconds": 5}, "long"),
    "min_size=20,max_motion=1.5,min_motion=0.3": (
        {"min_size": 1, "min_motion": 2, "max_motion": 2},
        "calm long wide",
    ),
}


def parse(case):
    return dict(entry.split("=") for entry in case.split(","))


def packed_sources(output):
    folders = [path.parent for path in output.glob("**/dataset_info.json")]
    return sorted({i["source"].decode()[:-4] for f in folders for i in read(f, "train")})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [PLAIN, BUCKETS], ids=["plain", "buckets"])
def test_each_bound_leaves_out_what_it_names_and_counts_it(videos, tmp_path, shape, case):
    counts, names = CASES[case]
    options = dict(**shape, **parse(case), input=videos, output=tmp_path / "data")
    report = run(**options, strict=True)  # what is left out on purpose is no failure
    assert report["filtered"] == counts and report["skipped"] == []
    assert packed_sources(tmp_path / "data") == names.split()
    line = pack.summarize(report, tmp_path / "data")
    assert all(f"--{name} ({count})" in line for name, count in counts.items())
    del options[case.split("=")[0]]
    with pytest.raises(ValueError, match=f"{case.split('=')[0]} was .* and is now None"):
        run(**options)


def test_bounds_include_their_ends():
    bounds = Filters(min_size=32, min_aspect=1.5, max_aspect=2, min_seconds=1, max_motion=0.5)
    assert bounds.reject_picture(32, 64) is None and bounds.reject_picture(32, 48) is None
    assert bounds.reject_picture(64, 31) == "min_size"
    assert bounds.reject_picture(32, 65) == "max_aspect"
    assert bounds.reject_picture(33, 49) == "min_aspect"
    assert bounds.reject_length(1.0) is None and bounds.reject_length(0.99) == "min_seconds"
    assert bounds.reject_motion(0.5) is None and bounds.reject_motion(0.6) == "max_motion"


def test_the_length_of_a_video_is_compared_not_that_of_its_piece_in_a_bucket(videos, tmp_path):
    options = dict(input=videos, workers=1, validation_fraction=0, min_seconds=2.5)
    report = run(**options, buckets="16x32x32,8x32x32", output=tmp_path / "data")
    assert report["buckets"]["8x32x32"]["train"] == report["buckets"]["16x32x32"]["train"] == 1
    assert report["filtered"] == {"min_seconds": 5}


def test_images_have_neither_motion_nor_length(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 40 + 40 * number), (60, 9, 200)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a colour")
    bounds = dict(min_motion=1, min_seconds=1, min_aspect=0.4)
    for shape in (dict(size=16, frames=1), dict(buckets="1x32x32")):
        output = tmp_path / f"{len(shape)}"
        report = run(**shape, **bounds, input=tmp_path, output=output, validation_fraction=0)
        assert report["clips"]["train"] == 2 and report["filtered"] == {"min_aspect": 1}


def test_parts_add_up(videos, tmp_path):
    options = dict(**PLAIN, input=videos, min_size=20, min_motion=0.3)
    report = run(**options, output=tmp_path / "whole")
    for part in range(2):
        run(**options, output=tmp_path / "set", shard=f"{part}/2")
    merged = merge_parts.merge(tmp_path / "set")
    assert merged["filtered"] == report["filtered"] == {"min_size": 1, "min_motion": 2}
    assert "clips by --min_motion (2)" in merge.summarize(merged, tmp_path / "set")


def test_a_call_that_resumes_counts_once(videos, tmp_path):
    options = dict(**PLAIN, input=videos, min_size=20, min_motion=0.3, clips_per_shard=1)
    report = run(**options, output=tmp_path / "whole")
    work = tmp_path / "data" / "unfinished"
    for shard in (1, 3, 6):
        work.mkdir(parents=True, exist_ok=True)
        (work / f"train-{shard:05d}.unfinished").symlink_to("/dev/full")
        with pytest.raises(OSError):
            run(**options, output=tmp_path / "data")
    resumed = run(**options, output=tmp_path / "data")
    assert resumed["filtered"] == report["filtered"] == {"min_size": 1, "min_motion": 2}
    assert shard_bytes(tmp_path / "data") == shard_bytes(tmp_path / "whole")


def test_bounds_that_leave_nothing_are_an_error_that_says_so(videos, tmp_path):
    for shape in (PLAIN, BUCKETS):
        with pytest.raises(ValueError, match=r"by --min_size \(6\).*widen the filters"):
            run(**shape, input=videos, output=tmp_path / "data", min_size=1000)
        assert not (tmp_path / "data" / "unfinished").exists()


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(min_motion=2, max_motion=1), "--min_motion=2 exceeds --max_motion=1"),
        (dict(min_aspect=-1), "invalid --min_aspect=-1"),
        (dict(max_seconds="nan"), "invalid --max_seconds=nan"),
        (dict(duplicate_distance=4), "--duplicate_distance has no effect without"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(videos, tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        run(**PLAIN, input=videos, output=tmp_path / "data", **option)
