"""What `sample` wrote is read as it is, and samples.json names files of its own folder only."""

import json
import types

import numpy as np
import pytest
from absl import logging

from tests.evaluation.test_evaluate import run
from videogen_jax import evaluate
from videogen_jax.data import output_folder, video_writer
from videogen_jax.evaluation import clip_sets, feature_cache, fvd, report, video_folders
from videogen_jax.generate.sample_folder import SampleFolder, name_file
from videogen_jax.train import run_report

PROMPTS = [
    "a red\u0085circle\u2028moving left",
    "赤い円が左へ" * 30,
    "🐈" * 80,
    "",
    "../up/ and\\down",
]


def write_videos(folder, prompts=PROMPTS, finish=True, suffix="mp4"):
    """A folder as `sample` leaves it; video i is one grey of 20 i."""
    folder.mkdir()
    entries = [
        {"file": name_file(i, prompt, suffix), "prompt": prompt, "seed": 2**32 - 1 - i}
        for i, prompt in enumerate(prompts)
    ]
    samples = SampleFolder(folder, {"step": 5, "guidance_scale": 2.0}, 8.0, entries, {})
    for i, path in enumerate(samples.paths[: None if finish else 2]):
        video_writer.write_video(path, np.full((4, 16, 16, 3), 20 * i, np.uint8), 8.0)
        samples.add([i])
    if finish:
        samples.finish()
    return entries


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_all_that_sample_wrote_is_read(tmp_path, suffix):
    entries = write_videos(tmp_path / "out", suffix=suffix)
    listed, not_listed = video_folders.list_videos(tmp_path / "out")
    assert listed == entries and not_listed == []
    clips = list(clip_sets.read_folder(tmp_path / "out")())
    assert [clip.reason for clip in clips] == [""] * 5
    assert [round(float(clip.video.mean()) / 20) for clip in clips] == [0, 1, 2, 3, 4]
    settings = video_folders.read_settings(tmp_path / "out")
    assert set(settings) == {"step", "guidance_scale", "prompts_and_seeds"}


def test_videos_that_are_not_all_there_are_not_scored(tmp_path):
    write_videos(tmp_path / "out", finish=False)
    with pytest.raises(ValueError, match="out lacks videos .* or run the same command again"):
        video_folders.list_videos(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../x.mp4", "/etc/x.mp4", "a/x.mp4", "..", ".", "", "a\\x.mp4", "x\0.mp4", "link.mp4"]
)
def test_names_outside_of_the_folder_are_refused(tmp_path, name):
    (tmp_path / "x.mp4").write_bytes(b"secret")
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(tmp_path / "x.mp4")
    listing = {"videos": [{"file": name, "prompt": "a"}]}
    (folder / "samples.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"samples\.json names .* (no file|a link out) of its fol"):
        video_folders.list_files(folder)


def test_a_link_inside_the_folder_is_a_file_of_it(tmp_path):
    write_videos(tmp_path / "out", ["a"])
    (tmp_path / "out" / "link.mp4").symlink_to("0000_a.mp4")
    listing = {"videos": [{"file": "link.mp4", "prompt": "a"}]}
    (tmp_path / "out" / "samples.json").write_text(json.dumps(listing))
    assert video_folders.list_files(tmp_path / "out") == ["link.mp4"]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 99_999,
        '{"videos": [{"file": 1, "prompt": "a"}]}',
        '{"videos": [{"file": "0000_a.mp4", "prompt": "a", "seed": "1"}]}',
        '{"videos": [{"file": "0000_a.mp4", "prompt": "a"}], "step": "7"}',
    ],
)
def test_a_damaged_listing_is_one_sentence(tmp_path, content):
    write_videos(tmp_path / "out", ["a"])
    (tmp_path / "out" / "samples.json").write_text(content)
    with pytest.raises(ValueError, match=r"samples\.json .*write it again with videogen_jax"):
        video_folders.list_videos(tmp_path / "out")


