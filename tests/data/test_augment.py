"""Augmentation: identical for all frames of a clip, a pure function of its key, and no change when disabled."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data.packed import write_records
from tests.data.test_pipeline import assert_same, batches
from videogen_jax.data import augment, pipeline, video_io
from videogen_jax.data.augment import Augmentation
from videogen_jax.packing import encode_latents, merge_parts

HEIGHT, WIDTH, FPS = 12, 18, 8.0
MANY = 400  # draws


def key(number, seed=0):
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, 4], tf.int64), tf.cast(number, tf.int64)
    )


def in_graph(function, *arguments):
    """Evaluates a function of an index inside a tf.data graph."""
    numbers = tf.data.Dataset.range(*arguments)
    return list(numbers.map(function).as_numpy_iterator())


def coded_clip(frames, height=HEIGHT, width=WIDTH):
    """Makes a clip whose red, green and blue values encode row, column and frame."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = 10 * np.arange(height)[:, None]
    video[..., 1] = 10 * np.arange(width)
    video[..., 2] = np.arange(frames)[:, None, None]
    return video


# Spatial crops


def test_crop_offsets_are_uniform():
    packed, size = (6, 6), (3, 3)
    draw = lambda n: augment.draw_crop_offset(key(n), packed, size)  # noqa: E731
    corners = np.array(in_graph(draw, 3000))
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(corners.T), 1)
    expected = 3000 / counts.size
    assert np.sum((counts - expected) ** 2 / expected) < 41  # chi-square of 15: p < 4e-4
    np.testing.assert_array_equal(corners[:20], [draw(n) for n in range(20)])


def test_crop_is_the_same_for_all_frames():
    video = coded_clip(7)
    corner = augment.draw_crop_offset(key(3), (HEIGHT, WIDTH), (6, 8))
    row, column = corner.numpy()
    window = augment.crop_frames(tf.constant(video), corner, (6, 8)).numpy()
    np.testing.assert_array_equal(window, video[:, row : row + 6, column : column + 8])
    np.testing.assert_array_equal(augment.centre_crop_offset((HEIGHT, WIDTH), (6, 8)), [3, 5])


# Frame rate


def resampled(num_frames, rate):
    """The packed frames that `video_io.resample` chooses, up to the time of the last packed frame."""
    frames = ((i / FPS, i) for i in range(num_frames))
    return [
        i
        for time, i in video_io.resample(frames, rate)
        if time <= (num_frames - 1) / FPS * (1 + 1e-6)
    ]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 40, 500])
@pytest.mark.parametrize("rate", [8.0, 7.9, 5.3, 4.0, 8 / 3, 1.7, 0.6])
def test_chosen_frames_match_a_resampled_video(num_frames, rate):
    rate = np.float32(rate)
    count = augment.count_frames(FPS, num_frames, rate)
    chosen = augment.choose_frames(FPS, num_frames, rate, 0, count)
    assert list(chosen.numpy()) == resampled(num_frames, float(rate))
    later = augment.choose_frames(FPS, num_frames, rate, count - 1, 1)
    assert later.numpy() == chosen.numpy()[-1:]


def test_rates_are_log_uniform_in_the_range():
    augmentation = Augmentation((HEIGHT, WIDTH), 1.0, 8.0)
    draw = lambda n: augment.draw_rate(key(n), FPS, 1000, 5, augmentation)  # noqa: E731
    rates = np.sort(in_graph(draw, MANY))
    assert rates[0] >= 1 and rates[-1] <= 8
    closed_form = np.log(rates) / np.log(8)
    steps = np.arange(MANY + 1) / MANY
    distance = max(np.max(steps[1:] - closed_form), np.max(closed_form - steps[:-1]))
    assert distance * np.sqrt(MANY) < 1.63  # Kolmogorov-Smirnov: p < 0.01


@pytest.mark.parametrize("num_frames", [5, 6, 9, 20, 1000])
@pytest.mark.parametrize("bounds", [(1.0, 8.0), (2.0, 3.0), (0.01, 0.02)])
def test_rates_of_short_clips_leave_enough_frames(num_frames, bounds):
    frames = 5
    augmentation = Augmentation((HEIGHT, WIDTH), *bounds)
    draw = lambda n: augment.draw_rate(key(n), FPS, num_frames, frames, augmentation)  # noqa: E731
    rates = np.array(in_graph(draw, 100))
    lowest = FPS * (frames - 1) / (num_frames - 1)
    assert np.all(rates >= max(lowest, bounds[0]) * (1 - 1e-6))
    assert np.all(rates <= max(lowest, bounds[1]) * (1 + 1e-6))
    counts = [augment.count_frames(FPS, num_frames, rate).numpy() for rate in rates]
    assert min(counts) >= frames


