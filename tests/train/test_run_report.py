"""What a report gathers of a run's folder: curves of all event files, the newest samples, scores."""

import json
import os
import time

import numpy as np
import pytest

from videogen_jax.data import video_writer
from videogen_jax.generate import contact_sheet
from videogen_jax.train import metrics, run_report

pytestmark = pytest.mark.slow


def write_events(workdir, steps, value):
    """One more event file with the tags a/x and b/y, a picture and a text; its path."""
    folder = workdir / "tensorboard"
    before = set(folder.glob("*")) if folder.exists() else set()
    writer = metrics.make_writer(workdir)
    gif, size = contact_sheet.animation(np.zeros((1, 2, 8, 8, 3), np.uint8), fps=8)
    for step in steps:
        writer.write_scalars(step, {"a/x": value + step, "b/y": -value})
        metrics.write_animation(writer, step, "samples", gif, size)
    writer.write_texts(steps[0], {"told": "words"})
    writer.write_histograms(steps[0], {"spread": np.arange(3.0)}, num_buckets={"spread": 2})
    writer.close()
    (path,) = set(folder.glob("*")) - before
    return path


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_a_step_written_twice_the_last_value_counts(tmp_path, newer_first):
    first = write_events(tmp_path, range(1, 7), 10.0)
    second = write_events(tmp_path, range(4, 9), 20.0)
    names = ("2", "1") if newer_first else ("1", "2")
    for path, name in zip((first, second), names, strict=True):
        path.rename(path.with_name(f"events.out.tfevents.{name}"))
    curves = run_report.read_curves(tmp_path / "tensorboard")
    assert set(curves) == {"a/x", "b/y"}
    steps, values = curves["a/x"]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert values == [11, 12, 13, 24, 25, 26, 27, 28]
    assert curves["b/y"] == (steps, [-10] * 3 + [-20] * 5)


def test_an_event_file_cut_short_gives_what_it_has(tmp_path):
    path = write_events(tmp_path, range(1, 7), 10.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    curves = run_report.read_curves(tmp_path / "tensorboard")
    steps, values = curves["a/x"]
    assert steps == list(range(1, len(steps) + 1)) and 1 <= len(steps) < 6
    assert values == [10.0 + step for step in steps]


def test_no_events_are_no_curves(tmp_path):
    assert run_report.read_curves(tmp_path / "absent") == {}


def test_the_newest_samples_of_each_kind_are_shown(tmp_path, monkeypatch):
    for name in ("step_00000100", "step_00000900", "step_00001000", "step_00000200", "other_7"):
        (tmp_path / f"{name}.gif").write_bytes(b"GIF89a" + name.encode())
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "step_00000003.gif").write_bytes(b"GIF89adeep")
    (tmp_path / "reconstructions.gif").write_bytes(b"GIF87aonce")
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "cut.gif").touch()
    (tmp_path / "folder.gif").mkdir()
    videos = run_report.read_videos(tmp_path)
    assert [(video["title"], video["gif"][6:].decode()) for video in videos] == [
        ("other 7", "other_7"),
        ("prompts step 3", "deep"),
        ("reconstructions", "once"),
        ("step 1,000", "step_00001000"),
        ("step 900", "step_00000900"),
        ("step 200", "step_00000200"),
    ]
    (tmp_path / "step_00001000.gif").write_bytes(b"GIF89a" + bytes(1000))
    monkeypatch.setattr(run_report, "MOST_BYTES", 500)
    titles = [video["title"] for video in run_report.read_videos(tmp_path)]
    assert titles == ["other 7", "prompts step 3", "reconstructions", "step 900", "step 200"]


def test_samples_are_mp4_with_their_captions(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    video_writer.write_video(samples / "step_00000900.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    (samples / "step_00000900.txt").write_text("a <red> circle\nein grüner Kreis\n", "utf-8")
    page = run_report.write_run_report(tmp_path).read_text("utf-8")
    assert '<video src="data:video/mp4;base64,' in page and "autoplay loop muted" in page
    assert "media-src data:" in page and "step 900" in page
    assert "<li>a &lt;red&gt; circle</li><li>ein grüner Kreis</li>" in page
    (samples / "step_00000900.txt").write_bytes(b"\xff\xfe\x00")  # damaged
    page = run_report.write_run_report(tmp_path).read_text("utf-8")
    assert "data:video/mp4" in page and "<li>" not in page


def test_a_report_shows_the_scores_of_the_newest_evaluation(tmp_path):
    workdir = tmp_path / "my run"
    (workdir / "generated").mkdir(parents=True)
    path = run_report.write_run_report(workdir)
    assert path == workdir / "report.html" and "Not evaluated yet" in path.read_text()
    old, new = workdir / "evaluation.json", workdir / "generated" / "evaluation.json"
    old.write_text(json.dumps({"scores": [{"name": "old", "value": 3.25}]}))
    new.write_text(
        json.dumps(
            {"scores": [{"name": "new", "value": 4.5}], "protocol": {"stride": 77}, "videos": []}
        )
    )
    os.utime(old, (1, 1))
    (workdir / "config.json").write_text(json.dumps({"seed": 987}))
    page = run_report.write_run_report(workdir).read_text()
    assert "4.5" in page and "77" in page and "3.25" not in page and "987" in page
    assert "<h1>my run</h1>" in page
    os.utime(old, (time.time() + 9,) * 2)
    assert "3.25" in run_report.write_run_report(workdir).read_text()
    old.write_text(json.dumps({"colour": {"rate": 1.0}}))  # of a version without scores
    os.utime(old, (time.time() + 9,) * 2)
    assert "Not evaluated yet" in run_report.write_run_report(workdir).read_text()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"scores": [')
    with pytest.raises(ValueError, match="evaluation.json is damaged .*: remove it"):
        run_report.write_run_report(tmp_path)
