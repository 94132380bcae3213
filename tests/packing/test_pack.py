import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import imageio_ffmpeg
import numpy as np
import pytest
from absl import flags

from videogen_jax import pack
from videogen_jax.data import synthetic
from videogen_jax.data.video_writer import write_video
from videogen_jax.data.vocabulary import split_words
from videogen_jax.data.workers import WorkerDied, make_pool
from videogen_jax.packing import media_files, pack_folder, shards, sources

NUM_CLIPS = 160


def run(**options):
    """Runs the command in this process."""
    values = flags.FlagValues()
    pack.define_flags(values)
    values(["pack", *(f"--{name}={value}" for name, value in options.items())])
    return pack.run(values)


def command(**options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "videogen_jax.pack", *arguments]


def grey_video(values, height=32, width=32):
    return np.broadcast_to(
        np.uint8(values)[:, None, None, None], (len(values), height, width, 3)
    ).copy()


def add(folder, name, video, caption="a grey clip", fps=8):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, video, fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tfrecord*"))}


def read(folder, split):
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(folder).as_dataset(split, shuffle_files=False)
    return list(tfds.as_numpy(data))


def caption_of(item):
    return item["captions"]["text"][0].decode()


def frames_of(item):
    return item["strips"].reshape(-1, item["height"], item["width"], 3)[: item["num_frames"]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of synthetic videos, and the data set packed from it without interruption."""
    folder = tmp_path_factory.mktemp("shapes")
    settings = dict(clips=NUM_CLIPS, seed=0, size=32, frames=8)
    synthetic.write_shapes(folder / "videos", "moving_shapes", **settings, workers=2)
    options = dict(input=folder / "videos", size=32, frames=8, clips_per_shard=5)
    report = run(**options, output=folder / "packed", workers=1)
    return folder, options, report


def test_tfds_opens_the_set_with_each_clip_once(shapes):
    folder, _, report = shapes
    assert report["skipped"] == []
    items = {split: read(folder / "packed", split) for split in ("train", "validation")}
    assert {split: len(found) for split, found in items.items()} == report["clips"]
    found = sorted(item["source"].decode() for split in items.values() for item in split)
    assert found == sorted(path.name for path in (folder / "videos").glob("*.mp4"))
    for item in items["train"][:20]:
        source, caption = item["source"].decode(), caption_of(item)
        assert "_".join(synthetic.parse_caption(caption)).replace(" ", "_") == source[7:-4]
        _, video = synthetic.make_clip(int(source[:6]), 0, size=32, frames=8)
        assert np.abs(frames_of(item).astype(float) - video).mean() < 8


def test_split_is_a_hash_of_the_name(shapes):
    folder, _, report = shapes
    assert 1 <= report["clips"]["validation"] <= 20  # 5 % of 160 = 8
    everything, _ = sources.list_sources(folder / "videos")
    held_out = {source.name for source in everything if source.order_key < 0.05}
    found = {item["source"].decode() for item in read(folder / "packed", "validation")}
    assert found == held_out
    numbers = [int(source.name[:6]) for source in everything]
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.3  # neighbours are unrelated


def test_statistics_describe_the_train_split(shapes):
    folder, _, _ = shapes
    statistics = json.loads((folder / "packed" / "statistics.json").read_text())
    train = read(folder / "packed", "train")
    words = [word for item in train for word in split_words(caption_of(item))]
    assert statistics["words"] == {word: words.count(word) for word in set(words)}
    assert {key: statistics[key] for key in ("frames", "height", "width", "fps")} == {
        "frames": 8, "height": 32, "width": 32, "fps": 8.0
    }  # fmt: skip
    edges = statistics["motion_score_buckets"]
    assert len(edges) == 255 and edges == sorted(edges)
    buckets = np.searchsorted(edges, [item["motion_score"] for item in train], side="right")
    assert buckets.min() == 0 and buckets.max() == 255
    assert abs(np.mean(buckets) - 127.5) < 3  # uniform over the buckets


def test_finished_set_is_left_unchanged(shapes):
    folder, options, _ = shapes
    before = {p: p.stat().st_mtime_ns for p in (folder / "packed").iterdir()}
    started = time.monotonic()
    assert run(**options, output=folder / "packed")["finished_before"]
    assert time.monotonic() - started < 2
    assert {p: p.stat().st_mtime_ns for p in (folder / "packed").iterdir()} == before


def test_other_settings_or_videos_are_refused(shapes, tmp_path):
    folder, options, _ = shapes
    with pytest.raises(ValueError, match=r"fps was 8.0 and is now 4.0; min_fr.*another --output"):
        run(**options, output=folder / "packed", fps=4, min_frames=4)
    shutil.copytree(folder / "videos", tmp_path / "more")
    add(tmp_path / "more", "extra.mp4", grey_video(range(8)))
    with pytest.raises(ValueError, match="videos or their captions changed .from 160 to 161"):
        run(**{**options, "input": tmp_path / "more"}, output=folder / "packed")


def test_resuming_after_a_kill_gives_the_same_bytes(shapes, tmp_path):
    folder, options, _ = shapes
    output = tmp_path / "packed"
    process = subprocess.Popen(command(**options, output=output, workers=2))
    journal = output / "unfinished" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "dataset_info.json").exists()
    entries = [json.loads(line) for line in journal.read_text().splitlines()[:3]]
    done = [output / "unfinished" / f"{line['split']}-{line['shard']:05d}" for line in entries]
    done = {path: path.stat().st_mtime_ns for path in done}
    with open(journal, "a") as file:  # an incomplete last line
        file.write('{"split": "tra')
    with pytest.raises(ValueError, match="frames was 8 and is now 4"):
        run(**{**options, "frames": 4}, output=output)
    kept = threading.Event()
    original = pack_folder._finish

    def finish(*arguments):
        if all(path.stat().st_mtime_ns == then for path, then in done.items()):
            kept.set()
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_folder, "_finish", finish)
        run(**options, output=output, workers=2)
    assert kept.is_set()  # the finished shards were not rewritten
    assert shard_bytes(output) == shard_bytes(folder / "packed")
    for name in ("statistics.json", "dataset_info.json", "features.json"):
        assert (output / name).read_bytes() == (folder / "packed" / name).read_bytes()
    assert not (output / "unfinished").exists()


def test_workers_end_when_their_parent_is_killed(shapes, tmp_path):
    folder, options, _ = shapes
    process = subprocess.Popen(
        command(**options, output=tmp_path / "packed", workers=2), start_new_session=True
    )
    while not list((tmp_path / "packed").glob("unfinished/*.clips")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers outlived their parent")


@pytest.mark.parametrize("shard", ["train-00002", "validation-00000"])
def test_full_disk_leaves_no_partial_files(shapes, tmp_path, shard, capsys):
    folder, options, _ = shapes
    output = tmp_path / "packed"
    (output / "unfinished").mkdir(parents=True)
    (output / "unfinished" / f"{shard}.unfinished").symlink_to("/dev/full")  # a real ENOSPC
    with pytest.raises(OSError) as info:
        run(**options, output=output)
    assert info.value.errno == errno.ENOSPC
    left = {path.name for path in (output / "unfinished").iterdir()}
    assert shard not in left and not any(n.endswith((".unfinished", ".clips")) for n in left)
    assert not shard_bytes(output) and not (output / "dataset_info.json").exists()
    run(**options, output=output)  # the disk has space again
    assert shard_bytes(output) == shard_bytes(folder / "packed")


def test_full_disk_in_a_worker_is_an_error(shapes, tmp_path):
    folder, options, _ = shapes
    work = tmp_path / "packed" / "unfinished"
    work.mkdir(parents=True)
    (work / "40.clips").symlink_to("/dev/full")
    with pytest.raises(OSError) as info:
        run(**options, output=tmp_path / "packed")
    assert info.value.errno == errno.ENOSPC
    assert not list(work.glob("*.clips"))


def test_dead_worker_is_an_error_without_deadlock(shapes, tmp_path):
    folder, options, _ = shapes
    before = set(multiprocessing.active_children())

    def kill_one():
        while not list((tmp_path / "packed").glob("unfinished/*.clips")):
            time.sleep(0.001)
        child = (set(multiprocessing.active_children()) - before).pop()
        os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(WorkerDied, match=r"worker process died while .*\.mp4 .* same command"):
        run(**options, output=tmp_path / "packed", workers=2)
    killer.join()
    run(**options, output=tmp_path / "packed", workers=2)
    assert shard_bytes(tmp_path / "packed") == shard_bytes(folder / "packed")


def test_error_in_the_parent_terminates_the_workers():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), make_pool(1) as pool:
        pool.submit(time.sleep, 60)
        time.sleep(0.5)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 15


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """All kinds of bad input among some good videos, and their packed set."""
    folder = tmp_path_factory.mktemp("zoo")
    videos = folder / "videos"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 48, 48, 3), np.uint8)
    add(videos, "good.mp4", noise[:16], "x" * 10_000)
    add(videos, "sub/portrait.webm", noise[:16, :, :30], "\ufeff Кошка бежит 猫 \n")
    add(videos, "odd.GIF", noise[:16, :33, :41], "odd sizes")
    add(videos, "long.mp4", np.tile(noise, (3, 1, 1, 1)), "72 frames")
    add(videos, "short.mp4", noise[:9])
    add(videos, "one.gif", noise[:1])
    add(videos, "no caption.mp4", noise[:16], None)
    add(videos, "blank.mp4", noise[:16], " \n")
    add(videos, "latin.mp4", noise[:16])
    (videos / "latin.txt").write_bytes("Zoë".encode("latin-1"))
    (videos / "empty.mp4").touch()
    (videos / "empty.txt").write_text("nothing")
    whole = (videos / "good.mp4").read_bytes()
    (videos / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "half.txt").write_text("half")
    sound = ["-f", "lavfi", "-i", "sine=duration=1", str(videos / "sound.mp4")]
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([exe, "-loglevel", "error", *sound], check=True)
    (videos / "sound.txt").write_text("a beep")
    (videos / ".hidden.mp4").touch()
    (videos / "notes.md").write_text("not a video")
    report = run(input=videos, output=folder / "packed", size="24x40", workers=2)
    return videos, folder / "packed", report


def test_skipped_files_are_listed_with_reasons(zoo):
    _, output, report = zoo
    reasons = {item["file"]: item["reason"] for item in report["skipped"]}
    expected = {
        "short.mp4": "too short: 9 frames",
        "one.gif": "too short: 1 frames",
        "no caption.mp4": "no caption.txt is missing",
        "blank.mp4": "is empty",
        "latin.mp4": "not UTF-8",
        "empty.mp4": "empty",
        "half.mp4": "breaks off|cannot be read",
        "sound.mp4": "no video stream",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert any(part in reasons[name] for part in reason.split("|")), reasons[name]
    assert json.loads((output / "pack_report.json").read_text())["skipped"] == report["skipped"]
    assert report["frames_cut_off"] == {"long.mp4": 8}


def test_captions_of_any_script_and_videos_of_any_shape_are_packed(zoo):
    _, output, report = zoo
    items = read(output, "train") + read(output, "validation")
    assert len(items) == sum(report["clips"].values()) == 7
    captions = {item["source"].decode(): caption_of(item) for item in items}
    assert captions == {
        "good.mp4": "x" * 10_000,
        "sub/portrait.webm": "Кошка бежит 猫",
        "odd.GIF": "odd sizes",
        "long.mp4": "72 frames",
    }
    assert {frames_of(item).shape for item in items} == {(16, 24, 40, 3)}
    splits = [{item["source"] for item in read(output, split)} for split in shards.SPLITS]
    assert not splits[0] & splits[1]  # the clips of a video stay together


def test_strict_stops_at_the_first_skipped_file(zoo, tmp_path):
    videos, _, _ = zoo
    with pytest.raises(ValueError, match="would be skipped .*--strict"):
        run(input=videos, output=tmp_path / "packed", size="24x40", strict=True)
    assert not (tmp_path / "packed" / "dataset_info.json").exists()


def test_long_videos_become_consecutive_clips_at_the_requested_rate(tmp_path):
    values = 20 + 4 * np.arange(50)
    add(tmp_path / "videos", "ramp.mp4", grey_video(values), fps=24)
    add(tmp_path / "videos", "other.mp4", grey_video(values), fps=24)
    options = dict(fps=12, frames=9, min_frames=5, size=32, validation_fraction=0)
    report = run(input=tmp_path / "videos", output=tmp_path / "packed", **options)
    assert report["clips"] == {"train": 6, "validation": 0}
    items = [i for i in read(tmp_path / "packed", "train") if i["source"] == b"ramp.mp4"]
    assert [item["num_frames"] for item in items] == [9, 9, 7]  # 25 frames of 12 per second
    means = np.concatenate([frames_of(item).mean((1, 2, 3)) for item in items])
    np.testing.assert_allclose(means, values[::2], atol=2)
    assert {float(item["fps"]) for item in items} == {12.0}
    # A ramp of 4 / 255 per frame of 1/24 s.
    assert items[0]["motion_score"] == pytest.approx(24 * 4 / 255, rel=0.05)


def test_resuming_within_a_long_video_keeps_its_split(tmp_path):
    for name in "abc":
        add(tmp_path / "videos", f"{name}.mp4", grey_video(20 + np.arange(40)))
    options = dict(input=tmp_path / "videos", frames=4, size=32, clips_per_shard=3)
    report = run(**options, output=tmp_path / "whole")
    assert report["clips"] == {"train": 20, "validation": 10}
    output = tmp_path / "packed"
    (output / "unfinished").mkdir(parents=True)
    (output / "unfinished" / "validation-00002.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError):
        run(**options, output=output)
    run(**options, output=output)
    assert shard_bytes(output) == shard_bytes(tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_sets_have_a_validation_clip_if_possible(tmp_path, count):
    for index in range(count):
        add(tmp_path / "videos", f"{index}.mp4", grey_video(range(4)))
    report = run(input=tmp_path / "videos", output=tmp_path / "packed", frames=4, size=32)
    assert report["clips"] == {"train": max(count - 1, 1), "validation": min(count - 1, 1)}
    summary = pack.summarize(report, "packed")
    assert ("validation split is empty" in summary) == (count == 1)


def test_synthetic_videos_are_generated_and_packed(tmp_path):
    options = dict(synthetic="moving_shapes", clips=6, frames=4, size=32)
    report = run(**options, output=tmp_path / "shapes")
    assert sum(report["clips"].values()) == 6
    assert len(list((tmp_path / "shapes_videos").glob("*.mp4"))) == 6
    shutil.rmtree(tmp_path / "shapes_videos")
    assert run(**options, output=tmp_path / "shapes")["finished_before"]
    assert not (tmp_path / "shapes_videos").exists()  # nothing is regenerated
    with pytest.raises(ValueError, match="synthetic was .*'seed': 0.* is now .*'seed': 1"):
        run(**options, output=tmp_path / "shapes", seed=1)


def test_synthetic_videos_are_packed_with_long_captions(tmp_path):
    options = dict(synthetic="moving_shapes", clips=3, frames=4, size=16, caption_words=30)
    options |= dict(output=tmp_path / "packed", validation_fraction=0)
    run(**options)
    found = {
        int(item["source"][:6]): caption_of(item) for item in read(tmp_path / "packed", "train")
    }
    assert found == {index: synthetic.caption_clip(index, 0, 30) for index in range(3)}
    with pytest.raises(ValueError, match="'caption_words': 30.* is now .*'seed': 0}"):
        run(**options | {"caption_words": 0})
    with pytest.raises(ValueError, match="remove it with --input"):
        run(input=tmp_path, output=tmp_path / "other", caption_words=30)


def test_bouncing_shapes_are_packed(tmp_path):
    options = dict(synthetic="bouncing_shapes", clips=3, frames=20, size=24)
    options |= dict(output=tmp_path / "packed", validation_fraction=0)
    assert run(**options)["clips"] == {"train": 3, "validation": 0}
    for item in read(tmp_path / "packed", "train"):
        index = int(item["source"].decode()[:6])
        names, video = synthetic.make_clip(index, 0, size=24, frames=20, kind="bouncing_shapes")
        assert caption_of(item) == synthetic.make_caption(*names)
        assert np.abs(frames_of(item).astype(float) - video).mean() < 8
    with pytest.raises(ValueError, match="'bouncing_shapes'.* is now .*'moving_shapes'"):
        run(**options | {"synthetic": "moving_shapes"})


def test_no_usable_video_is_an_error_with_reasons(tmp_path):
    add(tmp_path / "videos", "short.mp4", grey_video(range(3)))
    with pytest.raises(ValueError, match="no training clip .*short.mp4: too short: 3 frames"):
        run(input=tmp_path / "videos", output=tmp_path / "packed", size=32)
    assert not list((tmp_path / "packed").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--output is missing"),
        ({"output": "x"}, "nothing to pack"),
        ({"output": "x", "input": "x", "size": "64by64"}, "64by64"),
        ({"output": "x", "input": "x", "size": "5000"}, "4093"),
        ({"output": "x", "input": "x", "min_frames": 17}, "--min_frames=17"),
        ({"output": "x", "input": "x", "fps": 0}, "--fps=0"),
        ({"output": "x", "synthetic": "moving_shapes", "size": "32x48"}, "--size=N"),
    ],
)
def test_invalid_flags_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize("kind", ["missing", "no videos", "no captions", "misspelt"])
def test_command_prints_one_sentence_and_exits_with_1(tmp_path, kind):
    folder = tmp_path / "videos"
    options = {"input": folder, "output": tmp_path / "packed"}
    if kind != "missing":
        folder.mkdir()
    if kind == "no captions":
        add(folder, "a.mp4", grey_video(range(3)), None)
    if kind == "misspelt":
        options["framess"] = 3
    done = subprocess.run(command(**options), capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    message = {"missing": "no folder", "no videos": "holds no video"}
    message |= {"no captions": "has a usable caption", "misspelt": "framess"}
    assert message[kind] in done.stderr
    assert done.stderr.startswith("pack: error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "packed").exists()


def test_dangling_link_is_skipped(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "gone.txt").write_text("a link")
    with pytest.raises(ValueError, match="gone.mp4: it is a link to a missing file"):
        sources.list_sources(tmp_path)


def test_captions_without_a_word_are_reported(tmp_path):
    add(tmp_path / "videos", "a.mp4", grey_video(range(16)), "?! ...")
    add(tmp_path / "videos", "b.mp4", grey_video(range(16)))
    report = run(input=tmp_path / "videos", output=tmp_path / "packed", size=32, workers=1)
    assert report["captions_without_words"] == ["a.mp4"]
    lines = pack.summarize(report, "packed").splitlines()
    assert "  1 captions have no word, such as that of a.mp4: a model reads them as empty" in lines
    assert any("few held-out clips (1): FVD of fewer than 64" in line for line in lines)


def remove_after_listing(monkeypatch, *names):
    """Makes files vanish between the listing of a folder and the reading of its videos."""
    list_sources = sources.list_sources

    def list_and_remove(folder, **options):
        found = list_sources(folder, **options)
        for name in names:
            os.unlink(os.path.join(folder, name))
        return found

    monkeypatch.setattr(sources, "list_sources", list_and_remove)


@pytest.mark.parametrize("table", [{"size": 32}, {"buckets": "16x32x32"}])
def test_files_that_vanish_while_packing_are_skipped_and_listed(tmp_path, monkeypatch, table):
    videos = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        add(videos, name, grey_video(range(16)))
    options = dict(input=videos, output=tmp_path / "packed", workers=1) | table
    with monkeypatch.context() as patch:
        remove_after_listing(patch, "b.mp4")
        report = run(**options)
    assert report["skipped"] == [{"file": "b.mp4", "reason": media_files.VANISHED}]
    assert sum(report["clips"].values()) == 3
    assert run(**options)["finished_before"]  # the folder as it is now is packed


def stop_before_the_end(monkeypatch, options):
    """Packs all shards, but does not finish the set."""

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "move_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            run(**options)


def test_a_call_continues_after_files_have_vanished(shapes, tmp_path, monkeypatch):
    folder, options, _ = shapes
    videos = tmp_path / "videos"
    shutil.copytree(folder / "videos", videos)
    options = options | {"input": videos, "output": tmp_path / "packed", "workers": 1}
    stop_before_the_end(monkeypatch, options)
    journal = tmp_path / "packed" / "unfinished" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:4]))
    order = [source.name for source in sources.list_sources(videos)[0]]
    for name in (order[0], order[-1]):  # packed before, not packed yet
        (videos / name).unlink()
    report = run(**options)
    assert report["skipped"] == [{"file": order[-1], "reason": media_files.VANISHED}]
    assert sum(report["clips"].values()) == NUM_CLIPS - 1
    assert run(**options)["finished_before"]


def test_a_folder_that_vanishes_is_no_folder_without_videos(tmp_path, monkeypatch):
    add(tmp_path / "videos", "a.mp4", grey_video(range(16)))
    remove_after_listing(monkeypatch, "a.mp4", "a.txt")
    with pytest.raises(
        FileNotFoundError, match="videos has vanished or is empty now: bring it back"
    ):
        run(input=tmp_path / "videos", output=tmp_path / "packed", size=32, workers=1)
    assert not (tmp_path / "packed" / "dataset_info.json").exists()


@pytest.mark.parametrize("damage", ["flip", "journal"])
def test_a_resumed_call_packs_damaged_shards_again(shapes, tmp_path, monkeypatch, damage):
    folder, options, _ = shapes
    options = options | {"output": tmp_path / "packed", "workers": 1}
    stop_before_the_end(monkeypatch, options)
    work = tmp_path / "packed" / "unfinished"
    if damage == "flip":
        content = bytearray((work / "train-00020").read_bytes())
        content[len(content) // 2] ^= 1
        (work / "train-00020").write_bytes(content)
    else:
        lines = (work / "journal.jsonl").read_text().splitlines(keepends=True)
        lines[20] = lines[20].replace('"clips": ', '"clips": [0], "was": ')
        (work / "journal.jsonl").write_text("".join(lines))
    run(**options)
    assert shard_bytes(tmp_path / "packed") == shard_bytes(folder / "packed")


def test_output_is_tried_before_the_videos_are_listed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match="file/packed cannot be written to .*name another place with --output"
    ):
        run(input=tmp_path / "nowhere", output=tmp_path / "file" / "packed")
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        run(input=tmp_path / "nowhere", output=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


SCRIPT = """
import sys
from videogen_jax.packing import pack_folder
from videogen_jax.packing.settings import Settings
settings = Settings((32, 32), 8.0, 16, 16, 0.05, 256)
pack_folder.pack(sys.argv[1], sys.argv[2], settings, workers=2)
"""


def test_a_script_without_main_guard_is_told_so(tmp_path):
    add(tmp_path / "videos", "a.mp4", grey_video(range(16)))
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [tmp_path / "script.py", tmp_path / "videos", tmp_path / "packed"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    call = [sys.executable, *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert 'put the call under if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert "a.mp4" not in done.stderr and done.stderr.count("Traceback") == 1  # the script's own


@pytest.mark.parametrize("stdout", ["full", "closed pipe"])
def test_a_stdout_that_nobody_reads_is_no_failed_pack(tmp_path, stdout):
    add(tmp_path / "videos", "日本.mp4", grey_video(range(16)))
    add(tmp_path / "videos", "b.mp4", grey_video(range(16)), "猫")
    add(tmp_path / "videos", "ü.mp4", grey_video(range(2)))  # named in the summary
    call = command(input=tmp_path / "videos", output=tmp_path / "packed", size=32, workers=1)
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    if stdout == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                call, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
            )
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            call, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment
        )
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "packed" / "pack_report.json").read_text(encoding="utf-8"))
    assert report["skipped"][0]["file"] == "ü.mp4" and report["clips"]["train"] == 1