def test_prompts_beside_videos_follow_the_rule_for_text(tmp_path):
    video = np.zeros((2, 16, 16, 3), np.uint8)
    video_writer.write_video(tmp_path / "a.mp4", video, 8)
    (tmp_path / "a.txt").write_bytes("\ufeffa red\u0085circle\r\n".encode())
    assert video_folders.list_videos(tmp_path)[0][0]["prompt"] == "a red\u0085circle"
    (tmp_path / "a.txt").write_bytes("a café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        video_folders.list_videos(tmp_path)


def write_packed(folder, settings, clips):
    folder.mkdir(parents=True)
    (folder / "pack_report.json").write_text(json.dumps({"settings": settings, "clips": clips}))
    return folder


def write_latents(folder, packed, **more):
    folder.mkdir(parents=True)
    content = {"settings": {"packed": packed}} | more
    (folder / "encode_report.json").write_text(json.dumps(content))
    return folder


def test_the_clips_that_were_encoded_are_found(tmp_path):
    settings = {"size": "16x16", "fps": 8.0}
    away = write_packed(tmp_path / "elsewhere" / "pixels", settings, 7)
    packed = settings | {"clips": 7}
    named = write_latents(tmp_path / "data" / "latents", packed, source=str(away))
    assert clip_sets.find_pixels(named) == away
    # Latents of earlier versions do not name them, and folders move: they may be beside the latents.
    old = write_latents(tmp_path / "data" / "old", packed, source="/gone")
    assert clip_sets.find_pixels(old) == old
    write_packed(tmp_path / "data" / "another", settings, 8)
    beside = write_packed(tmp_path / "data" / "pixels", settings, 7)
    assert clip_sets.find_pixels(old) == beside
    assert clip_sets.find_pixels(beside) == beside


class TestFewClips:
    @pytest.mark.parametrize(("count", "warns"), [(63, True), (64, False)])
    def test_fvd_of_few_clips_warns(self, tmp_path, monkeypatch, caplog, count, warns):
        logging.get_absl_logger().propagate = True
        monkeypatch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path))
        monkeypatch.setattr(fvd.frechet, "bootstrap_interval", lambda *_: (0.0, 1.0))

        def make_set(seed):
            rng = np.random.default_rng(seed)
            videos = rng.integers(0, 256, (count, 2, 4, 4, 3), np.uint8)
            return lambda: [clip_sets.Clip(str(i), v, 8.0) for i, v in enumerate(videos)]

        extract = lambda frames: (clip.mean((0, 1, 2)) for clip in frames)  # noqa: E731
        window = clip_sets.Window(2)
        sets = {
            name: (clips, clip_sets.summarize(clips, window))
            for name, clips in (("videos", make_set(0)), ("reference", make_set(1)))
        }
        score, _ = fvd.score_distances(sets, window, [("FVD", window)], (extract, "weights"))
        assert ("biased by fewer than 64 clips" in score["note"]) == warns
        assert (f"FVD of {count} and {count} clips: below 64" in caplog.text) == warns


def test_without_a_place_for_the_cache_the_variable_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="cannot be written to .*VIDEOGEN_JAX_CACHE"):
        feature_cache.check_cache()
    monkeypatch.delenv("VIDEOGEN_JAX_CACHE")

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(feature_cache.Path, "home", fail)
    with pytest.raises(OSError, match="no home folder .*set VIDEOGEN_JAX_CACHE to a folder"):
        feature_cache.cache_folder()


def test_the_output_is_tried_first_and_a_wrong_folder_is_not_made(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        run(generated=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    write_videos(tmp_path / "out", ["a red circle moving left"])
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate, "open_videos", lambda *_: pytest.fail("videos were read"))
    with pytest.raises(OSError, match=r"file cannot be written to .*: name another place with --o"):
        run(generated=tmp_path / "out", output=tmp_path / "file" / "report.json")


def test_a_dashboard_that_cannot_be_written_is_left_out(tmp_path, monkeypatch, caplog):
    logging.get_absl_logger().propagate = True

    def refuse(path, flag):
        raise OSError(f"{path} cannot be written to.")

    monkeypatch.setattr(output_folder, "make_output_folder", refuse)
    values = types.SimpleNamespace(workdir=str(tmp_path), step=None, logdir=None)
    assert evaluate.choose_logdir(values, 7) == (None, None)
    assert "tensorboard cannot be written to" in caplog.text


def test_scores_of_a_runs_samples_are_in_the_report_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "read_curves", lambda logdir: {})
    (tmp_path / "config.json").write_text('{"model": {"width": 12}}')
    prompts = ["a red circle moving left", "a blue square moving up"]
    write_videos(tmp_path / "generated", prompts)
    run(generated=tmp_path / "generated", output=tmp_path / "other" / "scores.json")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not evaluated yet" not in page and "all three" in page
    assert f"<ol class=faint><li>{prompts[0]}</li><li>{prompts[1]}</li></ol>" in page
    assert "<details><summary>Protocol</summary>" in page


def test_captions_are_escaped_and_an_empty_one_is_named():
    gif = b"GIF89a" + b"\1\0\1\0" + b"\0" * 4
    figure = report.render_video("Videos", gif, ["<b>", ""])
    assert "<ol class=faint><li>&lt;b&gt;</li><li>no caption</li></ol>" in figure


@pytest.mark.parametrize("flag", ["seed=-1", "seed=4294967296", "fps=nan", "guidance_scale=inf"])
def test_numbers_that_do_not_do_are_refused(tmp_path, flag):
    name = flag.partition("=")[0]
    with pytest.raises(Exception, match=f"flag --{name}="):
        run(generated=tmp_path, **dict([flag.split("=")]))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"guidance_scale": -1}, "sample.guidance_scale is -1.0"),
        ({"sampler": "eular"}, "Unknown sample.sampler 'eular'"),
        ({"seed": 2**32 - 1, "num_clips": 2}, "and 2 videos would end above the last seed"),
    ],
)
def test_the_run_is_not_looked_at_before_the_flags(tmp_path, option, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(workdir=tmp_path, **option)
