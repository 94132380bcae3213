"""The model card: its header is YAML that the hub's own reader understands, whatever the captions hold."""

import pytest

from tests.tiny import tiny_config, tiny_vae_config
from videogen_jax.evaluation.model_card import Card, Sample, write_card

PROMPT = 'a "red" ball: [x](y) <b>\n| #1 \U0001f600 é'


def card(config=None, **changes):
    given = {
        "title": "balls",
        "name": "owner/balls",
        "config": config or tiny_config(),
        "step": 1200,
    }
    given |= {"average": "decay_0.9", "dtype": "float32", "parameters": 12_345}
    return Card(**given | {"metadata": {"vocabulary": ["a", "red", "ball"]}} | changes)


def read(text):
    hub = pytest.importorskip("huggingface_hub", reason="the reader of the header")
    return hub.ModelCard(text).data.to_dict()


def test_the_header_is_read_by_the_hub():
    header = read(write_card(card(license="mit", samples=[Sample("samples/00.mp4", PROMPT)])))
    assert header["license"] == "mit" and header["library_name"] == "videogen_jax"
    assert header["pipeline_tag"] == "text-to-video" and "video-diffusion" in header["tags"]
    assert header["widget"] == [{"text": PROMPT, "output": {"url": "samples/00.mp4"}}]
    header = read(write_card(card(tiny_vae_config(), metadata={})))
    assert "pipeline_tag" not in header and "license" not in header
    assert "autoencoder" in header["tags"]
    assert "diffusers" in read(write_card(card(diffusers=True)))["tags"]


def test_the_text_says_how_to_load_and_how_it_was_trained():
    text = write_card(card(metadata={"vocabulary": ["a", "red"], "data": {"clips": 2880}}))
    assert 'videogen_jax.load("owner/balls")' in text and 'model(["a red"], seeds=[0])' in text
    assert "12,345 parameters" in text and "4 frames of 8x8 pixels at 8 frames" in text
    assert "| training clips | 2,880 |" in text and "| optimizer steps | 1,200 of 4 clips |" in text
    assert "model.width = 12" in text and "Scores" not in text and "Samples" not in text
    assert "no data" not in text  # data.path is of the machine
    rounded = write_card(card(dtype="bfloat16", hardware="two RTX 3090"))
    assert "bfloat16 (rounded" in rounded and "| hardware | two RTX 3090 |" in rounded


def test_a_model_that_wants_a_frame_or_continues_says_so():
    config = tiny_config()
    config.tasks.update({"text": 0.0, "image": 1.0})
    assert "first_frame=image" in write_card(card(config))
    config.tasks.prefix = 0.5
    assert "`model.stream`" in write_card(card(config))


def test_scores_are_a_table_and_folders_of_this_machine_stay_out():
    scores = [{"name": "FVD|x", "value": 12.345, "low": 11.0, "high": 14.0, "n": 64, "note": "I3D"}]
    protocol = {"frames": 16, "workdir": "/home/me/run", "kept": "/home/me/x", "ddof": 1}
    text = write_card(card(report={"scores": scores, "protocol": protocol}))
    assert "| FVD\\|x | 12.35 (11 to 14) | 64 | I3D |" in text
    assert "Protocol: frames 16, ddof 1." in text and "/home/me" not in text


def test_prompts_are_no_markup():
    text = write_card(card(samples=[Sample("samples/00.mp4", PROMPT)]))
    line = next(line for line in text.splitlines() if "](samples/00.mp4)" in line)
    assert line.startswith('- [a "red" ball: \\[x\\](y) \\<b\\> | #1')
