"""CLIP's image encoder against transformers with the same weights, and errors for weights that do not fit."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.text_encoders import write_clip
from videogen_jax.models import clip_vision
from videogen_jax.models.clip_common import CONFIG_FILE, FILE
from videogen_jax.models.weights import WeightsError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 8,
}


def save_reference(folder, projection=24, **changes):
    """A CLIPModel of transformers with random weights, also saved to a folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 50}
    parts = {"text_config": text, "vision_config": SIZES | changes}
    network = transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=projection))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
            elif parameter.ndim:
                parameter.copy_(torch.randn_like(parameter) * (0.5 if "embed" in name else 0.2))
    network.eval().save_pretrained(folder)
    return network


def draw_pixels(size, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def expect(network, pixels):
    """The embeddings of transformers, float32."""
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    process = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    values = torch.from_numpy(np.stack(process(list(pixels))["pixel_values"])).float()
    with torch.no_grad():
        return network.get_image_features(values).pooler_output.numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-2},
        {"hidden_size": 24, "num_attention_heads": 2, "image_size": 16, "num_hidden_layers": 1},
    ],
    ids=["quick_gelu", "gelu", "sizes"],
)
def test_equals_transformers(tmp_path, changes):
    """Pixels outside whole patches are ignored, as in transformers."""
    network = save_reference(tmp_path, **changes)
    for path in (tmp_path, tmp_path / FILE):
        encoder = clip_vision.make_image_encoder(str(path))
        assert encoder.size == (SIZES | changes)["image_size"] and encoder.width == 24
    pixels = draw_pixels(encoder.size)
    vectors = np.asarray(jax.jit(encoder.encode)(encoder.load(), pixels))
    expected = expect(network, pixels)
    assert expected.std() > 0.3 and np.ptp(expected, axis=0).mean() > 0.1
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_bfloat16_is_close_and_results_are_float32(tmp_path):
    save_reference(tmp_path)
    exact, rough = (
        clip_vision.make_image_encoder(str(tmp_path), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    params = exact.load()
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, rough.abstract_params))
    one, other = (jax.jit(model.encode)(params, draw_pixels(30)) for model in (exact, rough))
    assert other.dtype == jnp.float32
    assert 0 < np.abs(one - other).max() < 0.2 * one.std()


def test_published_sizes(tmp_path):
    """87.8 and 303.2 million parameters of CLIP's vision transformers, and their projections."""
    for changes, width, count in (
        ({}, 512, 87_456_000 + 768 * 512),
        (
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
            | {"num_attention_heads": 16, "patch_size": 14},
            768,
            303_179_776 + 1024 * 768,
        ),
    ):
        given = {"model_type": "clip", "vision_config": changes, "projection_dim": width}
        (tmp_path / CONFIG_FILE).write_text(json.dumps(given))
        encoder = clip_vision.make_image_encoder(str(tmp_path))
        assert sum(leaf.size for leaf in jax.tree.leaves(encoder.abstract_params)) == count
        assert (encoder.size, encoder.width) == (224, width)


@pytest.mark.parametrize(
    "size", [(224, 224), (240, 427), (97, 33), (64, 64), (225, 224), (360, 641), (500, 301)]
)
def test_frames_are_cropped_as_in_transformers(size):
    """Smooth and noisy images, larger and smaller, of odd sizes; exactly equal."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    x, y = np.arange(size[1])[:, None], np.arange(size[0])[:, None, None]
    frames[1] = 127 + 120 * np.sin(x / 9 + y / np.array([5.0, 7.0, 13.0]))
    expected = np.stack(CLIPImageProcessorPil()(list(frames))["pixel_values"])  # (2, 3, 224, 224)
    ours = clip_vision.crop_frames(frames, 224)
    normed = (ours / np.float32(255) - clip_vision.MEAN) / clip_vision.DEVIATION
    np.testing.assert_allclose(normed, np.moveaxis(expected, 1, -1), atol=1e-5)


# ------------------------------------------------------------------------------------ errors


def test_weights_of_a_text_encoder_are_rejected(tmp_path):
    """By config.json, or by the tensors if config.json is of a full CLIP."""
    write_clip(tmp_path / "text")
    folder = re.escape(str(tmp_path / "text"))
    message = "is the config of 'clip_text_model': give the folder of a full CLIP"
    with pytest.raises(WeightsError, match=f"^{folder}.*{message}"):
        clip_vision.make_image_encoder(str(tmp_path / "text"))
    given = {"model_type": "clip", "vision_config": SIZES}
    (tmp_path / "text" / CONFIG_FILE).write_text(json.dumps(given))
    encoder = clip_vision.make_image_encoder(str(tmp_path / "text"))
    message = r"has no CLIP image encoder: give the weights of a full CLIP \(transformers"
    with pytest.raises(WeightsError, match=f"^{folder}.*{message}"):
        encoder.load()


def test_errors_name_what_is_missing(tmp_path):
    save_reference(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors.pop("visual_projection.weight")
    tensors["vision_model.encoder.layers.7.mlp.fc2.bias"] = np.zeros(32, np.float32)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(WeightsError) as caught:
        clip_vision.make_image_encoder(str(tmp_path)).load()
    message = str(caught.value)
    assert "1 missing (visual_projection.weight)" in message
    assert "1 unexpected (vision_model.encoder.layers.7.mlp.fc2.bias)" in message
    (tmp_path / CONFIG_FILE).unlink()
    for path in (tmp_path, tmp_path / FILE):
        with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
            clip_vision.make_image_encoder(str(path))
    with pytest.raises(ValueError, match="dtype 'float16' of an image encoder: choose float32 or"):
        clip_vision.make_image_encoder(str(tmp_path), dtype="float16")
