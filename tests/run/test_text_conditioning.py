"""The texts of a run: CLIP's embeddings, encoded once, trained on, gone on with and sampled from; what is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging
from safetensors.numpy import save_file

from tests.data.packed import random_clips, write_buckets, write_records
from tests.models.autoencoders import random_sd
from tests.models.text_encoders import LENGTH, POOLED, WIDTH, write_clip
from tests.test_launch import ENVIRONMENT
from tests.tiny import make_run, tiny_config
from videogen_jax.config import get_config
from videogen_jax.data import clip_tokenizer, pipeline
from videogen_jax.models import clip_text
from videogen_jax.packing import merge_parts
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import checkpoint, text_conditioning
from videogen_jax.run import model as run_model
from videogen_jax.run.caption_embedder import load_embedder
from videogen_jax.train import diffusion_run, loop
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a red ball", "ein grüner Würfel", "a red ball", "一个红色的球", "word " * 100] * 2
STEPS = 4


def write_sd(folder):
    """The small autoencoder's random weights under diffusers' names."""
    folder.mkdir()
    _, params = random_sd(folder)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path).replace("/kernel", ".weight").replace("/scale", ".weight")
        orders = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
        tensors[name.replace("/", ".")] = np.ascontiguousarray(leaf.transpose(orders[leaf.ndim]))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return str(folder)


@dataclasses.dataclass
class Places:
    packed: str
    encoded: str
    sd: str
    clip: str
    said: str  # by encode


def verb(name, *arguments):
    command = [sys.executable, "-m", f"videogen_jax.{name}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    clips = random_clips((4, 16, 16), len(CAPTIONS))
    packed = write_records(folder / "packed", clips, 4, per_shard=4, captions=CAPTIONS)
    found = Places(
        packed=str(packed),
        encoded=str(folder / "encoded"),
        sd=write_sd(folder / "sd"),
        clip=write_clip(folder / "clip"),
        said="",
    )
    result = encode(found)
    assert not result.returncode, result.stderr[-2000:]
    return dataclasses.replace(found, said=result.stdout)


def encode(places, *more):
    values = {"vae.name": "sd", "vae.path": places.sd, "train.precision": "float32"}
    values |= {"text.encoder": "clip", "text.path": places.clip}
    values |= {"data.frames": 4, "data.height": 16, "data.width": 16}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    folders = [f"--input={places.packed}", f"--output={places.encoded}"]
    return verb("encode", "--config=configs/quickstart.py", *folders, *overrides, *more)


def clip_config(places, steps=STEPS):
    config = tiny_config()
    config.data.update({"path": places.encoded, "height": 16, "width": 16})
    config.vae.update({"name": "sd", "path": places.sd})
    config.text.update({"encoder": "clip", "path": places.clip, "length": 16})
    config.model.update({"cross_attention": "gated", "pooled_text": True})
    config.model.patch_size = (1, 1, 1)
    config.train.steps = steps
    config.learning_rate.final_fraction = 1.0  # the rate of a step is the same in longer runs
    config.checkpoint.every = 2
    config.sample.update({"every": 100, "prompts": (), "clip_x0": False})
    return config


def direct(places, captions):
    """Embeddings without the data set: (tokens up to the end, pooled)."""
    encoder = clip_text.make_text_encoder(places.clip)
    ids, _ = clip_tokenizer.tokenize(captions, LENGTH, encoder.pad_id)
    tokens, mask, pooled = jax.jit(encoder.encode)(encoder.load(), ids)
    return [np.asarray(row)[seen] for row, seen in zip(tokens, mask, strict=True)], pooled


def test_encode_says_how_many_captions_it_cut(places):
    assert "2 captions have more tokens than the text encoder reads, and were cut" in places.said
    report = json.loads((Path(places.encoded) / "encode_report.json").read_text())
    # The first clip is the validation split too.
    assert report["cut_captions"] == 2 and report["settings"]["text"]["length"] == LENGTH


def test_cached_embeddings_are_the_direct_ones(places):
    """To half a unit in the last place of float16, and what XLA rounds otherwise in larger batches."""
    batch = next(
        pipeline.make_clips(
            places.encoded, "train", batch_size=10, frames=4, seed=0, text_length=LENGTH
        )
    )
    captions = [caption.decode() for caption in batch["caption"]]
    assert sorted(captions) == sorted(CAPTIONS)
    tokens, pooled = direct(places, captions)
    assert {len(row) for row in tokens} >= {5, LENGTH}
    for cached, count, row in zip(batch["text_tokens"], batch["text_count"], tokens, strict=True):
        assert count == len(row) and row.std() > 0.1
        np.testing.assert_allclose(cached[:count], row, rtol=2**-11, atol=1e-4)
    np.testing.assert_allclose(batch["text_pooled"], pooled, rtol=2**-11, atol=1e-4)


def test_the_null_text_is_the_empty_caption(places):
    config = clip_config(places)
    texts_of_run = DIFFUSION.open_texts(config, pipeline.open_data(places.encoded))
    null = texts_of_run.null
    tokens, pooled = direct(places, [""])
    assert null["mask"].tolist() == [True] * 2 + [False] * 14
    np.testing.assert_allclose(null["tokens"][:2], tokens[0], rtol=2**-11, atol=1e-4)
    np.testing.assert_allclose(null["pooled"], pooled[0], rtol=2**-11, atol=1e-4)
    blank = text_conditioning.blank_text(config.text)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), null, blank) == {
        "tokens": True,
        "mask": True,
        "pooled": True,
    }


def test_prompts_are_embedded_as_captions_are_stored(places):
    """Whatever else is embedded with them."""
    config = clip_config(places)
    data = pipeline.open_data(places.encoded)
    own = DIFFUSION.open_texts(config, data)
    clips = pipeline.make_clips(
        places.encoded, "train", batch_size=4, frames=4, seed=0, text_length=16
    )
    batch = next(clips)
    read = own.read(batch)
    embedded = own.embed(["another", *(caption.decode() for caption in batch["caption"])])
    for name, rows in read.items():
        assert rows.dtype == embedded[name].dtype
        np.testing.assert_allclose(
            embedded[name][1:].astype("f4"), rows.astype("f4"), rtol=2**-9, atol=1e-3
        )


def test_an_over_long_prompt_is_told(places, caplog):
    own = DIFFUSION.open_texts(clip_config(places), pipeline.open_data(places.encoded))
    logging.get_absl_logger().propagate = True
    with caplog.at_level("WARNING"):
        own.embed(["short", "word " * 100])
    told = [line for line in caplog.messages if line.startswith("The prompt")]
    assert len(told) == 1 and "has 102 tokens, of which the model reads the first 16" in told[0]


def test_dropped_captions_are_all_the_same(places):
    """All dropped: the loss does not see what they were. None dropped: it does."""
    config = clip_config(places)
    own = DIFFUSION.open_texts(config, pipeline.open_data(places.encoded))
    run = make_run(config, None, own.null)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    # At the start neither gates nor modulations let text through.
    params = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    rng = np.random.default_rng(0)
    video = rng.standard_normal((4, *run.model.video_shape)).astype(np.float16)
    batches = [{"video": video, "text": own.embed([caption] * 4)} for caption in CAPTIONS[:2]]
    for dropout, equal in ((1.0, True), (0.0, False)):
        config.text.dropout = dropout
        loss = jax.jit(diffusion_run.make_run_loss(run.model))
        one, other = (float(loss(params, batch, jax.random.key(0))) for batch in batches)
        assert (one == other) is equal


def test_cached_training_has_the_loss_of_uncached(places):
    """Latents and embeddings computed afresh from the pixels and captions of the same steps."""
    config = clip_config(places)
    data = pipeline.open_data(places.encoded)
    own = DIFFUSION.open_texts(config, data)
    run = make_run(config, None, own.null)
    params = jax.jit(run.model.init_params)()
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)  # so that text is let through
    loss = jax.jit(diffusion_run.make_run_loss(run.model))
    autoencoder = run_model.make_latent_space(config).describe(fetch=True)
    encode, weights = jax.jit(autoencoder.encode), autoencoder.load()
    options = {"batch_size": 4, "frames": 4, "seed": 5}
    cached = pipeline.make_clips(data, "train", **options, text_length=own.stored_length)
    uncached = pipeline.make_clips(places.packed, "train", **options)
    for step in range(3):
        stored, clips = next(cached), next(uncached)
        latents = encode(weights, clips["video"].astype(np.float32) / 127.5 - 1)
        latents = (latents - np.float32(data.latents.mean)) / np.float32(data.latents.deviation)
        fresh = own.embed([caption.decode() for caption in clips["caption"]])
        key = jax.random.key(step)
        expected = loss(params, {"video": latents, "text": fresh}, key)
        found = loss(params, {"video": stored["video"], "text": own.read(stored)}, key)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        other = loss(params, {"video": latents, "text": fresh}, jax.random.key(step + 99))
        assert abs(float(other - expected)) > 0.01 * float(expected)


def test_buckets_are_encoded_in_parts_and_trained_on(places, tmp_path):
    """Two shapes of videos and images, as latents with captions: one state, gone on with to the bit."""
    shapes = {"4x16x16": (4, 16, 16), "4x16x24": (4, 16, 24), "1x16x16": (1, 16, 16)}
    clips = {
        name: random_clips(shape, 8, seed) for seed, (name, shape) in enumerate(shapes.items())
    }
    packed = write_buckets(tmp_path / "packed", clips, per_shard=4)
    output = tmp_path / "latents"
    parts = dataclasses.replace(places, packed=str(packed), encoded=str(output))
    first = encode(parts, "--shard=0/2", "--config.augment.jitter=0.1")
    assert not first.returncode and "other parts of" in first.stdout, first.stderr[-2000:]
    assert not (output / "buckets.json").exists()
    second = encode(parts, "--shard=1/2", "--config.augment.jitter=0.1")
    assert not second.returncode and "has all 27 now" in second.stdout, second.stderr[-2000:]
    assert {len(kept) for kept in merge_parts.check(output).values()} == {2}  # splits
    config = clip_config(parts, steps=5)
    config.augment.jitter = 0.1
    loop.train(config, tmp_path / "whole")
    for steps in (3, 5):
        config.train.steps = steps
        loop.train(config, tmp_path / "parts")
    states = [read_state(tmp_path / name, config) for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = clip_config(places)
    config.sample.update({"prompts": CAPTIONS[:2], "every": 4})
    loop.train(config, workdir)
    return workdir


def read_state(workdir, config):
    run = make_run(config)
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return jax.device_get(checkpoint.restore(manager, run.abstract).params)


def test_it_trains_shows_samples_and_goes_on_as_if_nothing_had_been(places, trained, tmp_path):
    assert (trained / "samples" / f"step_{STEPS:08d}.mp4").is_file()
    loop.train(clip_config(places, steps=STEPS + 2), trained)
    loop.train(clip_config(places, steps=STEPS + 2), tmp_path)
    straight = read_state(tmp_path, clip_config(places, STEPS + 2))
    resumed = read_state(trained, clip_config(places, STEPS + 2))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    kernel = straight["caption_encoder"]["hidden"]["kernel"]
    assert kernel.shape == (WIDTH, 12) and straight["text_embed"]["hidden"]["kernel"].shape == (
        POOLED,
        12,
    )


def test_sample_makes_videos(trained, places, tmp_path):
    arguments = [f"--workdir={trained}", f"--output_dir={tmp_path}", "--format=gif"]
    arguments += ["--prompts=a red ball", "--prompts=" + "word " * 100, "--negative_prompt=blurry"]
    result = verb("sample", *arguments)
    assert not result.returncode, result.stderr[-2000:]
    assert len(list(tmp_path.glob("*.gif"))) == 2
    assert "has 102 tokens, of which the model reads the first 16" in result.stderr


# --------------------------------------------------------------------------------- refusals


def refuse(config, message, workdir):
    with pytest.raises(ValueError, match=message):
        loop.train(config, workdir)


def test_a_set_without_embeddings_is_refused(places, tmp_path):
    config = clip_config(places)
    config.data.path = places.packed
    config.vae.update({"name": "identity", "path": ""})
    refuse(config, "text.encoder is 'clip', whose embeddings are stored beside latents", tmp_path)
    data = pipeline.open_data(places.encoded)._replace(texts=None)
    message = "holds no caption embeddings: run videogen_jax.encode .*text.encoder=words"
    with pytest.raises(ValueError, match=message):
        DIFFUSION.open_texts(clip_config(places), data)


def test_embeddings_of_other_weights_are_refused(places, trained, tmp_path):
    other = write_clip(tmp_path / "other", seed=1)
    config = clip_config(places)
    config.text.path = other
    weights = pipeline.open_data(places.encoded).texts.weights[:12]
    message = f"of the weights {weights} of '{places.clip}', but text.path='{other}' has the weigh"
    refuse(config, message, tmp_path / "run")
    # The same weights elsewhere will do.
    config.text.path = write_clip(tmp_path / "same")
    own = DIFFUSION.open_texts(config, pipeline.open_data(places.encoded))
    own.embed(["a"])
    # As they were when the run began, but no longer.
    write_clip(tmp_path / "same", seed=1)
    with pytest.raises(ValueError, match="are not those that embedded the data set's captions, "):
        own.embed(["a"])
    config.text.path = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="There is no '.*nothing'"):
        DIFFUSION.open_texts(config, pipeline.open_data(places.encoded))


def test_a_run_does_not_go_on_with_other_embeddings(places, trained):
    data = pipeline.open_data(places.encoded)
    with checkpoint.open_checkpoints(trained, read_only=True) as manager:
        metadata = checkpoint.restore_metadata(manager, manager.latest_step())
    config = clip_config(places)
    assert text_conditioning.find_difference(DIFFUSION.open_texts(config, data), metadata) is None
    moved = data.texts._replace(weights="another")
    other = DIFFUSION.open_texts(config, data._replace(texts=moved))
    assert "embedded by another text encoder" in text_conditioning.find_difference(other, metadata)
    config.text.encoder = "words"
    words = DIFFUSION.open_texts(config, data)
    assert text_conditioning.find_difference(words, metadata) == "the captions have other words"
    text = clip_config(places).text
    restored = text_conditioning.restore_texts(text, metadata)
    assert restored.metadata == {name: metadata[name] for name in ("vocabulary", "text")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "bert"}, "Unknown text.encoder 'bert': choose one of words, clip, t5, qwen3"),
        ({"length": 78}, "text.length is 78, but the text encoder reads 77 tokens: set --config"),
    ],
)
def test_what_means_nothing_is_refused(places, change, message, tmp_path):
    config = clip_config(places)
    config.text.update(change)
    refuse(config, message, tmp_path)


def test_an_encoder_of_other_ids_is_refused(tmp_path):
    path = write_clip(tmp_path / "small", vocabulary=300)
    with pytest.raises(ValueError, match="reads 300 ids, but CLIP's tokenizer has 49408"):
        load_embedder(get_config(text={"encoder": "clip", "path": path}).text, "float32")


def test_without_weights_the_shapes_are_those_of_the_published_model(places):
    """As `plan` needs them: no network, no file."""
    config = clip_config(places)
    config.text.update({"path": "openai/clip-vit-large-patch14", "length": 77})
    blank = text_conditioning.blank_text(config.text)
    assert blank["tokens"].shape == (77, 768) and blank["pooled"].shape == (768,)
    config.text.path = "openai/clip-vit-base-patch32"
    assert make_run(config).model.null_text["tokens"].shape == (77, 512)
