"""Captions over time and numbers per frame in batches, against NumPy; and data sets of one text per clip."""

import collections
import io
import itertools
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data.packed import write_buckets, write_records
from videogen_jax.data import bucketed_data, pipeline, records
from videogen_jax.data.annotations import Annotations
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import Embeddings, TextInfo
from videogen_jax.packing import encode_latents

FRAMES, CROP = 20, 5


def make_videos(count):
    """Clips of 8x8 pixels: frame t of clip c has brightness 10 + 10 t, blue 5 + 20 c (c < 12)."""
    video = np.zeros((count, FRAMES, 8, 8, 3), np.uint8)
    video += (10 + 10 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None]
    video[..., 2] = (5 + 20 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return list(video)


def annotate(clip):
    """One to three captions; the second changes, and back again."""
    captions = (
        ((0, f"{clip} plain"),),
        ((0, f"{clip} left"), (4 + clip, f"{clip} right"), (10 + clip, f"{clip} left")),
        ((0, f"{clip} thirdly"),),
    )
    numbers = {"action": np.float32(100 * clip + np.arange(FRAMES)) / 7}
    numbers |= {"score": -numbers["action"]} if clip else {}
    return Annotations(captions[: 1 + clip % 3], f"game/{clip}", numbers)


CLIPS = 6
SAID = [annotate(clip) for clip in range(CLIPS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotated") / "data"
    return write_records(folder, make_videos(CLIPS), FRAMES, 2, SAID, held_out=3)


def batches(data, count, split="train", **options):
    options = {"batch_size": 4, "frames": CROP, "seed": 1, "shuffle_window": 7} | options
    return list(itertools.islice(pipeline.make_clips(data, split, **options), count))


def identify(video):
    """(clip, frames) shown by a crop, by its pixels."""
    red, blue = video[..., 0].mean((1, 2)), video[..., 2].mean()
    return round((blue - 5) / 20), np.rint((red - 10) / 10).astype(int)


def most_shown(timeline, frames):
    """The text in force for most frames, the earlier of equals."""
    texts = [[text for first, text in timeline if first <= frame][-1] for frame in frames]
    return max(dict.fromkeys(texts), key=texts.count)


def assert_same(a, b):
    jax_like = [tf.nest.flatten(batch) for batch in (a, b)]
    assert [a.keys()] == [b.keys()]
    for one, other in zip(*jax_like, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("flip", [False, True])
def test_captions_and_numbers_are_those_of_the_frames_of_the_crop(data, flip):
    for batch in batches(data, 60, flip=flip, numbers=("action",)):
        assert batch["numbers"]["action"].dtype == np.float32
        rows = zip(batch["video"], batch["caption"], batch["numbers"]["action"], strict=True)
        for video, caption, action in rows:
            clip, frames = identify(video)
            texts = [most_shown(timeline, frames) for timeline in SAID[clip].captions]
            assert caption.decode() in texts
            np.testing.assert_array_equal(action, SAID[clip].numbers["action"][frames])


def test_numbers_and_captions_follow_a_changed_rate(data):
    augmentation = Augmentation(size=(8, 8), fps_min=2.0, fps_max=8.0)
    rates = set()
    for batch in batches(data, 40, augmentation=augmentation, numbers=("action",)):
        rates |= set(np.round(batch["fps"], 1))
        rows = zip(batch["video"], batch["caption"], batch["numbers"]["action"], strict=True)
        for video, caption, action in rows:
            clip, frames = identify(video)
            np.testing.assert_array_equal(action, SAID[clip].numbers["action"][frames])
            assert caption.decode() in [most_shown(line, frames) for line in SAID[clip].captions]
    assert len(rates) > 10


def test_each_caption_is_drawn_equally_often_by_seed_and_epoch(data):
    epochs, drawn = 300, collections.defaultdict(list)
    for batch in batches(data, epochs, batch_size=CLIPS, shuffle_window=CLIPS):
        for video, caption in zip(batch["video"], batch["caption"], strict=True):
            clip, frames = identify(video)
            texts = [most_shown(timeline, frames) for timeline in SAID[clip].captions]
            drawn[clip].append(texts.index(caption.decode()))
    for clip, numbers in drawn.items():
        choices = len(SAID[clip].captions)
        counts = np.bincount(numbers, minlength=choices)
        assert len(counts) == choices and counts.sum() == epochs
        # Within four standard deviations of a fair draw.
        assert np.abs(counts - epochs / choices).max() <= 4 * np.sqrt(epochs * 0.25)
    # Clips draw independently of each other.
    assert abs(np.corrcoef(drawn[1], drawn[4])[0, 1]) < 4 / np.sqrt(epochs)


def test_draws_are_a_function_of_seed_and_step_and_split_over_processes(data):
    options = {"numbers": ("action",), "flip": True}
    stream = batches(data, 9, **options)
    for one, other in zip(stream, batches(data, 9, **options), strict=True):
        assert_same(one, other)
    for step in (1, 5, 8):
        assert_same(batches(data, 1, start_step=step, **options)[0], stream[step])
    halves = [batches(data, 9, share=(i, 2), **options) for i in range(2)]
    for whole, *parts in zip(stream, *halves, strict=True):
        joined = [np.concatenate([part["caption"] for part in parts])]
        joined += [np.concatenate([part["numbers"]["action"] for part in parts])]
        np.testing.assert_array_equal(joined[0], whole["caption"])
        np.testing.assert_array_equal(joined[1], whole["numbers"]["action"])
    other = batches(data, 9, **options | {"seed": 2})
    assert any((a["caption"] != b["caption"]).any() for a, b in zip(stream, other, strict=True))


def test_validation_takes_the_first_caption_of_the_centre(data):
    options = {"batch_size": 3, "frames": CROP, "num_batches": 1, "numbers": ("action",)}
    (batch,) = pipeline.make_validation_clips(data, **options)
    for clip, (video, caption) in enumerate(zip(batch["video"], batch["caption"], strict=True)):
        frames = np.arange(7, 12)
        assert identify(video)[0] == clip and identify(video)[1].tolist() == frames.tolist()
        assert caption.decode() == most_shown(SAID[clip].captions[0], frames)
        np.testing.assert_array_equal(
            batch["numbers"]["action"][clip], SAID[clip].numbers["action"][frames]
        )


def test_numbers_that_some_clip_lacks_are_refused_with_those_there_are(data):
    with pytest.raises(pipeline.DataError, match="a number 'score' per frame: .* are action"):
        batches(data, 1, numbers=("action", "score"))


def test_annotations_are_read_back_without_pixels(data):
    opened = pipeline.open_data(data)
    found = [
        said for path in opened.files["train"] for said in pipeline.read_annotations(path, opened)
    ]
    for said, expected in zip(found, SAID, strict=True):
        assert (said.captions, said.episode) == (expected.captions, expected.episode)
        assert said.numbers.keys() == expected.numbers.keys()
        for name, values in said.numbers.items():
            np.testing.assert_array_equal(values, expected.numbers[name])


def test_tfds_opens_all_fields(data):
    items = {
        item["episode"]: item
        for item in tfds.as_numpy(tfds.builder_from_directory(data).as_dataset("train"))
    }
    assert len(items) == CLIPS
    for said in SAID:
        item = items[said.episode.encode()]
        entries = [
            (n, first, text.encode())
            for n, line in enumerate(said.captions)
            for first, text in line
        ]
        fields = (item["captions"][name].tolist() for name in ("number", "first_frame", "text"))
        assert list(zip(*fields, strict=True)) == entries
        assert item["numbers"]["name"].tolist() == [name.encode() for name in sorted(said.numbers)]
        values = item["numbers"]["values"].reshape(len(said.numbers), FRAMES)
        np.testing.assert_array_equal(values, [said.numbers[name] for name in sorted(said.numbers)])


def test_selecting_frames_keeps_the_text_and_number_of_each():
    said = Annotations(
        (((0, "a"), (3, "b"), (4, "c"), (6, "b"), (9, "a")),),
        "e",
        {"n": np.arange(12, dtype=np.float32)},
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        chosen = np.sort(rng.integers(0, 12, rng.integers(1, 16)))
        (line,), episode, numbers = said.select(chosen)
        assert episode == "e" and numbers["n"].tolist() == chosen.tolist()
        shown = [[text for at, text in line if at <= t][-1] for t in range(len(chosen))]
        assert shown == [[t for at, t in said.captions[0] if at <= f][-1] for f in chosen]
        assert line[0][0] == 0 and all(a[1] != b[1] for a, b in zip(line, line[1:], strict=False))


def old_features():
    """The fields of records of one text per clip, as earlier versions wrote them."""
    features = tfds.features
    strips = features.Sequence(features.Image(shape=(None, None, 3), encoding_format="jpeg"))
    scalars = {"fps": np.float32, "num_frames": np.int32, "height": np.int32, "width": np.int32}
    texts = {"caption": features.Text(), "source": features.Text()}
    return features.FeaturesDict({"strips": strips, "motion_score": np.float32} | texts | scalars)


def rewrite_with_one_text(folder, old):
    """Rewrites a data set of one text per clip with the fields of earlier versions."""
    data = pipeline.open_data(folder)
    shutil.copytree(folder, old)
    features, sizes = old_features(), {}
    for split, paths in data.files.items():
        for path in paths:
            examples = []
            for raw in tf.data.TFRecordDataset(path).as_numpy_iterator():
                fields = tf.train.Example.FromString(raw).features.feature
                text = {
                    n: fields[n].bytes_list.value[0].decode() for n in ("captions/text", "source")
                }
                scalars = {n: fields[n].float_list.value[0] for n in ("fps", "motion_score")}
                scalars |= {
                    n: fields[n].int64_list.value[0] for n in ("num_frames", "height", "width")
                }
                strips = [io.BytesIO(strip) for strip in fields["strips"].bytes_list.value]
                item = scalars | {
                    "strips": strips,
                    "caption": text["captions/text"],
                    "source": text["source"],
                }
                examples.append(features.serialize_example(features.encode_example(item)))
            target = old / path.rsplit("/", 1)[1]
            sizes.setdefault(split, []).append(records.write_shard(target, examples))
    (old / "again").mkdir()
    records.write_dataset_info(old, sizes, old / "again", features)
    return old


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One data set with the fields of now and of earlier versions."""
    folder = tmp_path_factory.mktemp("both")
    now = write_records(folder / "now", make_videos(CLIPS), FRAMES, 2, held_out=2)
    return now, rewrite_with_one_text(now, folder / "old")


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_described_by_the_text_that_most_have(seed):
    rng = np.random.default_rng(seed)
    starts = [0, *sorted(rng.choice(np.arange(1, 12), 3, replace=False).tolist())]
    timeline = tuple((first, f"text {rng.integers(2)}") for first in starts)
    chosen = np.sort(rng.integers(0, 12, 7))
    active = [[text for first, text in timeline if first <= frame][-1] for frame in chosen]
    expected = max(dict.fromkeys(active), key=active.count)  # of equals the first
    assert Annotations((timeline, ((0, "other"),))).describe(chosen) == expected


@pytest.mark.parametrize("options", [{}, {"flip": True, "start_step": 7}])
def test_sets_of_one_text_per_clip_give_the_same_batches(both, options):
    assert [pipeline.open_data(folder).annotated for folder in both] == [True, False]
    now, old = (batches(folder, 10, **options) for folder in both)
    for one, other in zip(now, old, strict=True):
        assert_same(one, other)


def test_sets_of_one_text_per_clip_are_read_and_validated_alike(both):
    options = {"batch_size": 2, "frames": CROP, "num_batches": 1}
    (now,), (old,) = (pipeline.make_validation_clips(folder, **options) for folder in both)
    assert_same(now, old)
    assert bucketed_data.draw_captions(both[0], 9, 3) == bucketed_data.draw_captions(both[1], 9, 3)
    for folder in both:
        opened = pipeline.open_data(folder)
        path = opened.files["train"][0]
        assert [clip["annotations"] for clip in pipeline.read_clips(path, opened)] == [
            Annotations.of_text(text) for text in ("0", "1")
        ]
    with pytest.raises(pipeline.DataError, match="'action' per frame: those there are none"):
        batches(both[1], 1, numbers=("action",))


def test_buckets_share_the_numbers_that_all_have(tmp_path):
    folder = write_buckets(tmp_path / "data", {"20x8x8": make_videos(2)})
    write_records(folder / "20x8x8b", make_videos(CLIPS), FRAMES, 4, SAID)
    bucketed_data.write_index(folder, ["20x8x8", "20x8x8b"])
    assert [data.numbers for data in bucketed_data.open_buckets(folder).values()] == [(), ()]
    shutil.rmtree(folder / "20x8x8")
    write_records(folder / "20x8x8", make_videos(3)[1:], FRAMES, 4, [SAID[1], SAID[2]])
    sets = bucketed_data.open_buckets(folder)
    assert [data.numbers for data in sets.values()] == [("action",), ("action",)]
    for opened, known in zip(sets.values(), (SAID[1:3], SAID), strict=True):
        (batch,) = batches(opened, 1, batch_size=2, numbers=("action",))
        for video, action in zip(batch["video"], batch["numbers"]["action"], strict=True):
            frames = identify(video)[1]
            assert any(np.array_equal(action, said.numbers["action"][frames]) for said in known)


def embed(texts):
    """Embeddings that tell the text: 1 + length tokens of its letters' sum."""
    numbers = [sum(map(ord, text)) / 8 for text in texts]
    tokens = [np.full((1 + len(text), 2), n, "f4") for text, n in zip(texts, numbers, strict=True)]
    pooled = np.float32([[n, -n, 1 + n] for n in numbers])
    return Embeddings(tokens, pooled, np.int32([1 + len(text) for text in texts]))


def make_encoder(**options):
    """Encodes each frame to its mean colour; every text of more than 7 letters is truncated."""
    settings = {"name": "taef2", "weights": "abc", "shape": (1, 1, 3), "precision": "float32"}
    info = {"encoder": "clip", "path": "owner/clip", "weights": "abc", "precision": "float32"}
    info |= {"dtype": "float16", "width": 2, "pooled_width": 3, "length": 8}
    texts = TextInfo(**info, null_tokens=[[0.5] * 2], null_pooled=[0.25] * 3)
    defaults = {"dtype": "float16", "mirrored": True, "texts": texts, "embed": embed}
    return encode_latents.Encoder(
        **{"run": lambda video: video.mean((1, 2), np.float32)[:, None, None]}
        | settings
        | defaults
        | options
    )


def check_embeddings(batch, length):
    direct = embed([caption.decode() for caption in batch["caption"]])
    np.testing.assert_array_equal(batch["text_pooled"], direct.pooled.astype(np.float16))
    np.testing.assert_array_equal(batch["text_count"], np.minimum(direct.counts, length))
    for row, tokens in zip(batch["text_tokens"], direct.tokens, strict=True):
        n = min(len(tokens), length)
        np.testing.assert_array_equal(row[:n], tokens[:n].astype(np.float16))
        assert not row[n:].any()


def test_latents_have_the_captions_numbers_and_embeddings_of_the_same_draws(data, tmp_path):
    report = encode_latents.encode(data, tmp_path / "data", make_encoder(), progress=False)
    long = sum(any(len(text) > 7 for text in said.texts) for said in SAID + SAID[:3])
    assert 0 < long == report["cut_captions"]
    options = {"flip": True, "numbers": ("action",)}
    pixels = batches(data, 40, **options)
    for one, other in zip(
        pixels, batches(tmp_path / "data", 40, text_length=9, **options), strict=True
    ):
        check_embeddings(other, 9)
        assert other["caption"].tolist() == one["caption"].tolist()
        np.testing.assert_array_equal(one["numbers"]["action"], other["numbers"]["action"])
    assert len({caption for batch in pixels for caption in batch["caption"]}) > 2 * CLIPS
    validation = {"batch_size": 3, "frames": CROP, "num_batches": 1, "numbers": ("action",)}
    (one,) = pipeline.make_validation_clips(data, **validation)
    (other,) = pipeline.make_validation_clips(tmp_path / "data", text_length=9, **validation)
    check_embeddings(other, 9)
    assert other["caption"].tolist() == one["caption"].tolist()
    np.testing.assert_array_equal(one["numbers"]["action"], other["numbers"]["action"])


def test_latents_at_a_changed_rate_have_the_texts_and_numbers_of_their_frames(data, tmp_path):
    augmentation = Augmentation((8, 8), fps_min=2.0, fps_max=8.0, variants=3)
    encoder = make_encoder(augmentation=augmentation, frames=CROP, texts=None, mirrored=False)
    encode_latents.encode(data, tmp_path / "data", encoder, progress=False)
    opened, lengths = pipeline.open_data(tmp_path / "data"), set()
    for batch in batches(opened, 30, numbers=("action",)):
        info = opened.latents
        latents = batch["video"] * np.float32(info.deviation) + np.float32(info.mean)
        rows = zip(latents, batch["caption"], batch["numbers"]["action"], strict=True)
        for video, caption, action in rows:
            clip, frames = identify(video)
            lengths.add(frames[-1] - frames[0])
            np.testing.assert_array_equal(action, SAID[clip].numbers["action"][frames])
            assert caption.decode() in [most_shown(line, frames) for line in SAID[clip].captions]
    assert len(lengths) > 4


def test_latents_of_several_frames_each_keep_the_frames_of_the_video(tmp_path):
    videos, said = (
        [video[:19] for video in make_videos(4)],
        [one.select(range(19)) for one in SAID[:4]],
    )
    write_records(tmp_path / "clips", videos, 19, 2, said)
    encoder = make_encoder(
        run=lambda video: video[::3].mean((1, 2), np.float32)[:, None, None], time_stride=3
    )
    encode_latents.encode(tmp_path / "clips", tmp_path / "data", encoder, progress=False)
    options = {"frames": 19, "numbers": ("action",)}
    opened = pipeline.open_data(tmp_path / "data")
    stream = batches(opened, 9, text_length=9, **options)
    for one, other in zip(batches(tmp_path / "clips", 9, **options), stream, strict=True):
        assert other["video"].shape == (4, 7, 1, 1, 3)
        assert other["caption"].tolist() == one["caption"].tolist()
        np.testing.assert_array_equal(one["numbers"]["action"], other["numbers"]["action"])
        check_embeddings(other, 9)
    path = opened.files["train"][0]
    assert [line.decode() for line in pipeline.read_captions(path, opened)] == [
        most_shown(one.captions[0], range(19)) for one in said[:2]
    ]


def test_packed_sets_of_one_text_per_clip_become_latents_of_one_text(both, tmp_path):
    for folder in both:
        target = tmp_path / folder.name
        encode_latents.encode(folder, target, make_encoder(), progress=False)
        builder = tfds.builder_from_directory(target)
        assert ("caption" in builder.info.features) == (folder.name == "old")
    now, old = (batches(tmp_path / folder.name, 9, flip=True, text_length=9) for folder in both)
    for one, other in zip(now, old, strict=True):
        check_embeddings(other, 9)
        assert_same(one, other)
