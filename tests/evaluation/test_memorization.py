import numpy as np
import pytest

from tests.data.packed import write_records
from videogen_jax.evaluation import memorization
from videogen_jax.evaluation.clip_sets import Clip, Window


def noise(count, frames, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, frames, size, size, 3), np.uint8)


def as_set(videos):
    return lambda: (Clip(f"t{i}", video, 8.0) for i, video in enumerate(videos))


def reduced(videos, window):
    return np.stack([memorization.reduce_frames(window.crop(video)) for video in videos])


def brute_force(video, training, window):
    """Every training clip at every start, in float64: (PSNR, clip, start)."""
    span = (window.frames - 1) * window.stride + 1
    scores = [
        (
            -10 * np.log10(np.square(video - clip[s : s + span : window.stride]).mean() / 255**2),
            i,
            s,
        )
        for i, clip in enumerate(np.asarray(training, np.float64))
        for s in range(len(clip) - span + 1)
    ]
    return max(scores)


@pytest.mark.parametrize("window", [Window(4), Window(3, stride=2)])
def test_nearest_is_that_of_every_clip_at_every_start(window, monkeypatch):
    monkeypatch.setattr(memorization, "BLOCK", 4)  # several blocks of starts
    videos, training = noise(6, 7), noise(5, 13, seed=1)
    found = memorization.find_nearest(reduced(videos, window), as_set(training), window, 5)
    for number, video in enumerate(videos):
        seen = window.crop(video).astype(np.float64)
        psnr, clip, start = brute_force(seen, training, window)
        assert found.psnr[number] == pytest.approx(psnr, rel=1e-9)
        assert (found.names[number], found.starts[number]) == (f"t{clip}", start)


def test_a_copy_is_found_where_it_starts_and_almost_equal_ones_are_told_apart():
    training = np.repeat(noise(1, 20, seed=1), 3, axis=0)
    training[0] ^= 1  # three clips that differ by one in every value, or in some
    training[2, ::2] ^= 1
    copy = training[1, 9:13][None]
    found = memorization.find_nearest(reduced(copy, Window(4)), as_set(training), Window(4), 3)
    assert (found.psnr[0], found.names[0], found.starts[0]) == (120, "t1", 9)


def test_large_frames_are_reduced_by_means_of_blocks():
    video = noise(1, 2, size=129)[0]
    found = memorization.reduce_frames(video)
    assert found.shape == (2, 43, 43, 3)
    expected = video[1, 3:6, 126:129].mean(axis=(0, 1))
    np.testing.assert_allclose(found[1, 1, 42], expected, rtol=1e-6)
    assert memorization.reduce_frames(video[:, :64, :64]).shape == (2, 64, 64, 3)


def test_short_clips_are_passed_over_and_too_few_or_others_are_errors():
    videos = reduced(noise(2, 4), Window(4))
    training = [noise(1, 3)[0], *noise(2, 5, seed=1)]
    found = memorization.find_nearest(videos, as_set(training), Window(4), 2)
    assert set(found.names) <= {"t1", "t2"}
    with pytest.raises(ValueError, match="is 3, but 2 training clips .*--memorization_clips=2"):
        memorization.find_nearest(videos, as_set(training), Window(4), 3)
    with pytest.raises(ValueError, match="6x6 and 8x8: resize both with --size"):
        memorization.find_nearest(videos, as_set(noise(2, 5, size=6)), Window(4), 2)


def test_shares_by_hand():
    real = memorization.Nearest(np.arange(101.0), ["r"] * 101, np.zeros(101, int))
    made = memorization.Nearest(np.array([10, 99.0, 99.5, 120]), list("abcd"), np.arange(4))
    found = memorization.compare(made, real, ["0", "1", "2", "3"])
    assert found["near"]["limit"] == 99 and found["near"]["right"] == 2
    assert found["near"]["rate"] == 0.5 and found["held_out"]["0.5"] == 50
    assert found["videos"][3] == {"file": "3", "nearest": "d", "start": 3, "psnr": 120.0}
    scores = memorization.to_scores(found, 500)
    assert scores[0]["value"] == pytest.approx(99.25) and "500 training clips" in scores[0]["note"]
    assert scores[1]["value"] == 0.5 and "above 99.0 dB" in scores[1]["note"]


def test_training_clips_are_those_of_the_first_data_set_with_pixels(tmp_path):
    videos = list(noise(3, 4))
    data = write_records(tmp_path / "data", videos, 4)
    (tmp_path / "folder").mkdir()
    clips = memorization.open_training([str(tmp_path / "folder"), str(data)], 3)
    assert len(list(clips())) == 3
    with pytest.raises(ValueError, match="is 4, but .*data has 3 training clips: use .*=3"):
        memorization.open_training([str(data)], 4)
    with pytest.raises(ValueError, match="folder hold none: name the packed data set"):
        memorization.open_training([str(tmp_path / "folder")], 3)
