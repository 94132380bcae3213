"""The encoders of T5 v1.1 and umT5 against transformers with the same random weights, and what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.test_hub import hub  # noqa: F401
from tests.models.text_encoders import save_parts
from videogen_jax.models import t5_text
from videogen_jax.models.hub import FILE
from videogen_jax.models.weights import WeightsError

pytestmark = pytest.mark.slow

VOCABULARY = 300
SIZES = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3}
SIZES |= {"num_heads": 4, "feed_forward_proj": "gated-gelu"}
KINDS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}


def randomize(network, seed=0):
    """Weights at which every part matters."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                large = any(part in name for part in ("embed", "shared", "bias"))
                parameter.copy_(torch.randn_like(parameter) * (0.5 if large else 0.15))
    return network.eval()


def round_weights(network):
    """Rounds them to bfloat16, but not what is computed, such as rates of rotation."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return network


def save_reference(folder, kind="t5", network="EncoderModel", **changes):
    """A network of transformers with random weights, also saved to a folder."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{KINDS[kind]}Config")(**SIZES | changes)
    network = randomize(getattr(transformers, f"{KINDS[kind]}{network}")(config))
    network.save_pretrained(folder)
    return network


def draw_ids(lengths=(1, 2, 60, 200, 200), seed=1):
    """Captions up to the longest, which is cut off there; padding is -1; ids of padding and end occur among words."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), -1, np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(0, VOCABULARY, length)
    return ids


def encode(encoder, params, ids):
    return [np.asarray(array) for array in jax.jit(encoder.encode)(params, ids)]


def expect(network, ids):
    """transformers' states of the tokens, and their means."""
    import torch

    seen = ids >= 0
    arguments = {"input_ids": torch.from_numpy(np.maximum(ids, 0)).long()}
    arguments |= {"attention_mask": torch.from_numpy(seen.astype(np.int64))}
    with torch.no_grad():
        states = network.get_encoder()(**arguments).last_hidden_state.numpy()
    means = np.stack([row[mask].mean(0) for row, mask in zip(states, seen, strict=True)])
    return states, means


def check(path, network, ids, **options):
    encoder = t5_text.make_text_encoder(str(path), **options)
    tokens, mask, pooled = encode(encoder, encoder.load(), ids)
    states, means = expect(network, ids)
    assert states.std() > 0.5
    np.testing.assert_array_equal(mask, ids >= 0)
    np.testing.assert_allclose(tokens[mask], states[mask], atol=1e-4)
    np.testing.assert_allclose(pooled, means, atol=1e-4)
    assert tokens.dtype == pooled.dtype == np.float32
    return encoder


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(tmp_path, kind):
    """With padding, captions of one token, and positions beyond the largest distance (128)."""
    encoder = check(tmp_path, save_reference(tmp_path, kind), draw_ids())
    assert (encoder.width, encoder.pooled_width, encoder.length) == (32, 32, 512)
    assert (encoder.vocabulary_size, encoder.eos_id) == (VOCABULARY, 1)


def test_512_tokens_and_other_buckets_equal_transformers(tmp_path):
    sizes = {"relative_attention_num_buckets": 20, "relative_attention_max_distance": 50}
    sizes |= {"layer_norm_epsilon": 1e-2, "num_layers": 1}
    check(tmp_path, save_reference(tmp_path, **sizes), draw_ids((512, 3)))


def test_position_buckets_equal_transformers():
    """All pairs of 512 positions; each bucket of both halves occurs."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    place = torch.arange(512)
    expected = modeling.T5Attention._relative_position_bucket(place[None] - place[:, None])
    found = t5_text.position_buckets(512, 32, 128)
    np.testing.assert_array_equal(found, expected.numpy())
    assert set(found.ravel()) == set(range(32)) - {16}  # no distance 0 behind the query


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_decoders_are_passed_by_and_parts_are_joined(tmp_path, kind):
    """Files of the whole model, in several parts with an index, in bfloat16, and with the embeddings' other name."""
    network = save_reference(tmp_path, kind, "ForConditionalGeneration")
    tensors = load_file(tmp_path / FILE)
    assert any(name.startswith("decoder.") for name in tensors)
    tensors["lm_head.weight"] = tensors["shared.weight"] + 1  # which T5 v1.1 does not share
    save_file(tensors, tmp_path / FILE)
    check(tmp_path, network, draw_ids())
    check(tmp_path / FILE, network, draw_ids())

    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    (tmp_path / FILE).unlink()
    save_parts(tensors, tmp_path, 3)
    check(tmp_path, network, draw_ids())

    halves = {name: array.astype(jnp.bfloat16) for name, array in tensors.items()}
    save_parts(halves, tmp_path, 3)
    check(tmp_path, round_weights(network), draw_ids())


