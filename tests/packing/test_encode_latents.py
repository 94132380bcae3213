"""Latent data sets: the batches of the packed set, encoded once, refused with other settings."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from videogen_jax.data import pipeline, video_writer
from videogen_jax.packing import encode_latents, pack_folder

CLIPS, FRAMES, SIZE = 11, 20, 16


def run(video):
    """Encodes to means over 8x8 pixels, and a fourth channel that distinguishes left from right."""
    video = video.astype(np.float32)
    latents = video.reshape(len(video), 2, 8, 2, 8, 3).mean(axis=(2, 4))  # (T, 2, 2, 3)
    tilt = video[:, :, : SIZE // 2].mean(axis=(1, 2, 3)) - video.mean(axis=(1, 2, 3))
    return np.concatenate(
        [latents, np.broadcast_to(tilt[:, None, None, None], (*latents.shape[:3], 1))], -1
    )


ENCODER = encode_latents.Encoder(
    run=run,
    name="taef2",
    weights="abc",
    shape=(2, 2, 4),
    precision="float32",
    dtype="float16",
    mirrored=True,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for c in range(CLIPS):
        video = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        video += rng.integers(40, 200, (FRAMES, 1, 1, 3), np.uint8)
        video[:, :, : SIZE // 2] -= 30
        video_writer.write_video(folder / f"{c:02d}.mp4", video, fps=8)
        (folder / f"{c:02d}.txt").write_text(f"clip{c}")
    settings = pack_folder.Settings(
        size=(SIZE, SIZE),
        fps=8.0,
        frames=FRAMES,
        min_frames=FRAMES,
        validation_fraction=0.2,
        clips_per_shard=3,
    )
    output = tmp_path_factory.mktemp("packed") / "data"
    pack_folder.pack(folder, output, settings, workers=1)
    return output


@pytest.fixture(scope="module")
def latents(packed, tmp_path_factory):
    output = tmp_path_factory.mktemp("latents") / "data"
    report = encode_latents.encode(packed, output, ENCODER, progress=False)
    assert report["finished"] and report["new"] == sum(report["clips"].values()) == CLIPS
    return output


def read(folder, count=3, **options):
    options = {"batch_size": 4, "frames": 5, "seed": 3, "flip": True} | options
    clips = pipeline.make_clips(folder, "train", **options)
    return [next(clips) for _ in range(count)]


@pytest.mark.parametrize(
    ("frames", "flip"), [(5, True), (7, False), (FRAMES, True), (FRAMES, False)]
)
def test_latent_batches_match_pixel_batches(packed, latents, frames, flip):
    info = pipeline.open_data(latents).latents
    options = {"frames": frames, "flip": flip}
    for cached, uncached in zip(read(latents, **options), read(packed, **options), strict=True):
        assert list(cached["caption"]) == list(uncached["caption"])
        np.testing.assert_array_equal(cached["motion_score"], uncached["motion_score"])
        expected = np.stack([run(video) for video in uncached["video"]])
        expected = (expected - np.asarray(info.mean)) / np.asarray(info.deviation)
        assert cached["video"].dtype == np.float16
        # Tolerance: 1 ulp of float16 at values up to 256.
        np.testing.assert_allclose(
            cached["video"], expected, atol=0.13 / min(info.deviation) + 2e-3
        )
    validation = pipeline.make_validation_clips(latents, batch_size=1, frames=5, num_batches=1)
    assert next(validation)["video"].shape == (1, 5, 2, 2, 4)


def test_statistics_are_computed_over_the_train_split(packed, latents):
    data = pipeline.open_data(packed)
    clips = [
        clip["video"] for path in data.files["train"] for clip in pipeline.read_clips(path, data)
    ]
    encoded = np.concatenate([run(part) for clip in clips for part in (clip, clip[:, :, ::-1])])
    rows = encoded.reshape(-1, 4).astype(np.float64)
    info = pipeline.open_data(latents).latents
    np.testing.assert_allclose(info.mean, rows.mean(0), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(info.deviation, rows.std(0), rtol=1e-10)


def test_tfds_opens_the_latents(latents):
    builder = tfds.builder_from_directory(latents)
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="train"))))
    assert example["latents"].shape == example["mirrored_latents"].shape == (FRAMES, 2, 2, 4)
    assert example["latents"].dtype == np.float16


def test_finished_latents_are_not_encoded_again(packed, latents):
    def refuse(video):
        raise AssertionError("encoded again")

    encoder = dataclasses.replace(ENCODER, run=refuse)
    report = encode_latents.encode(packed, latents, encoder, progress=False)
    assert report["finished"] and report["new"] == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "def"}, "autoencoder.weights was abc and is now def"),
        ({"mirrored": False}, "autoencoder.mirrored was True and is now False"),
        ({"dtype": "bfloat16"}, "autoencoder.dtype was float16 and is now bfloat16"),
    ],
)
def test_latents_with_other_settings_are_refused(packed, latents, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        encode_latents.encode(
            packed, latents, dataclasses.replace(ENCODER, **change), progress=False
        )


def test_latents_of_other_clips_are_refused(packed, latents, tmp_path):
    other = tmp_path / "packed"
    shutil.copytree(packed, other)
    report = json.loads((other / "pack_report.json").read_text())
    report["settings"]["fps"] = 12.0
    (other / "pack_report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="packed.fps was 8.0 and is now 12.0"):
        encode_latents.encode(other, latents, ENCODER, progress=False)


def test_resumed_and_sharded_encoding_gives_the_same_bytes(packed, latents, tmp_path):
    calls = []

    def die(video):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return run(video)

    output = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        encode_latents.encode(packed, output, dataclasses.replace(ENCODER, run=die), progress=False)
    with pytest.raises(pipeline.DataError, match="not finished"):
        pipeline.open_data(output)
    first = encode_latents.encode(packed, output, ENCODER, share=(0, 2), progress=False)
    second = encode_latents.encode(packed, output, ENCODER, share=(1, 2), progress=False)
    assert not first["finished"] and second["finished"]
    assert first["new"] + second["new"] < CLIPS
    for path in sorted(latents.glob("clips-*")):
        assert path.read_bytes() == (output / path.name).read_bytes()
    assert pipeline.open_data(output).latents == pipeline.open_data(latents).latents


def test_flipping_needs_mirrored_latents(packed, tmp_path):
    encoder = dataclasses.replace(ENCODER, mirrored=False, dtype="bfloat16")
    encode_latents.encode(packed, tmp_path / "plain", encoder, progress=False)
    with pytest.raises(pipeline.DataError, match="encoded without mirrored latents"):
        read(tmp_path / "plain")
    assert read(tmp_path / "plain", flip=False)[0]["video"].shape == (4, 5, 2, 2, 4)


def test_encoding_a_latent_set_is_refused(latents, tmp_path):
    with pytest.raises(ValueError, match="holds latents already"):
        encode_latents.encode(latents, tmp_path, ENCODER, progress=False)


@pytest.mark.parametrize("damage", ["shard", "entry"])
def test_damaged_shards_are_encoded_again(packed, latents, tmp_path, damage):
    output = tmp_path / "set"
    first = encode_latents.encode(packed, output, ENCODER, share=(0, 2), progress=False)
    path = sorted(output.glob("clips-train*"))[0]
    content = bytearray(path.read_bytes())
    if damage == "shard":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        (output / "unfinished" / f"{path.name}.json").write_text('{"clips": "3"}')
    again = encode_latents.encode(packed, output, ENCODER, share=(0, 2), progress=False)
    assert 0 < again["new"] < first["new"]
    encode_latents.encode(packed, output, ENCODER, progress=False)
    for path in sorted(latents.glob("clips-*")):
        assert path.read_bytes() == (output / path.name).read_bytes()
    names = {path.name for path in output.glob("clips-*")} | {
        "statistics.json",
        "motion_scores.npy",
    }
    assert json.loads((output / "checksums.json").read_text()).keys() == names


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("encode_report.json", '{"settings": []}', "settings should be a mapping"),
        (
            "encode_report.json",
            '{"settings": {}, "clips": {"train": "3"}}',
            "clips.train should be",
        ),
        ("encode_report.json", "", "is damaged"),
    ],
)
def test_damaged_reports_are_refused_with_file_and_field(
    packed, latents, tmp_path, name, content, reason
):
    shutil.copytree(latents, tmp_path / "set")
    (tmp_path / "set" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*: bring back a copy") as error:
        encode_latents.encode(packed, tmp_path / "set", ENCODER, progress=False)
    assert reason in str(error.value)
