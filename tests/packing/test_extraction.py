"""What a worker makes of one file: its clips, or a reason in one line, whatever the file."""

import io
import os

import msgpack
import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.data.made_videos import make_frames, numbers, write
from videogen_jax import pack
from videogen_jax.data import image_io, records, video_io
from videogen_jax.data.read_limits import Limits
from videogen_jax.packing import pack_buckets
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.extraction import extract_clips, read_clips
from videogen_jax.packing.settings import Settings


def make_settings(frames=8, min_frames=4, **limits):
    return Settings(
        size=(48, 64),
        fps=8.0,
        frames=frames,
        min_frames=min_frames,
        validation_fraction=0.0,
        clips_per_shard=4,
        limits=Limits(**limits),
    )


def extract(path, settings=None, **span):
    """(reason, frames cut off, numbers of the frames of each clip)."""
    spill = path.parent / "0.clips"
    reason, cut_off, _ = extract_clips(str(path), str(spill), settings or make_settings(), **span)
    clips = [record["num_frames"] for record in read_clips(spill)]
    return reason, cut_off, clips


ERRORS = (
    IndexError("list index out of range"),
    AttributeError("'NoneType'\n..."),
    MemoryError(),
    RecursionError("deep"),
    OSError(5, "Input/output error"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_of_a_decoder_is_a_reason(tmp_path, monkeypatch, error):
    video = write(tmp_path / "a.mp4", make_frames(16))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fail(*args, **options):
        yield from ((k, k / 8, frame) for k, frame in enumerate(make_frames(9)))
        raise error

    def fail_at_once(*args, **options):
        raise error

    monkeypatch.setattr(video_io, "read_numbered_frames", fail)
    monkeypatch.setattr(video_io, "probe_video", fail_at_once)
    monkeypatch.setattr(image_io, "read_image", fail_at_once)
    monkeypatch.setattr(image_io, "probe_image", fail_at_once)
    for path in (video, tmp_path / "a.png"):
        reason, cut_off, clips = extract(path)
        assert reason.startswith("cannot be read (") and "\n" not in reason
        assert (
            error.strerror or "" if isinstance(error, OSError) else type(error).__name__
        ) in reason
        assert (cut_off, clips) == (0, [])  # nothing of it, not even the clip that was whole
        assert pack_buckets.probe_source(str(path), 8.0) == reason


def test_an_error_of_writing_is_none_of_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", make_frames(16))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(msgpack, "pack", full)
    with pytest.raises(OSError, match="No space left"):
        extract(path)


def test_what_comes_after_a_jump_is_told_beside_the_clips(tmp_path):
    times = np.where(np.arange(32) < 20, np.arange(32) / 8, np.arange(32) / 8 + 600)
    path = write(tmp_path / "jump.mkv", make_frames(32), times=times)
    reason, cut_off, clips = extract(path)
    assert clips == [8, 8, 4] and cut_off == 0
    assert reason.startswith("ends after 20 frames (2.38 s), because its timestamps jump by 600 s")
    reason, cut_off, clips = extract(path, make_settings(frames=24, min_frames=24))
    assert clips == [] and reason.startswith(
        "too short: 20 frames at 8 frames per second, because it ends after"
    )
    assert extract(path, make_settings(frames=8, min_frames=8), first=0, count=16)[2] == [8, 8]


def test_a_damaged_video_is_skipped_or_cut(tmp_path):
    path = write(tmp_path / "a.webm", make_frames(32), "libvpx")
    path.write_bytes(path.read_bytes()[:-1500])
    reason, _, clips = extract(path)
    assert clips == [] and reason.startswith("breaks off after ")
    reason, _, clips = extract(path, make_settings(damaged="cut"))
    assert clips[:1] == [8] and sum(clips) < 32 and "--damaged=cut" in reason


@pytest.mark.parametrize("name", ["fifo.mp4", "fifo.png", "null.mp4", "null.jpg"])
def test_what_is_no_regular_file_is_skipped_at_once(tmp_path, name):
    path = tmp_path / name
    if name.startswith("fifo"):
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert extract(path)[0] == "is no regular file: remove it."
    assert pack_buckets.probe_source(str(path), 8.0) == "is no regular file: remove it."


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", make_frames(8))
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root

        def refuse(file, *args, **options):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(video_io, "open", refuse, raising=False)
    assert extract(path)[0] == "cannot be opened (Permission denied)"


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_file_that_vanished_is_a_reason(tmp_path, name):
    assert extract(tmp_path / name)[0] == "is no longer there"
    assert pack_buckets.probe_source(str(tmp_path / name), 8.0) == "is no longer there"


def test_images_are_bounded_before_they_are_decoded(tmp_path):
    Image.new("1", (13300, 13300)).save(tmp_path / "bomb.png")
    reason = extract(tmp_path / "bomb.png", make_settings(1, 1))[0]
    assert reason == (
        "has pictures of 13300x13300 (176.9 megapixels), more than --max_megapixels=50: scale it down, or raise this "
        "option of pack."
    )
    assert pack_buckets.probe_source(str(tmp_path / "bomb.png"), 8.0) == reason


def parse(*arguments):
    values = flags.FlagValues()
    pack.define_flags(values)
    values(["pack", "--input=x", "--output=y", "--size=48x64", *arguments])
    return pack.read_settings(values)


def test_the_limits_are_options_of_pack():
    assert parse().limits == Limits()
    arguments = ["--damaged=cut", "--max_megapixels=7.5", "--max_gap=3", "--max_repeats=9"]
    limits = Limits("cut", 7.5, 3.0, 9.0)
    assert parse(*arguments).limits == limits
    assert pack_settings.settings_to_json(parse(*arguments), None).items() >= {
        "damaged": "cut", "max_megapixels": 7.5, "max_gap": 3.0, "max_repeats": 9.0
    }.items()  # fmt: skip


@pytest.mark.parametrize("name", ["max_megapixels", "max_gap", "max_repeats"])
def test_limits_that_allow_nothing_are_refused(name):
    for value in ("0", "-1", "nan"):
        with pytest.raises(ValueError, match=f"invalid --{name}={value}: set it above 0"):
            parse(f"--{name}={value}")
    assert getattr(parse(f"--{name}=inf").limits, name) == float("inf")


def test_no_limits_at_all(tmp_path):
    times = np.where(np.arange(8) < 4, np.arange(8) / 8, np.arange(8) / 8 + 100)
    write(tmp_path / "a.mkv", make_frames(8), times=times)
    limits = dict.fromkeys(("max_megapixels", "max_gap", "max_repeats"), float("inf"))
    reason, _, clips = extract(tmp_path / "a.mkv", make_settings(**limits))
    assert reason is None and sum(clips) > 800


def test_sets_from_before_the_limits_stay_usable(tmp_path):
    old = pack_settings.settings_to_json(parse(), None)
    assert not {"limits", "damaged", "max_gap"} & old.keys()
    new = pack_settings.settings_to_json(parse("--damaged=cut"), None)
    pack_settings.check_same_settings(tmp_path, old, old)
    for found, wanted, sentence in [
        (old, new, "damaged was skip and is now cut"),
        (new, old, "damaged was cut and is now skip"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            pack_settings.check_same_settings(tmp_path, found, wanted)


def test_clips_hold_the_frames_in_order(tmp_path):
    path = write(tmp_path / "a.mp4", make_frames(19))
    spill = tmp_path / "0.clips"
    assert extract_clips(str(path), str(spill), make_settings()) == (None, 3, {})
    found = []
    for record in read_clips(spill):
        strips = [np.asarray(Image.open(io.BytesIO(strip))) for strip in record["strips"]]
        found += list(np.concatenate(strips).reshape(-1, 48, 64, 3))
    assert numbers(found) == list(range(16)) and records.FRAMES_PER_STRIP == 16


def test_a_pack_tells_what_it_left_out_and_keeps_to_its_limits(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    times = np.where(np.arange(32) < 20, np.arange(32) / 8, np.arange(32) / 8 + 600)
    write(folder / "12:30.mkv", make_frames(32), times=times)
    write(folder / "whole.mp4", make_frames(8))
    (folder / "bad.gif").write_bytes(b"GIF89a" + bytes(range(200)))
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text("a red square", encoding="utf-8")

    def run(*arguments):
        values = flags.FlagValues()
        pack.define_flags(values)
        values(
            [
                "pack",
                f"--input={folder}",
                f"--output={tmp_path / 'run:1'}",
                "--workers=1",
                *arguments,
            ]
        )
        return pack.run(values)

    options = ("--size=48x64", "--frames=8", "--validation_fraction=0", "--max_gap=40")
    report = run(*options)
    assert report["clips"] == {"train": 3, "validation": 0}
    reasons = {item["file"]: item["reason"] for item in report["skipped"]}
    assert reasons.keys() == {"12:30.mkv", "bad.gif"}
    assert (
        "jump by 600 s there, more than --max_gap=40: the rest is left out" in reasons["12:30.mkv"]
    )
    assert report["frames_cut_off"] == {"12:30.mkv": 4} and report["settings"]["max_gap"] == 40
    assert run(*options)["finished_before"]
    with pytest.raises(ValueError, match=r"max_gap was 40\.0 and is now 60\.0"):
        run(*options[:-1])
