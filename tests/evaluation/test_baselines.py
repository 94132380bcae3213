import numpy as np
import pytest

from videogen_jax.evaluation import baselines
from videogen_jax.evaluation.clip_sets import Clip, Window


def make_set(frames, count=3):
    """Clips whose frame t has the value t + 100 * the clip's number, each with a name."""
    videos = [
        np.broadcast_to(np.arange(frames)[:, None, None, None] + 100 * i, (frames, 2, 2, 3))
        for i in range(count)
    ]
    return lambda: [Clip(str(i), video.copy(), 8.0) for i, video in enumerate(videos)]


@pytest.mark.parametrize("window", [Window(4), Window(3, stride=2), Window(7)])
def test_evaluated_frames_stand_still_or_are_in_another_order(window):
    clips = make_set(7)
    made = baselines.make_baselines(clips, window)
    pairs = zip(clips(), made["still"](), made["shuffled"](), strict=True)
    for clip, still, shuffled in pairs:
        assert clip.name == still.name == shuffled.name and clip.fps == shuffled.fps
        seen = window.crop(clip.video)
        np.testing.assert_array_equal(window.crop(still.video), np.repeat(seen[:1], len(seen), 0))
        other = window.crop(shuffled.video)
        assert not np.array_equal(other, seen)
        np.testing.assert_array_equal(np.sort(other, axis=0), seen)


def test_orders_are_seeded_differ_between_clips_and_are_never_the_identity():
    orders = [tuple(baselines.draw_order(3, 0, number)) for number in range(200)]
    assert len(set(orders)) == 5  # all permutations of three but the identity
    assert (0, 1, 2) not in orders
    assert orders == [tuple(baselines.draw_order(3, 0, number)) for number in range(200)]
    assert orders != [tuple(baselines.draw_order(3, 1, number)) for number in range(200)]
    assert {tuple(baselines.draw_order(2, 0, number)) for number in range(20)} == {(1, 0)}


def test_clips_that_cannot_be_used_are_passed_on_and_single_frames_refused():
    clips = lambda: [Clip("a", None, 0.0, "broken"), Clip("b", np.zeros((2, 2, 2, 3), np.uint8))]  # noqa: E731
    for made in baselines.make_baselines(clips, Window(4)).values():
        assert [clip.reason for clip in made()] == ["broken", ""]
        assert len(list(made())[1].video) == 2
    with pytest.raises(ValueError, match="leave out --baselines"):
        baselines.make_baselines(clips, Window(1))
