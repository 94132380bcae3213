"""CLIP score against transformers' CLIPModel and image processor with the same weights, and its errors."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.text_encoders import write_clip
from videogen_jax.data import clip_tokenizer
from videogen_jax.evaluation import clip_score
from videogen_jax.models.clip_common import CONFIG_FILE, FILE
from videogen_jax.models.weights import WeightsError

CAPTIONS = ["a red ball rolls", "two dogs in the snow", "a red ball rolls", ""]


def save_reference(folder, words=clip_tokenizer.VOCABULARY_SIZE):
    """Creates a transformers CLIPModel with random weights and saves it to a folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = sizes | {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=6,
    )
    network = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim and "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    network.save_pretrained(folder)
    return network


def draw_videos():
    """Videos of several sizes and lengths; the first has more frames than are scored."""
    rng = np.random.default_rng(0)
    shapes = ((17, 40, 64), (3, 33, 32), (8, 64, 48), (1, 20, 20))
    noise = [rng.integers(0, 256, (*shape, 3)) for shape in shapes]
    tints = rng.integers(0, 256, (4, 1, 1, 1, 3))
    return [((n + 2 * tint) // 3).astype(np.uint8) for n, tint in zip(noise, tints, strict=True)]


def expect(network, videos, frames):
    """Scores computed with transformers, one frame and one caption at a time, in float64 after the networks."""
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    process = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    scores = []
    for video, indices, caption in zip(videos, frames, CAPTIONS, strict=True):
        ids = torch.from_numpy(
            clip_tokenizer.tokenize([caption], 77, clip_tokenizer.END_ID)[0]
        ).long()
        with torch.no_grad():
            text = network.get_text_features(ids).pooler_output[0].double()
            values = []
            for index in indices:
                pixels = torch.from_numpy(np.stack(process(video[index])["pixel_values"])).float()
                image = network.get_image_features(pixels).pooler_output[0].double()
                values.append(float(100 * image @ text / image.norm() / text.norm()))
        scores.append(np.mean(np.maximum(values, 0)))
    return np.array(scores)


def test_scores_equal_transformers(tmp_path):
    network = save_reference(tmp_path)
    scorer = clip_score.make_clip_scorer(str(tmp_path))
    videos = draw_videos()
    frames = [[0, 2, 5, 7, 9, 11, 14, 16], range(3), range(8), [0]]
    expected = expect(network, videos, frames)
    assert expected.min() >= 0 and expected.max() > 10 and np.ptp(expected) > 5
    scores = scorer.score(iter(videos), CAPTIONS)
    assert scores.dtype == np.float64 and scorer.frames == 8
    np.testing.assert_allclose(scores, expected, atol=1e-3)  # 1e-5 of a cosine
    many = scorer.score(iter(videos * 6), CAPTIONS * 6)  # more than a batch of frames
    np.testing.assert_allclose(many, np.tile(expected, 6), atol=1e-3)
    assert scorer.score([], []).shape == (0,)

    for count in (3, 5):
        with pytest.raises(
            ValueError, match=r"There are (4|more) videos .*captions.*: give one caption"
        ):
            scorer.score(iter(videos), (CAPTIONS * 2)[:count])
    with pytest.raises(ValueError, match="dtype uint8, not .* float64: convert it first"):
        scorer.score([videos[0] / 255], CAPTIONS[:1])


def test_score_of_known_cosines():
    """Cosines 1, 0, -1 and 0.6: negative ones count as 0."""
    frames = np.array([[2, 0], [0, 5], [-1, 0], [3, 4]], np.float32)
    score = clip_score.score_frames(frames, np.array([7, 0], np.float32))
    assert score == pytest.approx(100 * (1 + 0 + 0 + 0.6) / 4, rel=1e-12)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 100])
def test_frames_are_evenly_spaced(length):
    picked = clip_score.pick_frames(np.arange(length))
    assert len(picked) == min(length, 8) and len(set(picked)) == len(picked)
    assert (picked[0], picked[-1]) == (0, length - 1)
    if length > 1:
        exact = (length - 1) / (len(picked) - 1)
        assert np.abs(picked - exact * np.arange(len(picked))).max() <= 0.5


def test_the_hash_of_weights_covers_both_encoders(tmp_path):
    save_reference(tmp_path)
    first = clip_score.make_clip_scorer(str(tmp_path)).weights
    assert clip_score.make_clip_scorer(str(tmp_path)).weights == first
    tensors = load_file(tmp_path / FILE)
    for name in ("text_projection.weight", "visual_projection.weight"):
        save_file(tensors | {name: tensors[name] + 1}, tmp_path / FILE)
        assert clip_score.make_clip_scorer(str(tmp_path)).weights != first


def test_a_truncated_caption_is_logged(tmp_path, caplog):
    save_reference(tmp_path)
    scorer = clip_score.make_clip_scorer(str(tmp_path))
    scorer.score(draw_videos()[:2], ["red " * 100, "red"])
    assert "1 captions were truncated to CLIP's 77 tokens." in caplog.text


def test_other_weights_are_an_error(tmp_path):
    """Weights of a text encoder only, detected by config.json and by tensors, and another vocabulary."""
    path = write_clip(tmp_path / "text")
    with pytest.raises(
        WeightsError, match="is the config of 'clip_text_model': give the folder of a full"
    ):
        clip_score.make_clip_scorer(path)
    given = json.loads((tmp_path / "text" / CONFIG_FILE).read_text())
    whole = {"model_type": "clip", "text_config": given, "projection_dim": 8}
    (tmp_path / "text" / CONFIG_FILE).write_text(json.dumps(whole))
    with pytest.raises(WeightsError, match="has no CLIP image encoder: give the weights of a f"):
        clip_score.make_clip_scorer(path)
    save_reference(tmp_path / "words", words=90)
    with pytest.raises(ValueError, match="vocabulary of 90 ids, but CLIP's tokenizer has 49408"):
        clip_score.make_clip_scorer(str(tmp_path / "words"))
