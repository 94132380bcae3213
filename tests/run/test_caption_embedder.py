"""Captions embedded in batches of few lengths: what is computed, and that the batches do not matter."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.data.test_pretrained_tokenizer import TEXTS, train_sentencepiece, write_qwen
from tests.models import test_qwen3_text, test_t5_text
from tests.models.text_encoders import POOLED, WIDTH, write_clip, write_t5
from videogen_jax.config import get_config
from videogen_jax.data import latent_records
from videogen_jax.models.text_encoder import make_text_encoder
from videogen_jax.run import caption_embedder
from videogen_jax.run.text_tokenizer import open_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_batches")]

CAPTIONS = ["a red ball", "", "word " * 30, "two " * 31, "word two " * 40, "three " * 600]
COUNTS = [4, 1, 31, 32, 81, 601]  # with the end of text


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"), parts=2)


def load(precision="float32", **text):
    return caption_embedder.load_embedder(get_config(text=text).text, precision)


@pytest.fixture(scope="module")
def embedder(t5):
    """Compiled once for all tests that compare with it."""
    return load(encoder="t5", path=t5)


def direct(path, captions):
    """Embeddings of all captions in one batch of 512 tokens."""
    encoder = make_text_encoder("t5", path)
    rows, _ = open_tokenizer("t5", encoder)(captions)
    ids = np.full((len(rows), encoder.length), encoder.pad_id, np.int32)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found
    tokens, mask, pooled = jax.jit(encoder.encode)(encoder.load(), ids)
    return [np.asarray(row)[seen] for row, seen in zip(tokens, mask, strict=True)], pooled


@pytest.mark.parametrize("kind", ["t5", "umt5", "qwen3"])
def test_captions_embed_as_transformers_embeds_them(tmp_path, kind):
    """Its tokenizer and its network from the same files: short captions, empty ones, and those cut at 512 tokens."""
    transformers = pytest.importorskip("transformers")
    import torch

    captions = ["a red ball rolls", *TEXTS[:12], "a red ball, 红色的球, " * 90]
    if kind == "qwen3":
        write_qwen(tmp_path)
        network = test_qwen3_text.save_reference(tmp_path, vocab_size=640, eos_token_id=602)
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(str(tmp_path))
        captions = [caption for caption in captions if tokenizer([caption])["input_ids"][0]]
        encode = network.get_decoder()
    else:
        train_sentencepiece(tmp_path / "spm", byte_fallback=kind == "umt5")
        tokenizer = transformers.T5Tokenizer.from_pretrained(str(tmp_path / "spm"))
        network = test_t5_text.save_reference(tmp_path, kind, vocab_size=1000)
        tokenizer.save_pretrained(str(tmp_path))
        captions.append("")
        encode = network.get_encoder()
    found = load(encoder="qwen3" if kind == "qwen3" else "t5", path=str(tmp_path)).run(captions)
    options = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "pt"}
    inputs = tokenizer(captions, padding_side="right", **options)
    with torch.no_grad():
        states = encode(**{n: inputs[n] for n in ("input_ids", "attention_mask")})
    expected, mask = states.last_hidden_state.numpy(), inputs["attention_mask"].numpy() > 0
    assert mask.sum(1).max() == 512 and mask.sum(1).min() < 10 and found.counts.max() > 512
    for tokens, pooled, row, seen in zip(found.tokens, found.pooled, expected, mask, strict=True):
        np.testing.assert_allclose(tokens, row[seen], atol=1e-4)
        np.testing.assert_allclose(pooled, row[seen].mean(0), atol=1e-4)


def test_lengths_are_few():
    assert caption_embedder.padded_lengths(512) == [32, 64, 128, 256, 512]
    assert caption_embedder.padded_lengths(77) == [32, 64, 77]
    assert caption_embedder.padded_lengths(32) == [32]
    assert caption_embedder.padded_lengths(16) == [16]


def test_long_captions_run_in_smaller_batches(monkeypatch):
    monkeypatch.setattr(caption_embedder, "CAPTIONS_AT_A_TIME", 32)
    monkeypatch.setattr(caption_embedder, "TOKENS_AT_A_TIME", 4096)
    counts = {32: 32, 128: 32, 256: 16, 512: 8, 8192: 1}
    assert {length: caption_embedder.count_rows(length) for length in counts} == counts


def test_embeddings_do_not_depend_on_the_batch(t5, embedder):
    """Each caption alone, all together in both orders, and all in one batch of 512 tokens."""
    run = embedder.run
    tokens, pooled = direct(t5, CAPTIONS)
    orders = [[i] for i in range(len(CAPTIONS))] + [list(range(len(CAPTIONS)))]
    for order in (*orders, orders[-1][::-1]):
        found = run([CAPTIONS[i] for i in order])
        assert found.counts.tolist() == [COUNTS[i] for i in order]
        for place, i in enumerate(order):
            assert found.tokens[place].shape == (min(COUNTS[i], 512), WIDTH)
            np.testing.assert_allclose(found.tokens[place], tokens[i], atol=2e-5)
            np.testing.assert_allclose(found.pooled[place], pooled[i], atol=2e-5)
    assert np.std(tokens[0]) > 0.3


def test_short_captions_run_in_short_batches(t5):
    """And long ones in batches of fewer captions; no other shapes are compiled."""
    shapes = []
    encoder = make_text_encoder("t5", t5)

    def record(params, ids):
        shapes.append(ids.shape)  # while it is traced
        return encoder.encode(params, ids)

    _, run = caption_embedder._load("t5", encoder._replace(encode=record))
    captions = [*CAPTIONS, *("one " * n for n in range(0, 400, 7))]
    found = run(captions)
    devices = len(jax.local_devices())
    per_device = {32: 4, 64: 4, 128: 4, 256: 2, 512: 1}
    assert set(shapes) == {(rows * devices, length) for length, rows in per_device.items()}
    assert len(shapes) == len(per_device)
    assert [len(row) for row in found.tokens] == np.minimum(found.counts, 512).tolist()
    tokens, _ = direct(t5, captions[-2:])
    np.testing.assert_allclose(found.tokens[-1], tokens[-1], atol=2e-5)


def test_the_pooled_vector_may_be_of_another_encoder(t5, embedder, tmp_path):
    clip = write_clip(tmp_path / "clip")
    both = load(encoder="t5", path=t5, pooled_encoder="clip", pooled_path=clip)
    one, other = embedder, load(encoder="clip", path=clip)
    captions = [CAPTIONS[0], CAPTIONS[-1]]  # the second is longer than either encoder reads
    found = both.run(captions)
    for row, expected in zip(found.tokens, one.run(captions).tokens, strict=True):
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(found.pooled, other.run(captions).pooled)
    assert found.counts.tolist() == [COUNTS[0], COUNTS[-1]]
    assert found.pooled.shape == (2, POOLED)
    assert (both.weights, both.pooled_weights) == (one.weights, other.weights)
    assert both.pooled_width == POOLED and one.pooled_width == WIDTH
    config = get_config(
        text={"encoder": "t5", "path": t5, "pooled_encoder": "clip", "pooled_path": clip}
    )
    info = caption_embedder.describe_embeddings(both, config.text, "bfloat16")
    assert (info.pooled_encoder, info.pooled_path) == ("clip", clip)
    assert (np.shape(info.null_tokens), np.shape(info.null_pooled)) == ((1, WIDTH), (POOLED,))
    assert info.length == 512 and info.pooled_weights == other.weights


def test_devices_that_share_the_parameters_give_the_same(t5, embedder, monkeypatch):
    captions = CAPTIONS[:5]
    whole = embedder.run(captions)
    monkeypatch.setattr(caption_embedder, "LARGEST_REPLICATED", 0)
    split = load(encoder="t5", path=t5).run(captions)
    for one, other in zip(
        (*whole.tokens, whole.pooled), (*split.tokens, split.pooled), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_bfloat16_has_its_own_hash(t5, embedder):
    half = load("bfloat16", encoder="t5", path=t5)
    exact = embedder
    assert half.weights != exact.weights and half.precision == "bfloat16"
    one, other = half.run(CAPTIONS[:2]), exact.run(CAPTIONS[:2])
    assert 0 < np.abs(one.tokens[0] - other.tokens[0]).max() < 0.3


def test_a_pooled_encoder_without_weights_is_refused(t5):
    with pytest.raises(ValueError, match="text.pooled_path is empty: set it to the weights of"):
        load(encoder="t5", path=t5, pooled_encoder="clip")


def test_damaged_weights_are_refused(tmp_path):
    path = write_t5(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="gives numbers that are not finite: download its weights"):
        load(encoder="t5", path=path).run(["a"])


@pytest.mark.parametrize("dtype", latent_records.DTYPES)
def test_numbers_beyond_float16_are_clipped(dtype):
    """Also where they are stored in bfloat16, as batches are float16."""
    values = np.array([1e6, -1e6, 65_281.0, 60_000.0, 1.0], np.float32)
    stored = latent_records.store_embeddings(values, dtype)
    batch = stored.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(batch, [65280, -65280, 65280, 60_000, 1], rtol=2**-8)
