"""Captions for a folder: which files get them, and what a call leaves that is stopped, repeated or in the way."""

import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from videogen_jax.data.locking import lock_folder
from videogen_jax.data.video_writer import write_video
from videogen_jax.packing import caption_folder, sources
from videogen_jax.packing.captioner import Caption, CaptionError

SETTINGS = {"model": "grey", "prompt": "How bright?"}


class Captioner:
    """Says how bright the frames are; counts its calls, and fails where it is told to."""

    def __init__(self, frames=3, refuse=(), words=None, stop_after=None):
        self.frames, self.refuse, self.words, self.stop_after = frames, refuse, words, stop_after
        self.calls = []

    def write(self, samples):
        self.calls.append([sample.frames.shape[0] for sample in samples])
        if self.stop_after is not None and len(self.calls) > self.stop_after:
            raise KeyboardInterrupt
        levels = [[10 * round(frame.mean() / 10) for frame in sample.frames] for sample in samples]
        if any(level in self.refuse for shown in levels for level in shown):
            raise CaptionError("the model does not take it (too dark)")
        texts = ["brightness " + " ".join(map(str, shown)) for shown in levels]
        return [Caption(text if self.words is None else self.words, False) for text in texts]


def caption(folder, captioner=None, settings=SETTINGS, batch_size=2, **options):
    captioner = captioner or Captioner()
    options = {"batch_size": batch_size, "progress": False} | options
    report = caption_folder.caption_folder(folder, lambda: captioner, settings, **options)
    assert not (folder / ".lock").exists()
    return report


def write_grey(path, level, frames=4):
    write_video(path, np.full((frames, 16, 16, 3), level, np.uint8), 8)


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}


def read_lines(folder):
    return (folder / "caption_log.jsonl").read_text().splitlines()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    write_grey(folder / "a.mp4", 10)
    write_grey(folder / "deep" / "b.webm", 20)
    write_grey(folder / "c.gif", 30)
    Image.new("RGB", (8, 8), (40, 40, 40)).save(folder / "d.png")
    return folder


def test_each_file_without_a_caption_gets_one_beside_it(folder):
    captioner = Captioner()
    report = caption(folder, captioner)
    assert texts(folder) == {
        "a.txt": "brightness 10 10 10\n",
        "deep/b.txt": "brightness 20 20 20\n",
        "c.txt": "brightness 30\n",  # equal frames of a GIF are one
        "d.txt": "brightness 40\n",  # an image is shown once
    }
    assert {name: report[name] for name in ("written", "present", "cut", "skipped")} == {
        "written": 4,
        "present": 0,
        "cut": 0,
        "skipped": [],
    }
    assert sorted(captioner.calls) == [[1], [3], [3, 1]]  # videos and images not at once
    found, skipped = sources.list_sources(folder)
    assert {source.name: source.texts for source in found}["a.mp4"] == ["brightness 10 10 10"]
    assert not skipped


def test_captions_that_are_there_stay(folder):
    (folder / "a.txt").write_text("mine")
    (folder / "c.json").write_text('{"captions": ["mine too"]}')
    (folder / "d.json").write_text('{"exposure": 3}')  # of another program
    report = caption(folder)
    assert report["present"] == 2 and report["written"] == 2
    assert texts(folder) == {
        "a.txt": "mine",
        "d.txt": "brightness 40\n",
        "deep/b.txt": "brightness 20 20 20\n",
    }
    again = Captioner()
    assert caption(folder, again)["present"] == 4 and not again.calls


def test_the_model_is_loaded_only_if_it_is_needed(folder):
    caption(folder)

    def load():
        raise AssertionError

    report = caption_folder.caption_folder(folder, load, SETTINGS, batch_size=1, progress=False)
    assert report["written"] == 0 and report["present"] == 4


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_a_file_of_captions_that_cannot_be_used_is_skipped_and_left(folder, name):
    content = " \n" if name == "a.txt" else '{"captions": []}'
    (folder / name).write_text(content)
    (skipped,) = caption(folder)["skipped"]
    assert skipped["file"] == "a.mp4" and f"the caption {name}" in skipped["reason"]
    assert (folder / name).read_text() == content
    assert len(texts(folder)) == (4 if name == "a.txt" else 3)


def test_a_video_shares_its_caption_with_the_image_of_its_name(folder):
    Image.new("RGB", (8, 8), (200, 200, 200)).save(folder / "a.jpg")
    caption(folder)
    assert (folder / "a.txt").read_text() == "brightness 10 10 10\n"


def test_what_cannot_be_read_is_skipped_with_the_reason(folder):
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "empty.mp4").touch()
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    report = caption(folder)
    assert report["written"] == 4
    reasons = {item["file"]: item["reason"] for item in report["skipped"]}
    assert sorted(reasons) == ["bad.mp4", "empty.mp4", "gone.mp4"]  # bad.png has its caption
    assert reasons["gone.mp4"] == "it is a link to a missing file"
    assert reasons["empty.mp4"].startswith("is empty (0 bytes)")
    with pytest.raises(ValueError, match=r"^\w+\.mp4 would be skipped .* --strict stops there"):
        caption(folder, strict=True)


def test_links_that_lead_out_are_followed_on_request(folder, tmp_path):
    write_grey(tmp_path / "outside.mp4", 50)
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    assert [item["file"] for item in caption(folder)["skipped"]] == ["link.mp4"]
    assert caption(folder, follow_links=True)["written"] == 1
    assert (folder / "link.txt").read_text() == "brightness 50 50 50\n"


