"""Buckets: batches of one shape in proportion, a function of (seed, step); statistics over all buckets."""

import collections
import itertools
import json

import numpy as np
import pytest

from tests.data.packed import random_clips, write_buckets
from videogen_jax.data import bucketed_data, packed_data, pipeline
from videogen_jax.data.pipeline import DataError
from videogen_jax.packing import encode_latents

SHAPES = {"4x16x16": ((4, 16, 16), 12), "2x16x24": ((2, 16, 24), 10), "1x16x16": ((1, 16, 16), 9)}
BATCH_SIZES = (2, 3, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = {
        name: random_clips(shape, count, seed)
        for seed, (name, (shape, count)) in enumerate(SHAPES.items())
    }
    return write_buckets(tmp_path_factory.mktemp("buckets") / "data", clips)


@pytest.mark.parametrize("seed", [0, 7])
def test_each_period_draws_all_batches_of_each_bucket(seed):
    schedule = bucketed_data.make_schedule([120, 60, 31], [4, 4, 16], seed)
    # In 30, 15 and 1.94 batches an epoch has; a period has at least 8 of each.
    a, b, c = schedule.counts
    assert c == 8 and a == 2 * b and a / c == pytest.approx(30 / 1.94, rel=1 / 16)
    length = a + b + c
    walked = list(itertools.islice(schedule.walk(0), 3 * length))
    for period in range(3):
        found = collections.Counter(walked[length * period : length * (period + 1)])
        assert found == {0: a, 1: b, 2: c}
    assert walked[:length] != walked[length : 2 * length]
    assert walked[:length] != sorted(walked[:length])


def test_clips_of_a_bucket_smaller_than_its_batch_are_not_oversampled():
    """10 images in batches of 960 next to 10,000 videos in batches of 2: one batch in 96 epochs."""
    a, b = bucketed_data.make_schedule([10_000, 10], [2, 960], seed=0).counts
    seen = a * 2 / 10_000, b * 960 / 10
    assert seen[1] <= 1.1 * seen[0] or b == 1


def test_schedule_is_a_function_of_the_step():
    schedule = bucketed_data.make_schedule([50, 20, 10], [4, 4, 4], seed=3)
    seen = collections.Counter()
    for step, bucket in enumerate(itertools.islice(schedule.walk(0), 90)):
        assert schedule.pick(step) == (bucket, seen[bucket])
        seen[bucket] += 1
        assert next(schedule.walk(step)) == bucket
    firsts = list(dict.fromkeys(itertools.islice(schedule.walk(5), 90)))
    assert schedule.first_uses(5) == firsts


def test_every_bucket_is_used_in_a_bounded_period():
    schedule = bucketed_data.make_schedule([80_000_000, 20_000_000, 1], [1, 1, 1], seed=0)
    assert sum(schedule.counts) <= bucketed_data.MAX_PERIOD + 2
    assert schedule.counts[0] / schedule.counts[1] == pytest.approx(4, rel=1e-3)
    assert schedule.counts[2] == 1


def test_order_depends_on_the_seed():
    orders = {
        tuple(itertools.islice(bucketed_data.make_schedule([9, 9], [1, 1], seed).walk(0), 18))
        for seed in range(5)
    }
    assert len(orders) == 5


def draw(data, start, count, share=(0, 1)):
    sets = bucketed_data.open_buckets(data)
    sizes = dict(zip(sets, BATCH_SIZES, strict=True))
    schedule = bucketed_data.make_schedule(
        [sum(one.lengths["train"]) for one in sets.values()], BATCH_SIZES, seed=5
    )

    def source(name):
        return lambda start_step: pipeline.make_clips(
            sets[name],
            "train",
            batch_size=sizes[name] * share[1],
            frames=sets[name].frames,
            seed=5,
            start_step=start_step,
            shuffle_window=4,
            share=share,
        )

    mixed = bucketed_data.mix_clips({name: source(name) for name in sets}, schedule, start)
    return list(itertools.islice(mixed, count))


def test_batches_resume_at_any_step_and_have_one_shape(data):
    whole = draw(data, 0, 20)
    for name, clips in whole:
        name = name.rsplit("/", 1)[-1]
        shape, _ = SHAPES[name]
        assert clips["video"].shape == (BATCH_SIZES[list(SHAPES).index(name)], *shape, 3)
        assert set(clips["caption"]) == {f"shape {name}".encode()}
    for start in (1, 7, 13):
        for (name, clips), (expected_name, expected) in zip(
            draw(data, start, 6), whole[start : start + 6], strict=True
        ):
            assert name == expected_name
            np.testing.assert_array_equal(clips["video"], expected["video"])


def test_each_clip_of_each_bucket_is_drawn_once_per_epoch(data):
    """12 clips in batches of 2 and 10 in batches of 3: each clip is drawn once in an epoch of its bucket."""
    seen = collections.defaultdict(list)
    for name, clips in draw(data, 0, 40):
        seen[name] += [video.tobytes() for video in clips["video"]]
    for name, (_, count) in zip(seen, [SHAPES[n.rsplit("/", 1)[-1]] for n in seen], strict=True):
        assert len(set(seen[name][:count])) == count


def test_processes_draw_from_the_same_bucket(data):
    first, second = draw(data, 3, 8, (0, 2)), draw(data, 3, 8, (1, 2))
    assert [name for name, _ in first] == [name for name, _ in second]
    for (_, a), (_, b) in zip(first, second, strict=True):
        assert not np.array_equal(a["video"], b["video"])


def test_words_and_motion_buckets_are_computed_over_all_buckets(data):
    sets = list(bucketed_data.open_buckets(data).values())
    assert sets[0].words == {"shape": 31, "4x16x16": 12, "2x16x24": 10, "1x16x16": 9}
    scores = np.concatenate([packed_data.read_scores(one.folder) for one in sets])
    assert len(scores) == 31 and scores[-9:].max() == 0 < scores[0]
    ranks = [np.searchsorted(one.motion_score_buckets, scores, side="right") for one in sets]
    for other in ranks[1:]:
        np.testing.assert_array_equal(ranks[0], other)
    # A score's bucket is its share of smaller scores in 256ths, to the step between neighbours.
    videos = scores[:-9]
    share = np.array([(videos < score).mean() for score in videos])
    assert np.abs(ranks[0][:-9] / 256 - share).max() < 2 / len(videos)
    assert set(ranks[0][-9:]) == {0}  # images, which take none of the videos' quantile buckets


def make_latents(data, output):
    for folder, one in bucketed_data.open_buckets(data).items():
        encoder = encode_latents.Encoder(
            run=lambda video: video[:, ::8, ::8].astype(np.float32) / 50,
            name="taef2",
            weights="abc",
            shape=(one.height // 8, one.width // 8, 3),
            precision="float32",
            dtype="float16",
            mirrored=False,
        )
        report = json.loads((data / one.folder.rsplit("/", 1)[-1] / "pack_report.json").read_text())
        assert report["settings"]
        encode_latents.encode(folder, output / folder.rsplit("/", 1)[-1], encoder, progress=False)
    bucketed_data.write_index(output, list(SHAPES))
    return output


def test_latents_are_normalised_over_all_buckets(data, tmp_path):
    sets = bucketed_data.open_buckets(make_latents(data, tmp_path / "latents"))
    values = []
    for folder, one in bucketed_data.open_buckets(data).items():
        for path in one.files["train"]:
            for clip in pipeline.read_clips(path, one):
                values.append(clip["video"][:, ::8, ::8].reshape(-1, 3).astype(np.float64) / 50)
        assert folder
    rows = np.concatenate(values)
    for one in sets.values():
        assert one.latents.places == len(rows)
        np.testing.assert_allclose(one.latents.mean, rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(one.latents.deviation, rows.std(0), rtol=1e-6)
    first = next(iter(sets.values()))
    clips = next(pipeline.make_clips(first, "train", batch_size=12, frames=4, seed=0))
    clip_rows = values[:12]
    expected = (np.concatenate(clip_rows) - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(
        np.sort(clips["video"].reshape(-1, 3).astype(float), axis=0),
        np.sort(expected, axis=0),
        atol=5e-3,
    )


def test_buckets_encoded_with_different_weights_are_refused(data, tmp_path):
    output = make_latents(data, tmp_path / "latents")
    path = output / "2x16x24" / "statistics.json"
    content = json.loads(path.read_text())
    content["latents"]["weights"] = "def"
    path.write_text(json.dumps(content))
    path.with_name("checksums.json").unlink()  # of the bytes before
    with pytest.raises(DataError, match="encoded with different settings"):
        bucketed_data.open_buckets(output)


@pytest.mark.parametrize("text", ["{", "{}", '{"buckets": []}', '{"buckets": [3]}'])
def test_damaged_index_is_refused(tmp_path, text):
    (tmp_path / bucketed_data.INDEX).write_text(text)
    with pytest.raises(DataError, match=r"buckets\.json is damaged"):
        bucketed_data.open_buckets(tmp_path)


def test_missing_bucket_is_refused(tmp_path):
    bucketed_data.write_index(tmp_path, ["4x8x8"])
    with pytest.raises(DataError, match="no data set in .*4x8x8"):
        bucketed_data.open_buckets(tmp_path)


def test_plain_and_bucketed_sets_do_not_overwrite_each_other(data, tmp_path):
    with pytest.raises(ValueError, match="holds a plain data set, but this one is bucketed"):
        bucketed_data.check_kind(data / "4x16x16", bucketed=True)
    with pytest.raises(ValueError, match="holds a bucketed data set, but this one is plain"):
        bucketed_data.check_kind(data, bucketed=False)
    bucketed_data.check_kind(data, bucketed=True)
    bucketed_data.check_kind(tmp_path, bucketed=False)
