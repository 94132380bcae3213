"""From pack to a video with T5's tokens and CLIP's pooled vector: encoded, trained on, sampled from, refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import videogen_jax
from tests.data.packed import random_clips, write_records
from tests.models.text_encoders import POOLED, WIDTH, write_clip, write_t5
from tests.run.test_text_conditioning import verb, write_sd
from tests.tiny import tiny_config
from videogen_jax.data import pipeline
from videogen_jax.run import caption_embedder, text_conditioning
from videogen_jax.train import caption_lengths, loop
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_batches")]

LONG = "a red ball one two three " * 100
CAPTIONS = ["a red ball", LONG, "ein grüner Würfel", "word " * 90, "a ball", "red " * 100] * 2
COUNTS = [4, 601, 4, 91, 3, 101]  # with the end of text
LENGTH = 96


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a run whose data set is encoded."""
    folder = tmp_path_factory.mktemp("long")
    clips = random_clips((4, 16, 16), len(CAPTIONS))
    packed = write_records(folder / "packed", clips, 4, per_shard=6, captions=CAPTIONS)
    config = tiny_config()
    config.data.update({"path": str(folder / "encoded"), "height": 16, "width": 16})
    config.vae.update({"name": "sd", "path": write_sd(folder / "sd")})
    config.text.update({"encoder": "t5", "path": write_t5(folder / "pipeline" / "text_encoder")})
    (folder / "pipeline" / "text_encoder" / "tokenizer.json").rename(
        (folder / "pipeline" / "tokenizer").mkdir() or folder / "pipeline/tokenizer/tokenizer.json"
    )
    config.text.update({"pooled_encoder": "clip", "pooled_path": write_clip(folder / "clip")})
    config.text.length = LENGTH
    config.model.update({"cross_attention": "gated", "pooled_text": True})
    config.model.patch_size = (1, 1, 1)
    config.train.steps = 2
    config.checkpoint.every = 2
    config.learning_rate.warmup_steps = 1
    config.sample.update({"every": 100, "prompts": (), "clip_x0": False})
    names = ("encoder", "path", "pooled_encoder", "pooled_path")
    values = {f"text.{name}": config.text[name] for name in names}
    values |= {"vae.name": "sd", "vae.path": config.vae.path, "train.precision": "float32"}
    values |= {"data.frames": 4, "data.height": 16, "data.width": 16}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    folders = [f"--input={packed}", f"--output={config.data.path}"]
    result = verb("encode", "--config=configs/quickstart.py", *folders, *overrides)
    assert not result.returncode, result.stderr[-2000:]
    assert "2 captions have more tokens than the text encoder reads, and were cut" in result.stdout
    return config


def test_embeddings_are_stored_at_their_lengths_and_read_back(config, monkeypatch):
    data = pipeline.open_data(config.data.path)
    info = data.texts
    assert (info.encoder, info.pooled_encoder, info.length) == ("t5", "clip", 512)
    report = json.loads((Path(config.data.path) / "encode_report.json").read_text())
    assert report["settings"]["text"]["pooled_weights"] == info.pooled_weights
    assert "layer" not in report["settings"]["text"]
    counts = [n for path in data.files["train"] for n in pipeline.read_token_counts(path, data)]
    assert sorted(counts) == sorted(min(count, 512) for count in COUNTS * 2)
    size = sum(path.stat().st_size for path in Path(config.data.path).glob("*train*"))
    padded = 512 * WIDTH * 2 * len(CAPTIONS)
    assert size < padded  # with the latents

    texts = DIFFUSION.open_texts(config, data)
    options = {"batch_size": 12, "frames": 4, "seed": 0, "text_length": texts.stored_length}
    batch = next(pipeline.make_clips(config.data.path, "train", **options))
    rows = texts.read(batch)
    captions = [caption.decode() for caption in batch["caption"]]
    expected = [min(COUNTS[CAPTIONS.index(caption)], LENGTH) for caption in captions]
    assert rows["mask"].sum(1).tolist() == expected
    assert rows["tokens"].shape == (12, LENGTH, WIDTH) and rows["pooled"].shape == (12, POOLED)
    embedder = caption_embedder.load_embedder(config.text, "float32")
    direct = embedder.run(captions)
    # The same programs, compiled once.
    monkeypatch.setattr(text_conditioning, "load_embedder", lambda *_: embedder)
    embedded = texts.embed(captions)
    for i, count in enumerate(expected):
        np.testing.assert_allclose(
            rows["tokens"][i, :count], direct.tokens[i][:LENGTH], rtol=2**-10, atol=1e-3
        )
        assert not rows["tokens"][i, count:].any()
    np.testing.assert_allclose(rows["pooled"], direct.pooled, rtol=2**-10, atol=1e-3)
    for name, column in rows.items():
        assert (column.shape, column.dtype) == (embedded[name].shape, embedded[name].dtype)
        np.testing.assert_allclose(
            column.astype("f4"), embedded[name].astype("f4"), rtol=2**-9, atol=1e-3
        )
    blank = text_conditioning.blank_text(config.text)
    shapes = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), texts.null, blank)
    assert all(shapes.values()) and texts.null["mask"].sum() == 1


