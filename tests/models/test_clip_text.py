"""CLIP's text encoder against transformers with the same weights, and errors for weights that do not fit."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.test_hub import hub  # noqa: F401
from videogen_jax.data import clip_tokenizer
from videogen_jax.models import clip_text
from videogen_jax.models.weights import WeightsError

pytestmark = pytest.mark.slow

VOCABULARY = 300
BEGIN, END = 298, 299
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 24,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}


def save_reference(folder, kind="CLIPTextModel", seed=0, **changes):
    """A network of transformers with random weights, also saved to a folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(**SIZES | changes)
    if kind == "CLIPModel":
        vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        parts = {"text_config": config.to_dict(), "vision_config": vision}
        config = transformers.CLIPConfig(**parts, projection_dim=config.projection_dim)
    network = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
            elif parameter.ndim:
                parameter.copy_(torch.randn_like(parameter) * (0.5 if "embed" in name else 0.2))
    network.save_pretrained(folder)
    return network


def draw_ids(pad, length=77, seed=1):
    """Captions that are empty, short, full and truncated: bos, words, eos, padding."""
    rng = np.random.default_rng(seed)
    ids = np.full((5, length), pad, np.int32)
    for row, words in zip(ids, (0, 1, length // 3, length - 3, length - 2), strict=True):
        row[: words + 2] = [BEGIN, *rng.integers(3, BEGIN, words), END]
    return ids


def encode(encoder, params, ids):
    return [np.asarray(array) for array in jax.jit(encoder.encode)(params, ids)]


def check(folder, network, ids, atol=1e-4):
    import torch

    encoder = clip_text.make_text_encoder(str(folder))
    tokens, mask, pooled = encode(encoder, encoder.load(), ids)
    with torch.no_grad():
        arguments = {"input_ids": torch.from_numpy(ids).long()}
        if type(network).__name__ == "CLIPModel":
            expected = network.text_model(**arguments).last_hidden_state
            vector = network.get_text_features(**arguments).pooler_output
        else:
            out = network(**arguments)
            expected = out.last_hidden_state
            vector = out.text_embeds if "text_embeds" in out else out.pooler_output
    assert expected.std() > 0.3 and vector.std() > 0.1
    np.testing.assert_allclose(tokens, expected.numpy(), atol=atol)
    np.testing.assert_allclose(pooled, vector.numpy(), atol=atol)
    assert tokens.shape == (*ids.shape, encoder.width) and tokens.dtype == np.float32
    assert pooled.shape == (len(ids), encoder.pooled_width) and pooled.dtype == np.float32
    ends = [row.tolist().index(END) for row in ids]
    np.testing.assert_array_equal(mask, np.arange(ids.shape[1]) <= np.array(ends)[:, None])
    return encoder


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [END, 2], ids=["eos", "legacy"])
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"])
def test_equals_transformers(tmp_path, kind, eos, activation):
    """With padding by the end-of-text token and by 0; id 2 occurs among the words."""
    network = save_reference(tmp_path, kind, hidden_act=activation, eos_token_id=eos)
    for pad in (END, 0):
        ids = draw_ids(pad)
        ids[2, 4] = 2
        encoder = check(tmp_path, network, ids)
    assert encoder.pooled_width == (32 if kind == "CLIPTextModel" else 24)
    assert encoder.length == 77 and encoder.pad_id == (0 if activation == "gelu" else END)


def test_the_first_end_of_text_counts(tmp_path):
    """A caption may contain the end-of-text token."""
    network = save_reference(tmp_path)
    ids = draw_ids(0)
    ids[3, 10] = END
    check(tmp_path, network, ids)


def test_captions_truncated_at_77_tokens_equal_transformers(tmp_path):
    """Ids of real captions, one of 200 words, with the published vocabulary."""
    import torch

    ends = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    network = save_reference(tmp_path, "CLIPTextModelWithProjection", **ends)
    encoder = clip_text.make_text_encoder(str(tmp_path))
    texts = ["", "a photo of a cat", "a red ball rolls down the street, " * 20]
    ids, counts = clip_tokenizer.tokenize(texts, encoder.length, encoder.pad_id)
    assert counts[2] > 77 and ids[2, -1] == 49407 and encoder.pad_id == 49407
    tokens, mask, pooled = encode(encoder, encoder.load(), ids)
    with torch.no_grad():
        out = network(torch.from_numpy(ids).long())
    np.testing.assert_allclose(tokens, out.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(pooled, out.text_embeds.numpy(), atol=1e-4)
    assert mask.sum(axis=1).tolist() == [2, 7, 77]


def test_padding_does_not_affect_unmasked_tokens(tmp_path):
    save_reference(tmp_path)
    encoder = clip_text.make_text_encoder(str(tmp_path))
    params = encoder.load()
    whole = encode(encoder, params, draw_ids(END))
    other = encode(encoder, params, draw_ids(0))
    counts = whole[1][..., None]
    np.testing.assert_allclose(whole[0] * counts, other[0] * counts, atol=1e-6)
    np.testing.assert_allclose(whole[2], other[2], atol=1e-6)
    assert np.abs(whole[0] - other[0]).max() > 0.1  # padding affects masked tokens
    short = encode(encoder, params, draw_ids(0)[:3, :30])
    np.testing.assert_allclose(short[0], other[0][:3, :30], atol=1e-5)


def test_other_sizes_and_few_positions(tmp_path):
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"max_position_embeddings": 16, "layer_norm_eps": 1e-2}
    network = save_reference(tmp_path, **sizes)
    encoder = check(tmp_path, network, draw_ids(0, 16))
    assert encoder.length == 16 and encoder.width == 24
    with pytest.raises(ValueError, match="17 tokens exceed the maximum of this text encoder, 16"):
        encoder.encode(encoder.load(), np.zeros((1, 17), np.int32))


def test_old_files_load(tmp_path):
    """With a prefix, a table of position ids, nested and duplicate fields in config.json, and float16."""
    network = save_reference(tmp_path)
    tensors = load_file(tmp_path / clip_text.FILE)
    assert not any(name.startswith("text_model.") for name in tensors)
    tensors = {f"text_model.{name}": array for name, array in tensors.items()}
    positions = np.arange(77, dtype=np.int64)[None]
    save_file(
        tensors | {"text_model.embeddings.position_ids": positions}, tmp_path / clip_text.FILE
    )
    check(tmp_path, network, draw_ids(0))
    check(tmp_path / clip_text.FILE, network, draw_ids(0))

    given = json.loads((tmp_path / clip_text.CONFIG_FILE).read_text())
    wrong = given | {"num_attention_heads": 2, "hidden_act": "gelu"}
    nested = {"model_type": "clip", "text_config": wrong, "text_config_dict": given}
    nested |= {"projection_dim": 7, "vision_config": {}}
    (tmp_path / clip_text.CONFIG_FILE).write_text(json.dumps(nested))
    weight = np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32)
    save_file(tensors | {"text_projection.weight": weight}, tmp_path / clip_text.FILE)
    encoder = clip_text.make_text_encoder(str(tmp_path))
    with_projection = encode(encoder, encoder.load(), draw_ids(0))
    (tmp_path / clip_text.CONFIG_FILE).write_text(json.dumps(given))
    save_file(tensors, tmp_path / clip_text.FILE)
    encoder = clip_text.make_text_encoder(str(tmp_path))
    without = encode(encoder, encoder.load(), draw_ids(0))
    np.testing.assert_array_equal(with_projection[0], without[0])
    np.testing.assert_allclose(with_projection[2], without[2] @ weight.T, atol=1e-4)

    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    save_file(halves, tmp_path / clip_text.FILE)
    network.half().float()  # round to float16
    check(tmp_path, network, draw_ids(0))


