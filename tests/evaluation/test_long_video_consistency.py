import json

import numpy as np
import pytest
from absl import flags

from videogen_jax import evaluate
from videogen_jax.data import synthetic, video_writer
from videogen_jax.evaluation import long_video_consistency
from videogen_jax.evaluation.long_video_consistency import consistency_rates
from videogen_jax.evaluation.prompt_accuracy import judge_videos
from videogen_jax.evaluation.rates import wilson_interval

CAPTION = "a red circle moving up left"


def bouncing(colour, shape, frames, seed=0):
    """A bouncing shape that first moves up left."""
    rng = np.random.default_rng(seed)
    path = synthetic.draw_bounces(shape, "up left", rng, frames=frames, size=24)
    return synthetic.draw_path(colour, shape, size=24, **path)


def joined(*parts):
    """A rollout that loses its object: a different video for each (colour, shape, frames)."""
    return np.concatenate([bouncing(*part, seed=k) for k, part in enumerate(parts)])


@pytest.fixture(scope="module")
def videos():
    return [
        bouncing("red", "circle", 53),  # consistent to the end
        joined(("red", "circle", 32), ("green", "circle", 21)),  # another colour from frame 32
        joined(("red", "circle", 48), ("red", "square", 16)),  # another shape from frame 48
        joined(("red", "circle", 37), ("blue", "square", 16)),  # both, in the last window only
    ]


def test_rates_and_first_inconsistent_frames(videos):
    rates = consistency_rates(iter(videos), [CAPTION] * 4)
    assert (rates["num_videos"], rates["window"]) == (4, 16)
    assert {name: rates[name]["right"] for name in long_video_consistency.CHANCES} == {
        "colour": 2, "shape": 2, "both": 1
    }  # fmt: skip
    assert (rates["both"]["low"], rates["both"]["high"]) == wilson_interval(1, 4)
    assert rates["both"]["rate"] == 0.25 and rates["both"]["chance"] == pytest.approx(1 / 18)
    assert [video["lost"]["colour"] for video in rates["videos"]][:3] == [None, 32, None]
    assert [video["lost"]["shape"] for video in rates["videos"]][:3] == [None, None, 48]
    assert [video["lost"]["both"] for video in rates["videos"]][:3] == [None, 32, 48]
    assert min(rates["videos"][3]["lost"].values()) >= 32
    starts = {0: 4, 16: 4, 32: 4, 37: 3, 48: 1}
    assert {w["first_frame"]: w["num_videos"] for w in rates["windows"]} == starts
    right = [window["colour"]["right"] for window in rates["windows"]]
    assert right[:2] == [4, 4] and right[3:] == [1, 1] and right[2] in (2, 3)


def test_windows_cover_every_frame_and_only_the_last_one_overlaps():
    for frames in (16, 17, 31, 32, 33, 48, 480):
        video = np.zeros((frames, 8, 8, 3), np.uint8)
        starts = [start for start, _ in long_video_consistency.judge_windows(video)]
        covered = np.zeros(frames, int)
        for start in starts:
            covered[start : start + 16] += 1
        assert covered.min() == 1 and covered.sum() == 16 * -(-frames // 16)
        assert starts[:-1] == [16 * k for k in range(len(starts) - 1)]
    with pytest.raises(ValueError, match="15 frames is shorter than a window of 16"):
        long_video_consistency.judge_windows(np.zeros((15, 8, 8, 3), np.uint8))


def test_unreadable_videos_count_as_wrong_and_have_no_windows(videos):
    rates = consistency_rates([None, videos[0]], [CAPTION] * 2)
    assert rates["both"]["right"] == 1 and rates["num_videos"] == 2
    assert rates["videos"][0] == {
        "caption": CAPTION, "seen": [], "lost": {"colour": 0, "shape": 0, "both": 0}
    }  # fmt: skip
    assert {window["num_videos"] for window in rates["windows"]} == {1}


@pytest.mark.parametrize("captions", [[CAPTION], [CAPTION] * 3, [CAPTION, "a cat"]])
def test_other_captions_and_counts_are_errors(videos, captions):
    with pytest.raises(ValueError, match="captions|a cat"):
        consistency_rates(videos[:2], captions)


def test_short_videos_are_not_judged_window_by_window(videos):
    report = judge_videos([videos[0][:16], None], [CAPTION] * 2)
    assert "kept" not in report and not any("kept" in video for video in report["videos"])
    report = judge_videos([videos[0][:16], videos[1], None], [CAPTION] * 3)
    assert (report["kept"]["num_videos"], report["num_videos"]) == (2, 3)
    assert ["kept" in video for video in report["videos"]] == [False, True, True]
    assert report["videos"][1]["kept"]["lost"]["colour"] == 32


def test_evaluate_reports_the_consistency_of_a_folder(videos, tmp_path, capsys):
    for index, video in enumerate(videos[:2]):
        video_writer.write_video(tmp_path / f"{index}.mp4", video, fps=8)
        (tmp_path / f"{index}.txt").write_text(CAPTION)
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--generated={tmp_path}"])
    evaluate.run(values)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["kept"]["colour"]["rate"] == 0.5 and report["kept"]["shape"]["rate"] == 1.0
    assert [video["kept"]["lost"]["colour"] for video in report["videos"]] == [None, 32]
    scores = {score["name"]: score["value"] for score in report["scores"]}
    assert (scores["colour kept"], scores["shape kept"], scores["both kept"]) == (0.5, 1.0, 0.5)
    output = capsys.readouterr().out
    assert "colour kept: 0.5" in output
    assert "1 of 2 videos in every window of 16 frames" in output
    assert "100.0% from frame 0 ... 50.0% from frame 37" in output