def test_captions_that_the_model_cuts_are_counted(config, caplog):
    from absl import logging

    logging.get_absl_logger().propagate = True
    data = pipeline.open_data(config.data.path)
    with caplog.at_level("WARNING"):
        assert caption_lengths.warn_of_cut_captions("t5", LENGTH, data) == 4
        assert caption_lengths.warn_of_cut_captions("t5", 512, data) == 0
    (line,) = [line for line in caplog.messages if "captions of" in line]
    assert "4 of 12 captions" in line and "more than 96 tokens (the longest 512)" in line


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    loop.train(config, workdir)
    return workdir


def test_a_trained_run_samples_and_resumes(config, trained):
    model = videogen_jax.load(trained)
    rows, null = model.embed(["a red ball", "red " * 100])
    assert rows["mask"].sum(1).tolist() == [4, LENGTH] and null["mask"].sum() == 1
    video = model(["a red ball"], seeds=[0])
    assert video.shape == (1, 4, 16, 16, 3) and video.dtype == np.uint8
    config = config.copy_and_resolve_references()
    config.train.steps = 3
    config.checkpoint.every = 3
    loop.train(config, trained)
    assert videogen_jax.load(trained).step == 3


def test_other_encoders_than_the_data_sets_are_refused(config, trained, tmp_path):
    data = pipeline.open_data(config.data.path)
    for name, value in (("pooled_encoder", ""), ("layer", -2), ("encoder", "qwen3")):
        other = config.copy_and_resolve_references()
        other.text[name] = value
        with pytest.raises(ValueError, match=rf"are of text\.{name}=.*: set it back, or encode ag"):
            text_conditioning.open_texts(other.text, data)
    for name, write in (("path", write_t5), ("pooled_path", write_clip)):
        other = config.copy_and_resolve_references()
        other.text[name] = write(tmp_path / name, seed=1)
        message = rf"of the weights .* but text\.{name}='{other.text[name]}' has the weights"
        with pytest.raises(ValueError, match=message):
            text_conditioning.open_texts(other.text, data)
        restored = text_conditioning.restore_texts(other.text, {"text": data.texts._asdict()})
        with pytest.raises(
            ValueError, match=rf"of text\.{name}=.* are not those that embedded the"
        ):
            restored.embed(["a"])
        other.text[name] = write(tmp_path / "same" / name)  # the same weights elsewhere
        text_conditioning.open_texts(other.text, data).embed(["a"])
    with pytest.raises(ValueError, match="text.length is 513, but the text encoder reads 512"):
        config = config.copy_and_resolve_references()
        config.text.length = 513
        text_conditioning.blank_text(config.text)


def test_shapes_are_known_without_weights(config):
    """As `plan` needs them: no network, no file."""
    config = config.copy_and_resolve_references()
    config.text.update({"path": "google/umt5-xxl", "length": 256})
    config.text.pooled_path = "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2"
    blank = text_conditioning.blank_text(config.text)
    assert blank["tokens"].shape == (256, 4096) and blank["pooled"].shape == (1280,)
    config.text.update({"encoder": "qwen3", "path": "Qwen/Qwen3-0.6B", "pooled_encoder": ""})
    blank = text_conditioning.blank_text(config.text)
    assert blank["tokens"].shape == (256, 1024) and blank["pooled"].shape == (1024,)


def test_checkpoints_of_earlier_versions_are_the_same_run(config):
    """Their metadata lack what came later, and the place of weights does not matter."""
    info = pipeline.open_data(config.data.path).texts
    old = info._replace(pooled_encoder="", pooled_path="", pooled_weights="")
    later = ("layer", "pooled_encoder", "pooled_path", "pooled_weights")
    saved = {name: value for name, value in old._asdict().items() if name not in later}
    texts = text_conditioning.NONE._replace(
        metadata={"vocabulary": [], "text": old._replace(path="elsewhere")._asdict()}
    )
    metadata = {"vocabulary": [], "text": saved}
    assert text_conditioning.find_difference(texts, metadata) is None
    other = {"vocabulary": [], "text": saved | {"layer": -2}}
    assert "another text encoder" in text_conditioning.find_difference(texts, other)
    both = {"vocabulary": [], "text": saved | {"pooled_weights": "abc", "pooled_encoder": "clip"}}
    assert "another text encoder" in text_conditioning.find_difference(texts, both)