def test_a_file_that_the_model_does_not_take_does_not_spoil_the_others(folder):
    report = caption(folder, Captioner(refuse=[20]), batch_size=8)
    assert report["skipped"] == [
        {"file": "deep/b.webm", "reason": "the model does not take it (too dark)"}
    ]
    assert sorted(texts(folder)) == ["a.txt", "c.txt", "d.txt"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "the model wrote nothing"),
        ("...", "the model wrote '...'"),
        ("long " * 20_000, "the model wrote 100000 bytes, more than the 65536 of a caption"),
    ],
)
def test_a_caption_that_cannot_be_used_is_not_written(folder, words, reason):
    report = caption(folder, Captioner(words=words))
    assert {item["reason"] for item in report["skipped"]} == {reason}
    assert report["written"] == 0 and not texts(folder)


def test_a_model_that_captions_nothing_is_an_error_before_the_end(folder):
    for number in range(20):
        write_grey(folder / f"more{number:02d}.mp4", number)
    captioner = Captioner(words="?")
    with pytest.raises(ValueError, match=r"no caption of the first 16 files .*wrote '\?'.*--model"):
        caption(folder, captioner)
    assert len(captioner.calls) == 8


def test_a_call_that_is_stopped_resumes(folder):
    with pytest.raises(KeyboardInterrupt):
        caption(folder, Captioner(stop_after=1), batch_size=1)
    assert len(texts(folder)) == 1
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name != "MainThread" and not thread.daemon
    ]
    captioner = Captioner()
    report = caption(folder, captioner, batch_size=1)
    assert report["written"] == len(captioner.calls) == 3 and report["present"] == 1
    assert len(texts(folder)) == 4


def test_a_caption_that_comes_meanwhile_stays(folder):
    class Slow(Captioner):
        def write(self, samples):
            (folder / "a.txt").write_text("mine")
            return super().write(samples)

    report = caption(folder, Slow())
    assert (folder / "a.txt").read_text() == "mine"
    assert report["written"] == 3 and report["present"] == 1


def test_overwrite_replaces_what_a_model_wrote_and_nobody_changed(folder):
    (folder / "a.txt").write_text("mine")
    caption(folder)
    (folder / "c.txt").write_text("brightness 30, roughly")
    other = SETTINGS | {"model": "other"}
    assert caption(folder, Captioner(frames=1), other)["written"] == 0  # not without --overwrite
    assert caption(folder, Captioner(frames=1), overwrite=True)["written"] == 0  # the same settings
    report = caption(folder, Captioner(frames=1), other, overwrite=True)
    assert report["written"] == 2 and report["present"] == 2
    assert texts(folder) == {
        "a.txt": "mine",
        "c.txt": "brightness 30, roughly",
        "d.txt": "brightness 40\n",
        "deep/b.txt": "brightness 20\n",
    }
    assert caption(folder, Captioner(frames=2), other, overwrite=True)["written"] == 0


def test_a_log_that_is_lost_or_damaged_makes_captions_a_persons(folder):
    caption(folder)
    before = texts(folder)
    log, lines = folder / "caption_log.jsonl", read_lines(folder)
    assert json.loads(lines[0]) == {"made_by": SETTINGS}
    kept = [line for line in lines if '"a.mp4"' not in line]
    log.write_text("\n".join([*kept, '{"file": "c.g']))  # killed in the middle of a line
    report = caption(folder, Captioner(frames=1), {"model": "other"}, overwrite=True)
    assert report["written"] == 3
    assert (folder / "a.txt").read_text() == before["a.txt"]
    assert '{"made_by": {"model": "other"}}' in read_lines(folder)
    log.unlink()
    assert caption(folder, Captioner(frames=2), overwrite=True)["written"] == 0


def test_the_log_names_what_was_written_and_skipped(folder):
    (folder / "bad.mp4").touch()
    caption(folder)
    first, *rest = [json.loads(line) for line in read_lines(folder)]
    assert first == {"made_by": SETTINGS}
    assert {entry["file"] for entry in rest} == {
        "a.mp4",
        "deep/b.webm",
        "c.gif",
        "d.png",
        "bad.mp4",
    }
    assert [entry for entry in rest if "skipped" in entry][0]["skipped"].startswith("is empty")


def test_one_call_at_a_time(folder):
    with lock_folder(folder), pytest.raises(ValueError, match="is writing to .*clips: wait until"):
        caption_folder.caption_folder(folder, Captioner, SETTINGS, batch_size=1)


def test_a_folder_without_videos_or_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*missing: set --input"):
        caption_folder.caption_folder(tmp_path / "missing", Captioner, SETTINGS, batch_size=1)
    with pytest.raises(ValueError, match="holds no video or image"):
        caption_folder.caption_folder(tmp_path, Captioner, SETTINGS, batch_size=1)


def test_a_folder_with_metadata_is_refused_because_pack_would_refuse_the_result(folder):
    (folder / "deep" / "metadata.csv").write_text("file_name,text\nb.webm,b\n")
    with pytest.raises(ValueError, match="has deep/metadata.csv, beside which pack takes no"):
        caption(folder)
    assert texts(folder) == {} and not (folder / "caption_log.jsonl").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error(folder):
    folder.chmod(0o500)
    with pytest.raises(OSError):
        caption_folder.caption_folder(folder, Captioner, SETTINGS, batch_size=1)