def test_a_folder_of_sharded_weights_loads(tmp_path):
    network = save_reference(tmp_path)
    tensors = load_file(tmp_path / clip_text.FILE)
    (tmp_path / clip_text.FILE).unlink()
    for part in (0, 1):
        chosen = dict(list(tensors.items())[part::2])
        save_file(chosen, tmp_path / f"model-0000{part + 1}-of-00002.safetensors")
    check(tmp_path, network, draw_ids(0))


def test_bfloat16_is_close_and_results_are_float32(tmp_path):
    save_reference(tmp_path)
    encoder = clip_text.make_text_encoder(str(tmp_path))
    half = clip_text.make_text_encoder(str(tmp_path), dtype="bfloat16")
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, half.abstract_params))
    params = encoder.load()
    exact, rough = (encode(model, params, draw_ids(0)) for model in (encoder, half))
    for i in (0, 2):
        assert rough[i].dtype == np.float32
        assert 0 < np.abs(rough[i] - exact[i]).max() < 0.2 * exact[i].std()


def test_published_sizes_are_known_offline(hub):  # noqa: F811
    """63.1 and 123.1 million parameters of CLIP's text transformers, and their projections."""
    counts = {"openai/clip-vit-base-patch32": 63_165_952 + 512**2}
    counts |= {"openai/clip-vit-large-patch14": 123_060_480 + 768**2}
    for name, count in counts.items():
        encoder = clip_text.make_text_encoder(name, fetch=False)
        leaves = jax.tree.leaves(encoder.abstract_params)
        assert sum(leaf.size for leaf in leaves) == count
        assert encoder.vocabulary_size == clip_tokenizer.VOCABULARY_SIZE
        assert encoder.pad_id == clip_tokenizer.END_ID
    assert clip_text.make_text_encoder("owner/other", fetch=False).width == 768
    assert not hub.requests