# Colours


def numpy_colours(video, brightness, contrast, saturation):
    """torchvision's formulas in float64, with the mean over the clip."""
    gray = lambda x: x @ np.array([0.2989, 0.587, 0.114])  # noqa: E731
    clip = lambda x: np.clip(x, 0, 255)  # noqa: E731
    x = clip(brightness * video.astype(np.float64))
    x = clip(contrast * x + (1 - contrast) * gray(x).mean())
    return clip(saturation * x + (1 - saturation) * gray(x)[..., None])


@pytest.mark.parametrize(
    "factors", [(1.3, 0.6, 1.4), (0.5, 1.5, 0.2), (1.0, 1.0, 1.7), (1.9, 1.0, 1.0), (1, 1.8, 1)]
)
def test_colour_jitter_matches_float64(factors):
    video = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    changed = augment.jitter_colours(tf.constant(video), tf.constant(factors, tf.float32)).numpy()
    expected = numpy_colours(video, *factors)
    assert changed.dtype == np.uint8
    assert np.abs(changed - expected).max() < 0.501  # rounded to the nearest
    assert np.abs(changed.astype(int) - video).max() > 20
    same = augment.jitter_colours(tf.constant(video), tf.ones(3)).numpy()
    np.testing.assert_array_equal(same, video)


def test_colour_jitter_maps_a_colour_alike_in_every_frame():
    video = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    video[1] //= 3  # a frame with a different mean
    video[:, 0, 0] = (200, 90, 30)
    changed = augment.jitter_colours(tf.constant(video), tf.constant([0.9, 0.5, 1.5])).numpy()
    assert len(np.unique(changed[:, 0, 0], axis=0)) == 1


def test_colour_factors_are_uniform_around_1_and_independent():
    draw = lambda n: augment.draw_colour_factors(key(n), 0.4)  # noqa: E731
    factors = np.array(in_graph(draw, 2000))
    assert factors.min() >= 0.6 and factors.max() < 1.4
    np.testing.assert_allclose(factors.mean(0), 1, atol=0.02)
    np.testing.assert_allclose(factors.std(0), 0.8 / np.sqrt(12), atol=0.01)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.1


# Whole clips


def test_augmented_clip_is_a_function_of_its_key_in_graph_and_eager_mode():
    video = np.random.default_rng(0).integers(0, 256, (30, HEIGHT, WIDTH, 3), np.uint8)
    augmentation = Augmentation((8, 8), 2.0, 6.0, 0.3)
    vary = lambda n: augment.augment_clip(key(n), tf.constant(video), FPS, 5, augmentation)  # noqa: E731
    graph = in_graph(vary, 5)
    for n, (clip, rate, chosen) in enumerate(graph):
        eager, eager_rate, eager_chosen = vary(n)
        assert rate == eager_rate.numpy()
        np.testing.assert_array_equal(clip, eager)
        np.testing.assert_array_equal(chosen, eager_chosen)
        assert len(chosen) == len(clip)
    assert len({rate for _, rate, _ in graph}) == 5
    assert not np.array_equal(graph[0][0][:5], graph[1][0][:5])


def test_variant_keys_depend_on_seed_name_number_and_variant():
    names = [
        (s, n, i, v) for s in (0, 1) for n in (b"a.mp4", b"b.mp4") for i in (0, 1) for v in (0, 1)
    ]
    keys = {tuple(augment.make_variant_key(*name).numpy()) for name in names}
    assert len(keys) == len(names)
    assert tuple(augment.make_variant_key(*names[3]).numpy()) in keys


