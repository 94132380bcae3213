"""Caption embeddings of latent data sets: computed once per shard, stored unpadded, read back padded."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.packing.test_encode_latents import CLIPS, ENCODER, packed  # noqa: F401
from videogen_jax.data import pipeline, records
from videogen_jax.data.annotations import Annotations
from videogen_jax.data.latent_records import Embeddings, TextInfo
from videogen_jax.packing import encode_latents

WIDTH, POOLED, LONGEST = 6, 3, 5


def embed(captions):
    """Makes embeddings that identify the caption; captions of clips above 5 exceed the maximum length."""
    numbers = [int(caption.removeprefix("clip")) for caption in captions]
    counts = np.array([n + 2 if n < 4 else n for n in numbers], np.int32)
    tokens = [
        np.add.outer(np.arange(min(n, LONGEST)), np.arange(WIDTH)) + 10.0 * number + 1 / 3
        for n, number in zip(counts, numbers, strict=True)
    ]
    pooled = np.array([[number + 0.1 * i for i in range(POOLED)] for number in numbers])
    return Embeddings([row.astype(np.float32) for row in tokens], pooled.astype("f4"), counts)


INFO = TextInfo(
    encoder="clip",
    path="owner/clip",
    weights="abc",
    precision="float32",
    dtype="float16",
    width=WIDTH,
    pooled_width=POOLED,
    length=LONGEST,
    null_tokens=[[0.5] * WIDTH] * 2,
    null_pooled=[0.25] * POOLED,
)
WITH_TEXT = dataclasses.replace(ENCODER, texts=INFO, embed=embed)


@pytest.fixture(scope="module")
def encoded(packed, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("embedded") / "data"
    report = encode_latents.encode(packed, output, WITH_TEXT, progress=False)
    assert report["cut_captions"] == sum(n > LONGEST for n in range(CLIPS))
    return output


def read(folder, length, **options):
    options = {"batch_size": 4, "frames": 5, "seed": 3} | options
    return next(pipeline.make_clips(folder, "train", text_length=length, **options))


@pytest.mark.parametrize("length", [3, LONGEST, 8])
def test_batches_contain_the_embeddings_of_their_captions(encoded, length):
    for step in range(3):
        batch = read(encoded, length, start_step=step)
        direct = embed([caption.decode() for caption in batch["caption"]])
        assert batch["text_tokens"].shape == (4, length, WIDTH)
        assert batch["text_tokens"].dtype == batch["text_pooled"].dtype == np.float16
        np.testing.assert_array_equal(batch["text_pooled"], direct.pooled.astype(np.float16))
        for row, count, tokens in zip(
            batch["text_tokens"], batch["text_count"], direct.tokens, strict=True
        ):
            assert count == min(len(tokens), length)
            np.testing.assert_array_equal(row[:count], tokens[:length].astype(np.float16))
            assert not row[count:].any()
    validation = pipeline.make_validation_clips(
        encoded, batch_size=1, frames=5, num_batches=1, text_length=length
    )
    assert next(validation)["text_tokens"].shape == (1, length, WIDTH)


def test_bfloat16_embeddings_are_read_back(packed, tmp_path):  # noqa: F811
    half = dataclasses.replace(WITH_TEXT, texts=INFO._replace(dtype="bfloat16"), dtype="bfloat16")
    encode_latents.encode(packed, tmp_path / "data", half, progress=False)
    batch = read(tmp_path / "data", LONGEST)
    direct = embed([caption.decode() for caption in batch["caption"]])
    np.testing.assert_allclose(batch["text_pooled"], direct.pooled, rtol=2**-8)


def test_data_set_records_its_text_encoder_and_tfds_opens_it(encoded):
    assert pipeline.open_data(encoded).texts == INFO
    builder = tfds.builder_from_directory(encoded)
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="train"))))
    direct = embed([text.decode() for text in example["captions"]["text"]])
    assert example["captions"]["tokens"].tolist() == [len(direct.tokens[0])]
    np.testing.assert_array_equal(example["text_tokens"], direct.tokens[0].astype(np.float16))
    assert example["text_pooled"].shape == (1, POOLED)


def test_data_sets_of_earlier_versions_open(encoded, tmp_path):
    """Their statistics.json lacks the fields of TextInfo that have defaults."""
    folder = shutil.copytree(encoded, tmp_path / "old")
    statistics = json.loads((folder / "statistics.json").read_text())
    for name in TextInfo._field_defaults:
        del statistics["texts"][name]
    (folder / records.CHECKSUMS).unlink()
    (folder / "statistics.json").write_text(json.dumps(statistics))
    assert pipeline.open_data(folder).texts == INFO


def test_each_caption_is_embedded_once_per_shard(packed, tmp_path):  # noqa: F811
    data = pipeline.open_data(packed)
    calls = []

    def record(captions):
        calls.append(list(captions))
        return embed(captions)

    encoder = dataclasses.replace(WITH_TEXT, embed=record)
    encode_latents.encode(packed, tmp_path / "data", encoder, progress=False)
    assert len(calls) == sum(len(files) for files in data.files.values())
    shards = [pipeline.read_captions(path, data) for files in data.files.values() for path in files]
    assert calls == [[caption.decode() for caption in shard] for shard in shards]


def test_caption_shared_by_several_clips_is_embedded_once(packed, tmp_path, monkeypatch):  # noqa: F811
    calls = []

    def record(captions):
        calls.append(list(captions))
        return embed(captions)

    clips = [Annotations.of_text(text) for text in ("clip9", "clip1", "clip9")]
    monkeypatch.setattr(pipeline, "read_annotations", lambda *_: iter(clips))
    fields, cut = encode_latents._embed_captions(
        tmp_path, None, dataclasses.replace(WITH_TEXT, embed=record)
    )
    assert calls == [["clip9", "clip1"]] and cut == 2
    assert set(fields) == {"clip9", "clip1"}


def test_finished_embeddings_are_not_recomputed(packed, encoded):  # noqa: F811
    def refuse(captions):
        raise AssertionError("embedded again")

    encoder = dataclasses.replace(WITH_TEXT, embed=refuse)
    report = encode_latents.encode(packed, encoded, encoder, progress=False)
    assert report["finished"] and report["new"] == 0
    assert report["cut_captions"] == sum(n > LONGEST for n in range(CLIPS))
    # The same weights at another path are accepted.
    encoder = dataclasses.replace(encoder, texts=INFO._replace(path="/elsewhere"))
    assert encode_latents.encode(packed, encoded, encoder, progress=False)["new"] == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "def"}, "text.weights was abc and is now def"),
        ({"precision": "bfloat16"}, "text.precision was float32 and is now bfloat16"),
        (None, "text.encoder was clip and is now None; .*text.weights was abc and is now None"),
    ],
)
def test_embeddings_of_another_encoder_are_refused(packed, encoded, change, sentence):  # noqa: F811
    texts = None if change is None else INFO._replace(**change)
    with pytest.raises(ValueError, match=sentence):
        encoder = dataclasses.replace(ENCODER, texts=texts, embed=embed)
        encode_latents.encode(packed, encoded, encoder, progress=False)


def test_latents_without_embeddings_are_refused_with_a_text_encoder(packed, tmp_path):  # noqa: F811
    encode_latents.encode(packed, tmp_path / "data", ENCODER, progress=False)
    assert pipeline.open_data(tmp_path / "data").texts is None
    assert "cut_captions" not in json.loads((tmp_path / "data" / encode_latents.REPORT).read_text())
    with pytest.raises(ValueError, match="text.encoder was None and is now clip"):
        encode_latents.encode(packed, tmp_path / "data", WITH_TEXT, progress=False)