# ------------------------------------------------------------------------------------ errors


def test_sizes_are_inferred_from_tensors_if_unambiguous(tmp_path):
    """OpenCLIP's ViT-bigG is the only model of its size; here with a small vocabulary."""
    shapes = {"embeddings.token_embedding.weight": (60, 1280)}
    shapes |= {"embeddings.position_embedding.weight": (77, 1280), "final_layer_norm.bias": (1280,)}
    for i in range(32):
        shapes[f"encoder.layers.{i}.layer_norm1.weight"] = (1280,)
    shapes["encoder.layers.0.mlp.fc1.weight"] = (5120, 1)
    tensors = {f"text_model.{name}": np.zeros(shape, np.float16) for name, shape in shapes.items()}
    tensors["text_projection.weight"] = np.zeros((640, 1280), np.float16)
    file = tmp_path / "bigg.safetensors"
    save_file(tensors, file)
    encoder = clip_text.make_text_encoder(str(file))
    assert (encoder.width, encoder.pooled_width, encoder.length) == (1280, 640, 77)
    assert (encoder.vocabulary_size, encoder.pad_id) == (60, 0)
    kernel = encoder.abstract_params["blocks"]["mlp.fc1"]["kernel"]
    assert kernel.shape == (32, 1280, 5120)


def test_ambiguous_sizes_without_a_config_are_rejected(tmp_path):
    save_reference(tmp_path)
    (tmp_path / clip_text.CONFIG_FILE).unlink()
    message = (
        r"has no config\.json beside it, and the activation .* of a text encoder of 3 layers and width 32 "
        r"cannot be inferred: put the model's config\.json beside it"
    )
    for path in (tmp_path, tmp_path / clip_text.FILE):
        with pytest.raises(WeightsError, match=message):
            clip_text.make_text_encoder(str(path))
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / clip_text.FILE)
    with pytest.raises(WeightsError, match="has no CLIP text encoder: give the model.safet"):
        clip_text.make_text_encoder(str(tmp_path))


def test_weights_of_another_network_are_listed(tmp_path):
    save_reference(tmp_path, "CLIPTextModelWithProjection")
    tensors = load_file(tmp_path / clip_text.FILE)
    del tensors["text_model.encoder.layers.1.mlp.fc2.bias"]
    tensors["text_model.final_layer_norm.bias"] = np.zeros(31, np.float32)
    tensors["text_model.encoder.layers.7.mlp.fc2.bias"] = np.zeros(32, np.float32)
    save_file(tensors, tmp_path / clip_text.FILE)
    with pytest.raises(WeightsError) as caught:
        clip_text.make_text_encoder(str(tmp_path)).load()
    message = str(caught.value)
    assert message.startswith(str(tmp_path / clip_text.FILE))
    assert "1 missing (text_model.encoder.layers.1.mlp.fc2.bias)" in message
    assert "1 unexpected (text_model.encoder.layers.7.mlp.fc2.bias)" in message
    assert "1 misshapen (text_model.final_layer_norm.bias (31,) for final_layer_norm" in message
    assert message.endswith("in transformers' layout, with its config.json.")


