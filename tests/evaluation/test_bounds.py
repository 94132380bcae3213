import copy

import numpy as np
import pytest

from videogen_jax.evaluation import bounds, json_report
from videogen_jax.evaluation.clip_sets import Clip, Window


def make_set(count):
    videos = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4, 3), np.uint8)
    return lambda: (Clip(f"{i}", video, 8.0) for i, video in enumerate(videos))


def test_the_floor_is_of_other_clips_than_the_reference():
    clips = make_set(7)
    summary, beside = bounds.open_floor(clips, Window(3), 3)
    assert summary.names == ["0", "1", "2"]
    assert [clip.name for clip in beside["floor"]()][:3] == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("available", "wanted", "way_out"),
    [
        (7, 4, "use --num_clips=3, or hold out more clips"),
        (5, 4, "use --num_clips=2, or hold out more clips"),
        (3, 4, "hold out more clips"),
        (0, 2, "hold out more clips"),
    ],
)
def test_too_few_held_out_clips_are_an_error_with_both_numbers(available, wanted, way_out):
    message = f"{wanted} others, {2 * wanted} in all, but there are {available}: {way_out}"
    with pytest.raises(ValueError, match=message):
        bounds.open_floor(make_set(available), Window(3), wanted)


def test_share_of_the_way():
    assert bounds.find_share(100, 100, 500) == 1
    assert bounds.find_share(500, 100, 500) == 0
    assert bounds.find_share(200, 100, 500) == 0.75
    assert bounds.find_share(60, 100, 500) == 1.1
    assert bounds.find_share(600, 100, 500) == -0.25
    assert bounds.find_share(1, 5, 5) is None and bounds.find_share(1, 5, 4) is None


def test_the_note_has_the_share_of_the_way_to_the_floor_of_reconstructions():
    score = {"value": 200.0, "floor": 100.0, "reconstructions": 180.0, "ceiling": 580.0}
    score["note"] = "N"
    bounds.add_share(score)
    assert score["share"] == pytest.approx(380 / 480)
    assert score["note"] == "N; 95.0% of the way to the floor of autoencoder"
    without = {"value": 200.0, "floor": 100.0, "ceiling": 580.0, "note": "N"}
    bounds.add_share(without)
    assert without["note"] == "N" and "share" in without
    high = {"value": 2.0, "floor": 1.0, "reconstructions": 9.0, "ceiling": 8.0, "note": "N"}
    bounds.add_share(high)
    assert high["note"] == "N"


def test_baselines_that_are_not_worse_are_named():
    scores = [
        {"name": "FVD", "value": 10.0, "still": 12.0, "shuffled": 10.0},
        {"name": "KVD", "value": 1.0, "still": 0.5, "shuffled": 2.0},
    ]
    first, second = bounds.find_failures(scores)
    assert first.startswith("FVD of the videos, 10, is not below that with frames shuffled, 10")
    assert second.startswith("KVD of the videos, 1, is not below that with first frame still, 0.5")
    assert bounds.find_failures([{"name": "FVD", "value": 10.0}]) == []


def make_document(**protocol):
    return {
        "scores": [{"name": "FVD", "value": 200.0, "low": 150.0, "high": 250.0}],
        "protocol": {"frames": 16, "num_generated": 8, "step": 3, "kernel": "k"} | protocol,
    }


def test_bounds_of_another_report_hold_for_the_same_protocol():
    other = make_document(step=9, floor="8 clips", baselines="both", guidance_interval=[])
    other["scores"][0] |= {"floor": 100.0, "ceiling": 500.0, "still": 400.0, "share": 0.9}
    document = make_document(guidance_interval=())
    assert bounds.find_unfit(document, other) is None
    bounds.copy_bounds(document, other)
    assert document["scores"][0] == {
        **{"name": "FVD", "value": 200.0, "low": 150.0, "high": 250.0},
        **{"floor": 100.0, "ceiling": 500.0, "share": 0.75},
    }
    assert document["protocol"]["floor"] == "8 clips" and "baselines" not in document["protocol"]
    differing = copy.deepcopy(other)
    differing["protocol"] |= {"num_generated": 16}
    found = bounds.find_unfit(make_document(guidance_interval=()), differing)
    assert found == "has another protocol (num_generated is 16 there and 8 here)"
    assert bounds.find_unfit(document, make_document()) == "has no floor or ceiling"


def test_table_of_bounds():
    score = {"name": "FVD", "value": 200.0, "low": 150.0, "high": 250.0, "note": "x"}
    assert json_report.format_bounds([score]) == []
    full = score | {"floor": 100.0, "ceiling": 500.0, "share": 0.75, "still": 321.0}
    motion = {"name": "motion, times the reference's", "value": 0.9, "still": 0.0}
    head, first, second = json_report.format_bounds([full, score, motion])
    assert head.split("  ") and "ceiling" in head and "frames shuffled" not in head
    assert first.split() == ["FVD", "200", "150", "to", "250", "100", "500", "321", "75.0%"]
    assert second.split() == ["motion,", "times", "the", "reference's", "0.9", "0"]
    assert len({len(line) for line in (head, first, second)}) == 1