# In batches


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A data set of 40-frame clips whose pixels encode row, column and frame."""
    clips = [coded_clip(40, 16, 24) * np.uint8([1, 1, 6])] * 6
    folder = write_records(tmp_path_factory.mktemp("coded") / "data", clips, 40, per_shard=4)
    report = {"settings": {}, "clips": {"train": 6, "validation": 1}}
    (folder / "pack_report.json").write_text(json.dumps(report))
    return folder


def read_code(video):
    """Reads first row, first column, frames and mirroring from the pixels of (T, h, w, 3)."""
    red, green, blue = np.moveaxis(video.astype(float), -1, 0)
    slope = np.diff(green.mean(1), axis=1).mean(1)  # of every frame
    edge = green[:, :, -1] if slope[0] < 0 else green[:, :, 0]
    rows, columns = red[:, 0].mean(1) / 10, edge.mean(1) / 10
    return rows, columns, blue.mean((1, 2)) / 6, slope < 0


def test_disabled_augmentation_does_not_change_batches(coded):
    whole = batches(coded, 6, flip=True)
    for off, plain in zip(
        batches(coded, 6, flip=True, augmentation=Augmentation((16, 24))), whole, strict=True
    ):
        assert_same(off, plain)


def test_frames_of_a_clip_share_crop_flip_and_rate(coded):
    augmentation = Augmentation((6, 10), 2.0, 8.0)
    corners, mirrors, rates = set(), [], []
    for batch in batches(coded, 40, flip=True, augmentation=augmentation):
        assert batch["video"].shape == (4, 6, 6, 10, 3)
        for video, fps in zip(batch["video"], batch["fps"], strict=True):
            rows, columns, shown, mirrored = read_code(video)
            assert np.ptp(rows) < 0.3 and np.ptp(columns) < 0.3 and len(set(mirrored)) == 1
            corners.add((round(rows.mean()), round(columns.mean())))
            mirrors.append(mirrored[0])
            rates.append(fps)
            # The frames are consecutive in the clip resampled to the batch's fps.
            neighbours = resampled(40, float(fps))
            places = [neighbours[i : i + 6] for i in range(len(neighbours) - 5)]
            assert min(np.abs(np.array(place) - shown).max() for place in places) < 0.5
    assert len(corners) > 60  # of 11 * 15
    assert {row for row, _ in corners} == set(range(11))
    assert {column for _, column in corners} == set(range(15))
    assert 0.35 < np.mean(mirrors) < 0.65
    assert min(rates) < 2.4 and max(rates) > 6.7


@pytest.mark.parametrize("augmentation", [Augmentation((9, 11), 2.0, 6.0, 0.3)])
def test_augmented_batches_depend_on_seed_and_step_alone(coded, augmentation):
    options = {"flip": True, "augmentation": augmentation}
    whole = batches(coded, 8, **options)
    for step in (1, 5, 7):
        assert_same(batches(coded, 1, start_step=step, **options)[0], whole[step])
    parts = [batches(coded, 8, share=(i, 2), **options) for i in range(2)]
    for step in range(8):
        joined = {name: np.concatenate([p[step][name] for p in parts]) for name in whole[step]}
        assert_same(joined, whole[step])
    assert not np.array_equal(batches(coded, 1, seed=2, **options)[0]["fps"], whole[0]["fps"])
    # No epoch repeats another, because augmented clips are not cached.
    assert len({fps for batch in whole for fps in batch["fps"]}) == 32


def test_jitter_changes_pixels_but_not_order_fps_or_motion_score(coded):
    plain = batches(coded, 10)
    changed = batches(coded, 10, augmentation=Augmentation((16, 24), jitter=0.5))
    ratios = []
    for before, after in zip(plain, changed, strict=True):
        for name in ("caption", "fps", "motion_score"):
            np.testing.assert_array_equal(before[name], after[name])
        means = [batch["video"].astype(float).mean((1, 2, 3, 4)) for batch in (before, after)]
        ratios += list(means[1] / means[0])
    assert min(ratios) < 0.7 and max(ratios) > 1.3


def test_rate_of_clips_of_a_single_strip(tmp_path):
    folder = write_records(tmp_path / "data", [coded_clip(14, 16, 24) * np.uint8([1, 1, 6])], 14)
    augmentation = Augmentation((16, 24), 4.0, 4.0)
    for batch in batches(folder, 3, batch_size=2, augmentation=augmentation):
        for video in batch["video"]:
            shown = np.round(read_code(video)[2])
            np.testing.assert_array_equal(np.diff(shown), 2)


def test_validation_clips_are_centre_cropped_and_not_augmented(coded):
    options = {"batch_size": 1, "frames": 6, "num_batches": 1}
    whole = next(pipeline.make_validation_clips(coded, **options))
    cut = next(pipeline.make_validation_clips(coded, size=(6, 10), **options))
    np.testing.assert_array_equal(cut["video"], whole["video"][:, :, 5:11, 7:17])
    assert cut["fps"] == whole["fps"] == FPS


@pytest.mark.parametrize(
    ("augmentation", "sentence"),
    [
        (Augmentation((17, 24)), r"data\.height is 17, but the clips in .* were packed with 16"),
        (Augmentation((16, 0)), r"data\.width is 0, but"),
        (Augmentation((16, 24), 4.0, 2.0), r"fps_min is 4.0 and augment.fps_max is 2.0: set both"),
        (Augmentation((16, 24), 0.0, 2.0), "set both above 0"),
        (Augmentation((16, 24), -1.0, 2.0), "set both above 0"),
        (Augmentation((16, 24), 2.0, float("nan")), "set both above 0"),
        (Augmentation((16, 24), 2.0, 9.0), r"fps_max is 9.0, but .* packed at 8.0 frames per sec"),
        (Augmentation((16, 24), 0.5, 0.9), r"longest clips \(40 frames .* 6 frames only at 1.026"),
        (Augmentation((16, 24), jitter=1.0), r"augment\.jitter is 1.0: set it to at least 0"),
        (Augmentation((16, 24), jitter=-0.1), r"augment\.jitter is -0.1"),
        (Augmentation((16, 24), variants=0), r"augment\.variants is 0: set it to at least 1"),
        (
            Augmentation((16, 24), jitter=0.1, variants=2),
            "augmented on the fly in every epoch: set it to 1",
        ),
    ],
)
def test_unsupported_augmentation_is_refused(coded, augmentation, sentence):
    with pytest.raises(ValueError, match=sentence):
        batches(coded, 1, augmentation=augmentation)


def test_a_rate_range_needs_clips_longer_than_the_crop(tmp_path):
    folder = write_records(tmp_path / "data", [coded_clip(6, 16, 24)], 6)
    with pytest.raises(ValueError, match=r"longest clips \(6 frames .* 6 frames only at 8 "):
        batches(folder, 1, augmentation=Augmentation((16, 24), 4.0, 8.0))


def test_images_and_single_frames_keep_the_packed_rate(coded, tmp_path):
    pictures = write_records(tmp_path / "data", [coded_clip(1, 16, 24)], 1)
    for batch in batches(pictures, 1, frames=1, augmentation=Augmentation((8, 8), 4.0, 8.0)):
        assert np.all(batch["fps"] == FPS) and batch["video"].shape == (4, 1, 8, 8, 3)
    augmentation = Augmentation((16, 24), 2.0, 4.0)
    for batch in batches(coded, 3, frames=1, augmentation=augmentation):
        assert np.all(batch["fps"] == FPS)


# Before encoding


ENCODER = encode_latents.Encoder(
    # float16 represents uint8 exactly, so the latents equal the pixels.
    run=lambda video: video.astype(np.float32),
    name="taef2",
    weights="abc",
    shape=(6, 10, 3),
    precision="float32",
    dtype="float16",
    mirrored=True,
    augmentation=Augmentation((6, 10), 2.0, 8.0, 0.0, variants=3),
    frames=6,
    seed=5,
)


def read_latents(folder, split="train"):
    builder = tfds.builder_from_directory(folder)
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.fixture(scope="module")
def encoded(coded, tmp_path_factory):
    output = tmp_path_factory.mktemp("encoded") / "data"
    encode_latents.encode(coded, output, ENCODER, progress=False)
    return output


def test_variants_are_augmented_independently(encoded):
    clips = read_latents(encoded)
    assert len(clips) == 6 * 3
    seen = set()
    for clip in clips:
        np.testing.assert_array_equal(clip["mirrored_latents"], clip["latents"][:, :, ::-1])
        rows, columns, shown, mirrored = read_code(clip["latents"])
        assert np.ptp(rows) < 0.3 and np.ptp(columns) < 0.3 and not any(mirrored)
        expected = resampled(40, float(clip["fps"]))
        assert len(shown) == clip["num_frames"] == len(expected) >= 6
        np.testing.assert_allclose(shown, expected, atol=0.5)
        seen.add((round(rows.mean()), round(columns.mean()), float(clip["fps"])))
    assert len(seen) == len(clips)
    (validation,) = read_latents(encoded, "validation")
    rows, columns, shown, _ = read_code(validation["latents"])
    assert (round(rows.mean()), round(columns.mean())) == (5, 7)
    assert validation["fps"] == FPS and len(shown) == 40


def test_validation_latents_are_not_augmented(coded, tmp_path):
    whole = Augmentation((16, 24), jitter=0.2, variants=2)
    encoder = dataclasses.replace(ENCODER, shape=(16, 24, 3), augmentation=whole)
    encode_latents.encode(coded, tmp_path / "jittered", encoder, progress=False)
    plain = dataclasses.replace(encoder, augmentation=Augmentation((16, 24)))
    encode_latents.encode(coded, tmp_path / "plain", plain, progress=False)
    both = [read_latents(tmp_path / name, "validation") for name in ("jittered", "plain")]
    for jittered, same in zip(*both, strict=True):
        np.testing.assert_array_equal(jittered["latents"], same["latents"])
    # Two variants of each clip have the motion score of one.
    clips = merge_parts.check(tmp_path / "jittered")[""]["train"]
    assert clips == 2 * merge_parts.check(tmp_path / "plain")[""]["train"]


def test_augmented_latents_record_their_settings_and_train(encoded):
    data = pipeline.open_data(encoded)
    assert (data.height, data.width, data.fps, data.min_frames) == (6, 10, FPS, 6)
    expected = {"fps_min": 2.0, "fps_max": 8.0, "jitter": 0.0, "variants": 3, "seed": 5}
    assert data.latents.augment == expected
    fps = set()
    for batch in batches(encoded, 5, flip=True):
        assert batch["video"].shape == (4, 6, 6, 10, 3)
        fps |= set(batch["fps"])
    assert len(fps) > 10
    with pytest.raises(pipeline.DataError, match="augmented before they are encoded"):
        batches(encoded, 1, augmentation=ENCODER.augmentation)


def test_sharded_encoding_makes_the_same_latents(coded, encoded, tmp_path):
    for i in (1, 0):
        encode_latents.encode(coded, tmp_path / "parts", ENCODER, share=(i, 2), progress=False)
    for path in encoded.glob("clips-*"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert encode_latents.encode(coded, encoded, ENCODER, progress=False)["new"] == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": (6, 8)}, "augment.width was 10 and is now 8"),
        ({"fps_min": 3.0}, "augment.fps_min was 2.0 and is now 3.0"),
        ({"jitter": 0.1}, "augment.jitter was 0.0 and is now 0.1"),
        ({"variants": 2}, "augment.variants was 3 and is now 2"),
    ],
)
def test_latents_with_another_augmentation_are_refused(coded, encoded, change, sentence):
    other = ENCODER.augmentation._replace(**change)
    with pytest.raises(ValueError, match=sentence):
        encoder = dataclasses.replace(ENCODER, augmentation=other)
        encode_latents.encode(coded, encoded, encoder, progress=False)


@pytest.mark.parametrize("field, value", [("seed", 6), ("frames", 7)])
def test_latents_with_another_seed_or_length_are_refused(coded, encoded, field, value):
    with pytest.raises(ValueError, match=f"augment.{field} was . and is now {value}"):
        encoder = dataclasses.replace(ENCODER, **{field: value})
        encode_latents.encode(coded, encoded, encoder, progress=False)


def test_disabled_augmentation_does_not_change_latents(coded, tmp_path):
    plain = dataclasses.replace(ENCODER, shape=(16, 24, 3), augmentation=None)
    encode_latents.encode(coded, tmp_path / "plain", plain, progress=False)
    off = dataclasses.replace(plain, augmentation=Augmentation((16, 24)), seed=7, frames=9)
    assert encode_latents.encode(coded, tmp_path / "plain", off, progress=False)["new"] == 0
    with pytest.raises(ValueError, match=r"augment\.variants is 2, but no augmentation is enabled"):
        off = dataclasses.replace(plain, augmentation=Augmentation((16, 24), variants=2))
        encode_latents.encode(coded, tmp_path / "plain", off, progress=False)
    with pytest.raises(ValueError, match=r"augment\..* was None and is now"):
        encode_latents.encode(
            coded,
            tmp_path / "plain",
            dataclasses.replace(plain, augmentation=Augmentation((16, 24), jitter=0.2)),
            progress=False,
        )