def test_a_projection_must_match_the_config(tmp_path):
    save_reference(tmp_path / "with", "CLIPTextModelWithProjection")
    save_reference(tmp_path / "without")
    shutil.copy(tmp_path / "with" / clip_text.CONFIG_FILE, tmp_path / "without")
    with pytest.raises(WeightsError, match=r"1 missing \(text_projection\.weight\)"):
        clip_text.make_text_encoder(str(tmp_path / "without")).load()


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("config", [False, True])
def test_pickles_are_rejected(tmp_path, suffix, folder, config):
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    if config:
        (tmp_path / clip_text.CONFIG_FILE).write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(WeightsError, match="is a pickle, which can execute code"):
        clip_text.make_text_encoder(str(tmp_path if folder else path)).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": ', r"config\.json is not a model's JSON .*: download it again"),
        ("[]", r"config\.json is not a model's JSON .*: download it again"),
        ('{"model_type": "t5"}', "is the config of 't5': give the folder of a CLIP text encoder"),
        ('{"hidden_act": "relu"}', "hidden_act 'relu': only quick_gelu and gelu are supported"),
        (
            '{"hidden_size": 100, "num_attention_heads": 8}',
            "hidden_size 100 is not a multiple of num_attention_heads 8",
        ),
        ('{"eos_token_id": [1, 2]}', r"eos_token_id is \[1, 2\], which should be a positive whole"),
        ('{"hidden_size": "512"}', 'hidden_size is "512", which should be a positive whole number'),
        (
            '{"hidden_size": 1e99}',
            "hidden_size is 1e[+]99, which should be a positive whole number",
        ),
        ('{"num_attention_heads": 0}', "num_attention_heads is 0, which should be a positive"),
        ('{"num_hidden_layers": true}', "num_hidden_layers is true, which should be a positive"),
        ('{"layer_norm_eps": NaN}', "layer_norm_eps is NaN, which should be a finite number"),
        ('{"hidden_act": ["gelu"]}', r'hidden_act is \["gelu"\], which should be a text'),
        ('{"model_type": "clip", "text_config": [1]}', "text_config should be an object"),
        ('{"architectures": 3}', "architectures should be a list"),
    ],
)
def test_configs_of_other_networks_are_rejected(tmp_path, content, message):
    (tmp_path / clip_text.CONFIG_FILE).write_text(content)
    with pytest.raises(WeightsError, match=f"^{re.escape(str(tmp_path))}.*{message}"):
        clip_text.make_text_encoder(str(tmp_path))


def test_the_error_for_an_unreachable_hub_says_where_to_put_the_file(hub, tmp_path):  # noqa: F811
    target = re.escape(str(tmp_path / "owner" / "unknown"))
    with pytest.raises(FileNotFoundError, match=f"put config.json of .* at {target}/config.json"):
        clip_text.make_text_encoder("owner/unknown")
    encoder = clip_text.make_text_encoder("owner/unknown", fetch=False)
    with pytest.raises(
        FileNotFoundError, match=f"put {clip_text.FILE} of .* at {target}/{clip_text.FILE}"
    ):
        encoder.load()
    with pytest.raises(FileNotFoundError, match="There is no '/no/such/file'"):
        clip_text.make_text_encoder("/no/such/file")


def test_misuse_is_rejected():
    with pytest.raises(ValueError, match="dtype 'float16' of a text encoder: choose float32 or"):
        clip_text.make_text_encoder("", dtype="float16")
    with pytest.raises(ValueError, match=r"has no weights: set text\.path to model\.safetensors"):
        clip_text.make_text_encoder("").load()
