import re

import numpy as np
import pytest
from absl import logging

from videogen_jax.evaluation import label_accuracy

GAME = re.compile("^[^,]+")


@pytest.fixture(autouse=True)
def propagate():
    logging.get_absl_logger().propagate = True


def test_labels():
    assert label_accuracy.find_label("pong, the paddle moves up", GAME) == "pong"
    group = re.compile(r"moves (\w+)")
    assert label_accuracy.find_label("pong, the paddle moves up", group) == "up"
    for caption in ("", None, ", no game"):
        assert label_accuracy.find_label(caption, GAME) is None
    with pytest.raises(ValueError, match=r"--label=\( is no regular expression .* write one like"):
        label_accuracy.compile_pattern("(")


def test_nearest_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
    pairs = np.linalg.norm(a[:, None].astype(np.float64) - b, axis=2)
    np.testing.assert_array_equal(label_accuracy.find_nearest(a, b), pairs.argmin(axis=1))
    others = np.linalg.norm(b[:, None].astype(np.float64) - b, axis=2)
    np.fill_diagonal(others, np.inf)
    found = label_accuracy.find_nearest(b, b, label_accuracy.other_recordings([""] * 30))
    np.testing.assert_array_equal(found, others.argmin(axis=1))


def judge_line(prompts, places):
    """Real clips at 0, 1 (pong), 10, 11, 12 (breakout) on a line; videos at `places`."""
    captions = ["pong, a", "pong, b", "breakout, c", "breakout, d", "breakout"]
    reference = np.array([[0.0], [1], [10], [11], [12]])
    return label_accuracy.judge(np.array(places)[:, None], prompts, reference, captions, GAME)


def test_rates_by_hand():
    prompts = ["pong, x", "breakout, y", "breakout, z", "breakout, w"]
    found = judge_line(prompts, [0.2, 3.0, 11.4, 30.0])
    assert (found["right"], found["total"], found["rate"], found["left_out"]) == (3, 4, 0.75, 0)
    assert (found["low"], found["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert found["chance"] == pytest.approx((2 / 5 + 3 * 3 / 5) / 4)
    assert {name: (r["right"], r["total"]) for name, r in found["per_label"].items()} == {
        "breakout": (2, 3),
        "pong": (1, 1),
    }
    assert (found["real"]["right"], found["real"]["total"]) == (5, 5)
    assert found["videos"][1] == {"index": 1, "label": "breakout", "seen": "pong", "nearest": 1}
    score = label_accuracy.to_score(found)
    assert "3 of 4" in score["note"] and "(5 of 5)" in score["note"]
    assert [part["value"] for part in score["parts"]] == [pytest.approx(2 / 3), 1.0]


def test_a_real_clip_is_compared_with_the_others():
    """A single clip of its label cannot be right."""
    found = label_accuracy.judge(
        np.zeros((1, 1)), ["a"], np.array([[0.0], [1], [2]]), ["a", "b", "b"], GAME
    )
    assert (found["real"]["right"], found["real"]["total"]) == (1, 3)


def test_a_real_clip_is_not_judged_by_clips_of_its_episode():
    """The two clips of each pair are of one episode: among the others the nearest is of the other label."""
    reference = np.array([[0.0], [0.1], [1], [1.1], [9], [9.1]])
    captions, episodes = ["a", "a", "b", "b", "a", "a"], ["x", "x", "y", "y", "", ""]
    given = (np.zeros((1, 1)), ["a"], reference, captions, GAME)
    assert label_accuracy.judge(*given)["real"]["right"] == 6
    assert label_accuracy.judge(*given, episodes)["real"]["right"] == 2  # unknown ones
    # With a single episode there are no others, so that all clips but itself judge a clip.
    allowed = label_accuracy.other_recordings(["x", "x", "x"])
    np.testing.assert_array_equal(allowed, ~np.eye(3, dtype=bool))


def test_videos_without_a_label_are_left_out_with_a_sentence(caplog):
    prompts = ["pong, x", "", "chess, y"]
    label_accuracy.check_labels(prompts, ["pong", "pong, b"], GAME)
    first, second = [record.getMessage() for record in caplog.records]
    assert "finds no label in 1 of 3 prompts, such as ''" in first
    assert "No reference clip has the label 'chess' of 1 prompts" in second
    found = judge_line(prompts, [0.0, 0.0, 0.0])
    assert (found["total"], found["left_out"]) == (1, 2)


@pytest.mark.parametrize(
    ("prompts", "captions", "message"),
    [
        (["pong"], ["pong", None], "in the captions of 1 reference clips, and 2 are needed"),
        (["pong"], ["chess", "go"], "finds no label in the prompts that a reference clip has too"),
        (["", ", x"], ["chess", "go"], "finds no label in the prompts"),
    ],
)
def test_labels_that_fit_nothing_are_errors(prompts, captions, message):
    with pytest.raises(ValueError, match=message):
        label_accuracy.check_labels(prompts, captions, GAME)


def test_rates_of_windows_by_hand():
    videos = [
        {"file": f"{name}@{first}", "label": "pong", "seen": seen}
        for name, seen_at in (("a.mp4", ("pong", "pong")), ("b.mp4", ("pong", "breakout")))
        for first, seen in zip((0, 16), seen_at, strict=True)
    ]
    found = label_accuracy.rate_windows(videos)
    assert {first: (rate["right"], rate["total"]) for first, rate in found.items()} == {
        "0": (2, 2),
        "16": (1, 2),
    }
    assert label_accuracy.rate_windows([{"file": "a.mp4", "label": "x", "seen": "x"}]) == {}