def test_bfloat16_keeps_its_weights_and_is_close(tmp_path):
    """Matrices stay in bfloat16, so that they need half the memory; norms and results are float32."""
    save_reference(tmp_path)
    exact, half = (
        t5_text.make_text_encoder(str(tmp_path), dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    params = half.load()
    for found, wanted in zip(
        jax.tree.leaves(params), jax.tree.leaves(half.abstract_params), strict=True
    ):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert params["shared"]["embedding"].dtype == jnp.bfloat16
    assert params["blocks"]["layer.1.DenseReluDense.wo"]["kernel"].dtype == jnp.bfloat16
    assert params["final_layer_norm"]["scale"].dtype == np.float32
    ids = draw_ids()
    one, other = (encode(half, params, ids), encode(exact, exact.load(), ids))
    for i in (0, 2):
        assert one[i].dtype == np.float32
        seen = ids >= 0 if i == 0 else slice(None)
        assert 0 < np.abs(one[i] - other[i])[seen].max() < 0.3 * other[i].std()


def test_activations_beyond_float16_are_exact(tmp_path):
    """The residual stream of large T5s exceeds 65,504; the norm behind it brings it back."""
    network = save_reference(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"] *= 1e6
    save_file(tensors, tmp_path / FILE)
    import torch

    with torch.no_grad():
        network.encoder.block[1].layer[1].DenseReluDense.wo.weight.mul_(1e6)
    check(tmp_path, network, draw_ids())


def test_padding_changes_no_token(tmp_path):
    save_reference(tmp_path)
    encoder = t5_text.make_text_encoder(str(tmp_path))
    params = encoder.load()
    short = draw_ids((1, 7, 20))
    long = np.pad(short, ((0, 0), (0, 44)), constant_values=-1)
    one, other = encode(encoder, params, short), encode(encoder, params, long)
    seen = short >= 0
    np.testing.assert_allclose(one[0][seen], other[0][:, :20][seen], atol=1e-5)
    np.testing.assert_allclose(one[2], other[2], atol=1e-5)


def test_published_sizes_are_known_offline(hub):  # noqa: F811
    """Parameters in millions, as the models' names and cards say them."""
    counts = {"google/t5-v1_1-small": 35.3, "google/t5-v1_1-base": 109.6}
    counts |= {
        "google/t5-v1_1-xxl": 4762.3,
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder": 5680.9,
    }
    for name, count in counts.items():
        encoder = t5_text.make_text_encoder(name, fetch=False)
        found = sum(leaf.size for leaf in jax.tree.leaves(encoder.abstract_params))
        assert round(found / 1e6, 1) == count
    assert not hub.requests


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "is the config of 'clip': give the folder of an encoder of T5 v1"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu', of the original T5: give"),
        ({"feed_forward_proj": None}, "feed_forward_proj is null, which should be a text"),
        ({"num_heads": 0}, "num_heads is 0, which should be a positive whole number"),
        (None, r"has no config\.json beside its weights: put that of the model there"),
    ],
)
def test_other_networks_are_refused(tmp_path, changes, message):
    given = {"model_type": "t5"} | SIZES
    if changes is not None:
        (tmp_path / "config.json").write_text(json.dumps(given | changes))
    with pytest.raises(WeightsError, match=message):
        t5_text.make_text_encoder(str(tmp_path))


def test_weights_that_do_not_fit_are_listed(tmp_path):
    save_reference(tmp_path, "umt5")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    message = (
        r"do not fit the T5 encoder that config\.json describes: 2 unexpected \(encoder\.block\.1\."
    )
    with pytest.raises(WeightsError, match=message):
        t5_text.make_text_encoder(str(tmp_path)).load()
    (tmp_path / FILE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pytorch_model.bin is a pickle, which can execute code"):
        t5_text.make_text_encoder(str(tmp_path)).load()
    with pytest.raises(ValueError, match="The text encoder has no weights: set text.path"):
        t5_text.make_text_encoder("").load()
    with pytest.raises(ValueError, match="Unknown dtype 'float16' of a text encoder"):
        t5_text.make_text_encoder(str(tmp_path), dtype="float16")


def test_parts_on_the_hub_are_all_downloaded(hub, tmp_path, monkeypatch):  # noqa: F811
    """And the first error stands where there is neither one file nor an index."""
    from videogen_jax.models.hub import find_weights

    with pytest.raises(FileNotFoundError, match=re.escape("owner/none/text_encoder/model.safeten")):
        find_weights("owner/none/text_encoder")
    cache = tmp_path / "cache"
    cache.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = cache / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}))

    def download(repository, file):
        hub.requests.append(file)
        if file == "text_encoder/model.safetensors":
            raise FileNotFoundError("no such file")
        return str(cache / file.removeprefix("text_encoder/"))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    hub.requests.clear()
    assert find_weights("owner/known/text_encoder") == cache
    assert hub.requests[2:] == [f"text_encoder/{name}" for name in names]
