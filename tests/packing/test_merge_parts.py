"""Merged parts equal the data set packed by one call; damaged and mismatched parts are refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.packing.test_pack import add, grey_video, read, run
from videogen_jax import merge
from videogen_jax.data import packed_data, pipeline
from videogen_jax.data.locking import lock_folder
from videogen_jax.packing import merge_parts, shards

PARTS = 3
PLAIN = dict(size=32, frames=4, clips_per_shard=2, validation_fraction=0.4)
BUCKETS = dict(buckets="6x32x32,2x32x32,1x32x32", clips_per_shard=2, validation_fraction=0.4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for index in range(11):
        height, width = ((32, 32), (32, 64), (48, 48))[index % 3]
        frames = int(rng.integers(4, 15))
        grey = grey_video(rng.integers(0, 256, frames), height, width)
        add(
            folder, f"clip{index}.mp4", grey, f"clip {index} of a grey {'wide ' * (index % 3)}thing"
        )
    for index in range(4):
        Image.new("RGB", (40, 40), (60 * index, 9, 200)).save(folder / f"image{index}.png")
        (folder / f"image{index}.txt").write_text("a colour")
    add(folder, "short.mp4", grey_video(range(1)), "one frame")
    add(folder, "mute.mp4", grey_video(range(5)), None)
    return folder


@pytest.fixture(scope="module", params=["plain", "buckets"])
def packed(request, videos, tmp_path_factory):
    """(flags, the set packed by one call, its unmerged parts)."""
    folder = tmp_path_factory.mktemp(request.param)
    options = {"input": videos, "workers": 1} | (PLAIN if request.param == "plain" else BUCKETS)
    run(**options, output=folder / "whole")
    for part in reversed(range(PARTS)):
        run(**options, output=folder / "parts_only", shard=f"{part}/{PARTS}")
    return options, folder / "whole", folder / "parts_only"


@pytest.fixture
def parts(packed, tmp_path):
    """A copy of the parts, to be merged or damaged."""
    shutil.copytree(packed[2], tmp_path / "set")
    return tmp_path / "set"


def tables(folder):
    """Returns bucket -> folder of its plain set; "" for a plain set."""
    if not (folder / "buckets.json").exists():
        return {"": folder}
    names = json.loads((folder / "buckets.json").read_text())["buckets"]
    return {name: folder / name for name in names}


def raw_clips(folder):
    """Returns (split, serialized record) of all clips, sorted."""
    import tensorflow as tf

    found = []
    for split in shards.SPLITS:
        for path in sorted(folder.glob(f"clips-{split}.tfrecord-*")):
            found += [(split, bytes(r.numpy())) for r in tf.data.TFRecordDataset(str(path))]
    return sorted(found)


def assert_equal_sets(merged, whole):
    assert tables(merged).keys() == tables(whole).keys()
    for name, folder in tables(merged).items():
        other = tables(whole)[name]
        assert raw_clips(folder) == raw_clips(other) and raw_clips(folder)
        assert json.loads((folder / "statistics.json").read_text()) == json.loads(
            (other / "statistics.json").read_text()
        )
        assert (folder / "features.json").read_bytes() == (other / "features.json").read_bytes()
        scores = [np.sort(np.load(f / "motion_scores.npy")) for f in (folder, other)]
        np.testing.assert_array_equal(*scores)
        in_order = [item["motion_score"] for item in read(folder, "train")]
        np.testing.assert_array_equal(np.load(folder / "motion_scores.npy"), in_order)
        data = pipeline.open_data(folder)  # checks sizes and names
        assert sum(map(sum, data.lengths.values())) == len(raw_clips(folder))
        reports = [json.loads((f / "pack_report.json").read_text()) for f in (folder, other)]
        for key in ("settings", "clips", "skipped", "frames_cut_off", "long_captions"):
            assert reports[0][key] == reports[1][key], key


def test_merged_parts_equal_the_set_packed_by_one_call(packed, parts):
    options, whole, _ = packed
    report = merge_parts.merge(parts)
    assert not report["finished_before"] and report["parts"] == PARTS
    assert_equal_sets(parts, whole)
    assert not (parts / "parts").exists() and not (parts / ".lock").exists()
    assert merge_parts.merge(parts)["finished_before"]
    assert run(**options, output=parts)["finished_before"]  # as if packed by one call
    assert run(**options, output=parts, shard="1/3")["finished_before"]


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_interrupted_merge_is_resumed(packed, parts, stop, monkeypatch):
    """Interrupts the merge at the stop-th rename of a file."""
    replace, count = os.replace, 0

    def replace_some(*arguments):
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_some)
        with pytest.raises(KeyboardInterrupt):
            merge_parts.merge(parts)
    merge_parts.merge(parts)
    assert_equal_sets(parts, packed[1])


def test_merge_interrupted_before_the_last_step_removes_the_parts(packed, parts, monkeypatch):
    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda p, **kw: p.name == "parts" or remove(p, **kw))
        merge_parts.merge(parts)
    assert (parts / "parts").exists()
    assert merge_parts.merge(parts)["finished_before"]
    assert not (parts / "parts").exists()
    assert_equal_sets(parts, packed[1])


def part(folder, index):
    return folder / "parts" / f"{index:05d}-of-{PARTS:05d}"


def a_shard(folder):
    return sorted(folder.rglob("clips-*.tfrecord-*"))[0]


def spoil_missing(folder):
    shutil.rmtree(part(folder, 1))
    return r"part 1 of 3 is missing.* call python -m videogen_jax.pack .*--shard=1/3 .*--input=.*"


def spoil_unfinished(folder):
    for mark in part(folder, 2).glob("[db]*t[sa]*.json"):
        if mark.name in ("dataset_info.json", "buckets.json"):
            mark.unlink()
    return "part 2 of 3 is begun but not finished"


def spoil_shard_gone(folder):
    path = a_shard(part(folder, 0))
    path.unlink()
    return f"{path.name} is missing: bring back .*, or move .*00000-of-00003.* pack that part again"


def spoil_shard_short(folder):
    path = a_shard(part(folder, 1))
    path.write_bytes(path.read_bytes()[:-3])
    return f"{path.name} is truncated"


def spoil_clip_lost(folder):
    path = next(
        p for p in sorted(part(folder, 0).rglob("clips-*.tf*")) if packed_data.count_records(p) == 2
    )
    first = int.from_bytes(path.read_bytes()[:8], "little") + packed_data.FRAMING
    path.write_bytes(path.read_bytes()[:first])
    return f"{path.name} has 1 clips instead of 2"


def spoil_videos(folder):
    path = part(folder, 1) / "pack_report.json"
    report = json.loads(path.read_text())
    report["settings"]["videos"]["digest"] = "0"
    path.write_text(json.dumps(report))
    return "00001-of-00003 does not match .*videos or their captions"


def spoil_settings(folder):
    path = part(folder, 2) / "pack_report.json"
    report = json.loads(path.read_text())
    report["settings"]["fps"] = 9.0
    path.write_text(json.dumps(report))
    return "00002-of-00003 does not match .*fps is 9.0, but 8.0"


def spoil_twice(folder):
    shutil.rmtree(part(folder, 1))
    shutil.copytree(part(folder, 0), part(folder, 1))
    path = part(folder, 1) / "pack_report.json"
    path.write_text(path.read_text().replace('"0/3"', '"1/3"'))
    return "is in .*00000-of-00003.* and in .*00001-of-00003"


def spoil_renamed(folder):
    shutil.rmtree(part(folder, 1))
    shutil.copytree(part(folder, 0), part(folder, 1))
    return "00001-of-00003 was packed as another part"


def spoil_other_total(folder):
    (folder / "parts" / "00000-of-00002").mkdir()
    return "parts of 2 and of 3"


@pytest.mark.parametrize(
    "spoil", [f for name, f in list(globals().items()) if name.startswith("spoil_")]
)
def test_bad_parts_are_refused_and_nothing_moves(parts, spoil):
    message = spoil(parts)
    before = sorted(p for p in parts.rglob("*") if p.is_file())
    with pytest.raises(ValueError, match=message):
        merge_parts.merge(parts)
    assert sorted(p for p in parts.rglob("*") if p.is_file()) == before


def test_command_in_the_error_packs_the_missing_part(packed, parts):
    _, whole, _ = packed
    shutil.rmtree(part(parts, 1))
    with pytest.raises(ValueError) as info:
        merge_parts.merge(parts)
    words = str(info.value).split("call ")[1].split()
    assert words[:3] == ["python", "-m", "videogen_jax.pack"]
    run(**dict(word.removeprefix("--").split("=", 1) for word in words[3:]))
    merge_parts.merge(parts)
    assert_equal_sets(parts, whole)


def test_more_parts_than_videos(videos, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("clip0", "clip1", "clip2"):
        for suffix in (".mp4", ".txt"):
            shutil.copy(videos / f"{name}{suffix}", few)
    options = {"input": few, "size": 32, "frames": 4, "workers": 1}
    run(**options, output=tmp_path / "whole")
    for index in range(5):
        run(**options, output=tmp_path / "set", shard=f"{index}/5")
    merge_parts.merge(tmp_path / "set")
    assert_equal_sets(tmp_path / "set", tmp_path / "whole")


def test_parts_and_unsharded_calls_do_not_mix(videos, tmp_path):
    options = {"input": videos, "workers": 1} | PLAIN
    (tmp_path / "set" / "parts").mkdir(parents=True)
    with pytest.raises(ValueError, match="begun in parts"):
        run(**options, output=tmp_path / "set")
    (tmp_path / "other" / "unfinished").mkdir(parents=True)
    with pytest.raises(ValueError, match="begun without --shard"):
        run(**options, output=tmp_path / "other", shard="0/2")
    with pytest.raises(ValueError, match="no parts"):
        merge_parts.merge(tmp_path / "other")
    with pytest.raises(ValueError, match="no folder"):
        merge_parts.merge(tmp_path / "nowhere")


def test_check_finds_damaged_and_missing_shards(packed, tmp_path):
    _, whole, _ = packed
    shutil.copytree(whole, tmp_path / "set")
    counts = merge_parts.check(tmp_path / "set")
    for name, folder in tables(whole).items():
        assert sum(counts[name].values()) == len(raw_clips(folder))
    path = a_shard(tmp_path / "set")
    content = path.read_bytes()
    # With and without the checksums of the data set: a byte of a record, its clip count unchanged.
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match=f"{path.name} is damaged: bring back a copy"):
        merge_parts.check(tmp_path / "set")
    known = {p: p.read_bytes() for p in (tmp_path / "set").rglob("checksums.json")}
    for sums in known:
        sums.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is damaged: bring back a copy"):
        merge_parts.check(tmp_path / "set")
    path.write_bytes(content)
    for sums, text in known.items():
        sums.write_bytes(text)
    statistics = path.with_name("statistics.json")
    text = statistics.read_text()
    statistics.write_text(text.replace('"fps": 8.0', '"fps": 9.0'))
    with pytest.raises(ValueError, match="statistics.json is damaged, or was changed"):
        merge_parts.check(tmp_path / "set")
    statistics.write_text(text)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        merge_parts.check(tmp_path / "set")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        merge_parts.check(tmp_path / "set")


def test_sets_of_earlier_versions_are_accepted(videos, tmp_path):
    options = {"input": videos, "workers": 1} | PLAIN
    run(**options, output=tmp_path / "set")
    for name in ("motion_scores.npy", "checksums.json"):
        (tmp_path / "set" / name).unlink()
    report = json.loads((tmp_path / "set" / "pack_report.json").read_text())
    del report["long_captions"]
    (tmp_path / "set" / "pack_report.json").write_text(json.dumps(report))
    assert run(**options, output=tmp_path / "set")["finished_before"]
    merge_parts.check(tmp_path / "set")


def test_lock_keeps_other_processes_out(videos, tmp_path):
    options = {"input": videos, "workers": 1} | PLAIN
    code = (
        "import sys, time; from videogen_jax.data.locking import lock_folder\n"
        "with lock_folder(sys.argv[1]): print(flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "set"], stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(ValueError, match=f"process {other.pid} on .* is writing to .*set"):
            run(**options, output=tmp_path / "set")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert (tmp_path / "set" / ".lock").exists()  # left by the dead process, but unlocked
    run(**options, output=tmp_path / "set")
    assert not (tmp_path / "set" / ".lock").exists()
    with lock_folder(tmp_path / "set"), pytest.raises(ValueError, match="is writing to"):
        with lock_folder(tmp_path / "set"):
            pass


def merge_command(folder, *flags_):
    values = flags.FlagValues()
    merge.define_flags(values)
    values(["merge", f"--output={folder}", *flags_])
    return merge.run(values)


def test_command_prints_a_summary(packed, parts):
    assert f"merged 3 parts into {parts}" in merge_command(parts)
    for arguments in ([], ["--check"]):
        message = merge_command(parts, *arguments)
        assert f"{parts} is complete" in message
        assert (" buckets" in message) == ("buckets" in packed[0])


def test_command_prints_an_error_and_exits_with_1(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "videogen_jax.merge", f"--output={tmp_path / 'nowhere'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("merge: error: there is no folder")
    assert done.stderr.count("\n") == 1
