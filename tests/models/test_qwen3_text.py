"""Qwen3 as a text encoder against transformers with the same random weights, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.test_t5_text import VOCABULARY, draw_ids, encode, randomize, round_weights
from tests.models.text_encoders import save_parts
from videogen_jax.models import qwen3_text, text_encoder
from videogen_jax.models.hub import FILE
from videogen_jax.models.weights import WeightsError

pytestmark = pytest.mark.slow

LAYERS = 3
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 12, "rms_norm_eps": 1e-5, "eos_token_id": 2}


def save_reference(folder, network="Qwen3ForCausalLM", **changes):
    """A network of transformers with random weights, also saved to a folder."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(**SIZES | changes)
    network = randomize(getattr(transformers, network)(config))
    network.save_pretrained(folder)
    return network


def expect(network, ids):
    """transformers' hidden states, of all layers."""
    import torch

    arguments = {"input_ids": torch.from_numpy(np.maximum(ids, 0)).long()}
    arguments |= {"attention_mask": torch.from_numpy((ids >= 0).astype(np.int64))}
    with torch.no_grad():
        found = network(**arguments, output_hidden_states=True).hidden_states
    return [states.numpy() for states in found]


def check(path, layer, states, ids):
    encoder = qwen3_text.make_text_encoder(str(path), layer)
    tokens, mask, pooled = encode(encoder, encoder.load(), ids)
    assert states.std() > 0.3
    np.testing.assert_array_equal(mask, ids >= 0)
    np.testing.assert_allclose(tokens[mask], states[mask], atol=1e-4)
    means = [row[seen].mean(0) for row, seen in zip(states, mask, strict=True)]
    np.testing.assert_allclose(pooled, means, atol=1e-4)
    assert tokens.dtype == pooled.dtype == np.float32
    return encoder


def test_each_layer_equals_transformers(tmp_path):
    """With padding behind the captions; 512 tokens, more than were asked for, are cut by the tokenizer."""
    ids = draw_ids()
    states = expect(save_reference(tmp_path), ids)
    assert len(states) == LAYERS + 1
    for layer in (*range(LAYERS + 1), -1, -2):
        encoder = check(tmp_path, layer, states[layer], ids)
    assert (encoder.width, encoder.length, encoder.eos_id) == (32, 512, 2)
    check(
        tmp_path, -1, expect(save_reference(tmp_path), draw_ids((512, 3)))[-1], draw_ids((512, 3))
    )


def test_other_rates_heads_and_layouts_equal_transformers(tmp_path):
    """As old and new config.json name the rate of rotation; a bare model; several parts; bfloat16."""
    ids = draw_ids((4, 40))
    rope = {"rope_type": "default", "rope_theta": 500.0}
    network = save_reference(tmp_path, "Qwen3Model", rope_parameters=rope, num_key_value_heads=1)
    tensors = load_file(tmp_path / FILE)
    assert "embed_tokens.weight" in tensors
    states = expect(network, ids)
    check(tmp_path, -1, states[-1], ids)

    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_scaling": None, "eos_token_id": [2, 5]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / FILE).unlink()
    save_parts(tensors, tmp_path, 2)
    assert check(tmp_path, -2, states[-2], ids).eos_id == 2
    halves = {name: array.astype(jnp.bfloat16) for name, array in tensors.items()}
    save_parts(halves, tmp_path, 2)
    check(tmp_path, -1, expect(round_weights(network), ids)[-1], ids)


def test_layers_behind_the_chosen_one_are_not_read(tmp_path):
    """They need not even be there; those before it must."""
    states = expect(save_reference(tmp_path), draw_ids())
    tensors = load_file(tmp_path / FILE)
    encoder = qwen3_text.make_text_encoder(str(tmp_path), 1)
    assert encoder.abstract_params["blocks"]["mlp.up_proj"]["kernel"].shape == (1, 32, 48)
    assert "norm" not in encoder.abstract_params
    kept = {name: array for name, array in tensors.items() if ".layers.2." not in name}
    save_file(kept, tmp_path / FILE)
    check(tmp_path, 1, states[1], draw_ids())
    with pytest.raises(WeightsError, match=r"missing \(model.layers.2.input_layernorm.weight"):
        qwen3_text.make_text_encoder(str(tmp_path)).load()


def test_bfloat16_keeps_its_weights_and_is_close(tmp_path):
    save_reference(tmp_path)
    exact, half = (
        qwen3_text.make_text_encoder(str(tmp_path), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    params, ids = half.load(), draw_ids()
    assert params["blocks"]["mlp.up_proj"]["kernel"].dtype == jnp.bfloat16
    one, other = encode(half, params, ids), encode(exact, exact.load(), ids)
    difference = np.abs(one[0] - other[0])[ids >= 0]
    assert one[0].dtype == np.float32 and 0 < difference.max() < 0.3 * other[0].std()


def test_published_sizes_are_known_offline():
    """Parameters in millions without the output layer, which shares the embeddings."""
    for name, count in {"Qwen/Qwen3-0.6B": 596.0, "Qwen/Qwen3-4B": 4022.5}.items():
        encoder = text_encoder.make_text_encoder("qwen3", name, fetch=False)
        found = sum(leaf.size for leaf in jax.tree.leaves(encoder.abstract_params))
        assert round(found / 1e6, 1) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "is the config of 'qwen2': give the folder of a Qwen3"),
        ({"attention_bias": True}, "attention_bias is True: only False is supported"),
        ({"use_sliding_window": True}, "use_sliding_window is True: only False is supported"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling is .*: only None is supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn': only 'default'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value"),
    ],
)
def test_other_networks_are_refused(tmp_path, changes, message):
    given = {"model_type": "qwen3"} | SIZES | changes
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(WeightsError, match=message):
        qwen3_text.make_text_encoder(str(tmp_path))


def test_layers_that_are_not_there_are_refused(tmp_path):
    given = {"model_type": "qwen3"} | SIZES
    (tmp_path / "config.json").write_text(json.dumps(given))
    for layer in (LAYERS + 1, -LAYERS - 2):
        with pytest.raises(ValueError, match="has 3 layers: give a number from -4 to 3"):
            qwen3_text.make_text_encoder(str(tmp_path), layer)
    with pytest.raises(ValueError, match="text.layer is 2, which t5 does not have: set"):
        text_encoder.make_text_encoder("t5", "", 2)
