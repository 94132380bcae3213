"""The types that the autoencoder of a run computes in."""

import types

import pytest

from tests.tiny import tiny_config
from videogen_jax import encode
from videogen_jax.data import bucketed_data
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.run import caption_embedder, latent_space
from videogen_jax.run.model import make_latent_space


@pytest.mark.parametrize(
    ("training", "encoding", "decodes_in"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "bfloat16"),  # whose range Stable Diffusion's needs
        ("float32", "bfloat16", "float32"),
    ],
)
def test_clips_are_encoded_in_a_type_of_their_own(training, encoding, decodes_in, monkeypatch):
    config = tiny_config()
    config.vae.update({"name": "taef2", "path": "weights", "encode_precision": encoding})
    config.train.precision = training
    space, seen = make_latent_space(config), []

    class Stop(Exception):
        pass

    def stop(name, path, *, dtype, fetch):
        seen.append(dtype)
        raise Stop

    monkeypatch.setattr(latent_space, "_make_autoencoder", stop)
    info = LatentInfo("taef2", "", "float16", [1, 1, 1], False, [0.0], [1.0])
    for call in (space.encoding().describe, lambda: space.make_encode(info), space.describe):
        with pytest.raises(Stop):
            call()
    assert seen == [encoding, encoding, decodes_in]


def test_clips_are_encoded_in_float32_by_default():
    config = tiny_config()
    config.train.precision = "bfloat16"
    assert make_latent_space(config).encoding().dtype == "float32"


def test_encode_computes_the_autoencoder_in_float32_and_captions_as_in_training(monkeypatch):
    config = tiny_config()
    config.vae.update({"name": "taef2", "path": "weights"})
    config.text.encoder = "clip"
    config.train.precision = "bfloat16"
    seen = []

    class Stop(Exception):
        pass

    def describe(name, path, *, dtype, fetch):
        seen.append(dtype)
        return types.SimpleNamespace(load=dict)

    def load_embedder(path, dtype):
        seen.append(dtype)
        raise Stop

    values = types.SimpleNamespace(config=config, input="clips", output="latents", shard="0/1")
    monkeypatch.setattr(encode.flags, "FLAGS", values)
    monkeypatch.setattr(bucketed_data, "open_buckets", lambda folder: {})
    monkeypatch.setattr(latent_space, "_make_autoencoder", describe)
    monkeypatch.setattr(caption_embedder, "load_embedder", load_embedder)
    with pytest.raises(Stop):
        encode.main([])
    assert seen == ["float32", "bfloat16"]
