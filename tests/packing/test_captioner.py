"""Captions of tiny models with random weights, against calls of transformers on frames that imageio decoded."""

import json
import re
import shutil
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="captions need PyTorch")
pytest.importorskip("transformers", reason="captions need transformers")

import torch
import transformers

from tests.packing import tiny_captioners as tiny
from videogen_jax.data.video_io import FrameSample, sample_frames
from videogen_jax.data.video_writer import write_video
from videogen_jax.packing import captioner
from videogen_jax.packing.captioner import Caption, Captioner, CaptionError

FRAMES = 13  # of each video
PROMPT = "the dog runs on"
LENGTH = 9  # tokens of a caption
SCALE = {"llava": 2.0, "git": 1.0, "git_video": 1.0, "blip": 1.0, "smolvlm": 1.0, "qwen": 4.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of PyTorch that wait for each other take longer than what they compute here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models by name, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("models")
    make = {
        "llava": tiny.make_llava,
        "git": tiny.make_git,
        "git_video": lambda: tiny.make_git(frames=4),
        "blip": tiny.make_blip,
        "smolvlm": tiny.make_smolvlm,
        "qwen": tiny.make_qwen,
    }

    def find(name):
        if name in ("smolvlm", "qwen"):
            pytest.importorskip("torchvision", reason="transformers' video processors need it")
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
        path = folder / name
        return path if path.exists() else tiny.save(path, *make[name](), scale=SCALE[name])

    return find


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos whose colour changes from frame to frame, of two sizes."""
    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(32, 48), (48, 32), (32, 48)]):
        colors = random.integers(0, 256, (FRAMES, 1, 1, 3), np.uint8)
        paths.append(folder / f"{number}.mp4")
        write_video(paths[-1], np.broadcast_to(colors, (FRAMES, *size, 3)).copy(), 8)
    return paths


def load(folder, frames=4, **options):
    options = {"device": "cpu", "max_new_tokens": LENGTH, "prompt": PROMPT} | options
    return captioner.load(str(folder), frames=frames, **options)


def decode(path, count):
    """The frames in the middle of `count` equal parts, by imageio."""
    frames = iio.imread(path, plugin="pyav")
    assert len(frames) == FRAMES
    return frames[[int((k + 0.5) * FRAMES / count) for k in range(count)]]


def call_transformers(folder, clips):
    """The captions of clips (T, H, W, 3), each by the steps that transformers documents for the model."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return [call_one(folder, processor, model, frames) for frames in clips]


def call_one(folder, processor, model, frames):
    images = [Image.fromarray(frame) for frame in frames]
    if folder.name == "llava":
        text = "<bos>" + "<image>" * len(images) + PROMPT
        inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
    elif folder.name in ("smolvlm", "qwen"):
        parts = [{"type": "video", "video": frames}, {"type": "text", "text": PROMPT}]
        times = [int((k + 0.5) * FRAMES / len(frames)) for k in range(len(frames))]
        facts = {"total_num_frames": FRAMES, "fps": 8.0, "duration": FRAMES / 8}
        facts["frames_indices"] = times
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": parts}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"video_metadata": [facts], "do_sample_frames": False},
        )
    elif folder.name == "git_video":
        inputs = processor(images=images, text=PROMPT, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"][None]
    else:
        inputs = processor(images=images, text=PROMPT, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    begin = 0 if folder.name == "blip" else inputs["input_ids"].shape[1]  # BLIP goes on with it
    return processor.tokenizer.decode(ids[0, begin:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [("llava", 3), ("git", 1), ("git_video", 4), ("blip", 1), ("smolvlm", 3), ("qwen", 4)],
)
def test_captions_are_those_of_transformers_on_the_right_frames(models, videos, name, count):
    folder = models(name)
    model = load(folder, count if name != "git_video" else 99)
    assert model.frames == count
    expected = call_transformers(folder, [decode(path, count) for path in videos])
    assert len(set(expected)) > 1, "the model does not look at the frames"
    found = model.write([sample_frames(path, model.frames) for path in videos])
    assert [caption.text for caption in found] == expected


@pytest.mark.parametrize("name", ["llava", "git_video", "blip", "smolvlm", "qwen"])
def test_a_batch_gives_the_captions_of_its_files_one_by_one(models, videos, name):
    model = load(models(name))
    samples = [sample_frames(path, model.frames) for path in videos]
    alone = [model.write([sample])[0] for sample in samples]
    assert model.write(samples) == alone
    assert model.write(samples[::-1]) == alone[::-1]


def test_a_short_video_in_a_batch_has_the_caption_that_it_has_alone(models, videos):
    """Its prompt is shorter than those of the others, and padded in front."""
    model = load(models("llava"))
    samples = [sample_frames(path, count) for path, count in zip(videos, (1, 4, 2), strict=True)]
    assert model.write(samples) == [model.write([sample])[0] for sample in samples]


@pytest.mark.parametrize("name", ["llava", "git_video", "blip", "smolvlm", "qwen"])
def test_images_are_captioned_too(models, name):
    model = load(models(name))
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (3, 24, 40, 3), np.uint8)
    samples = [FrameSample(image[None], (0,), 1, None) for image in pixels]
    assert all(caption.text for caption in model.write(samples))
    if name == "llava":
        expected = call_transformers(models(name), pixels[:, None])
        assert [caption.text for caption in model.write(samples)] == expected


def test_videos_of_other_lengths_are_not_mixed(models):
    model = load(models("git_video"))
    samples = [FrameSample(np.zeros((n, 8, 8, 3), np.uint8), (0,), n, 8.0) for n in (2, 4)]
    with pytest.raises(CaptionError, match="different lengths"):
        model.write(samples)
    with pytest.raises(CaptionError, match="the model does not take it"):
        model.write([samples[0]._replace(frames=np.zeros((2, 8, 8, 5), np.uint8))])


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("llava", "sees 5 frames of a video, as images"),
        ("git_video", "sees 4 frames of a video, as images"),
        ("blip", "sees one image at a time: the middle frame of a video"),
        ("qwen", "sees 5 frames of a video, as a video"),
    ],
)
def test_how_the_model_sees_a_video_is_told(models, name, described):
    assert load(models(name), 5).describe() == described


class Recorder:
    """A processor with a chat template for videos, which keeps what it is given."""

    chat_template = "yes"
    image_processor = video_processor = object()

    def __init__(self, tokenizer, refuse="audio"):
        self.tokenizer, self.refuse = tokenizer, refuse

    def apply_chat_template(self, messages, add_generation_prompt):
        assert add_generation_prompt
        kinds = [part["type"] for message in messages for part in message["content"]]
        if self.refuse in kinds:
            raise ValueError
        return "<bos>" + "".join(f"[{kind}]" for kind in kinds) + messages[0]["content"][-1]["text"]

    def __call__(self, **given):
        self.given = given


def make_recorder(refuse="audio", **options):
    processor = Recorder(tiny.make_tokenizer(), refuse)
    config = transformers.LlamaConfig()
    model = type("Model", (), {"config": config})()
    return Captioner(model, processor, **{"frames": 2} | options), processor


def test_a_model_for_videos_gets_the_frames_with_their_times():
    """Also where torchvision is missing, without which transformers has no video processor."""
    model, processor = make_recorder(prompt="What?")
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    model.prepare([FrameSample(frames, (3, 9), 12, 24.0)] * 2)
    assert processor.given["text"] == ["<bos>[video][text]What?"] * 2
    assert processor.given["add_special_tokens"] is False
    assert np.array_equal(processor.given["videos"], [[frames], [frames]])
    options = processor.given["videos_kwargs"]
    assert options["do_sample_frames"] is False
    ((times,), _) = options["video_metadata"]
    assert times.timestamps == [0.125, 0.375] and times.duration == 0.5
    assert times.sampled_fps == 4.0  # two frames in half a second
    model.prepare([FrameSample(frames[:1], (0,), 1, None)])
    assert processor.given["text"] == ["<bos>[image][text]What?"]
    assert "videos" not in processor.given


def test_a_template_that_refuses_videos_gets_images():
    model, processor = make_recorder(refuse="video")
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    model.prepare([FrameSample(frames, (3, 9), 12, 24.0)])
    (text,) = processor.given["text"]
    assert text.startswith("<bos>[image][image][text]Describe the video of which these images")
    assert len(processor.given["images"][0]) == 2
    model, _ = make_recorder(refuse="image")
    with pytest.raises(ValueError, match="sees videos only"):
        model.prepare([FrameSample(frames[:1], (0,), 1, None)])
    with pytest.raises(ValueError, match="Recorder takes neither images nor videos"):
        make_recorder(refuse="text")


def test_the_default_prompt_asks_for_motion_in_videos_alone():
    image = captioner.default_prompt(True, "frames", 8)
    video = captioner.default_prompt(False, "video", 8)
    still = captioner.default_prompt(False, "frames", 1)
    assert "this image in three to five sentences" in image and "this video" in video
    assert "move" in video and "move" not in image + still
    assert "{" not in image + video + still


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" A dog\n\n runs.\t", "A dog runs."),
        ("bell\x07 and \x00 more\ufffd", "bell and  more"),
        ("Café, 猫 👩‍🚀", "Café, 猫 👩‍🚀"),
        ("\n", ""),
    ],
)
def test_captions_are_cleaned(text, cleaned):
    assert captioner.clean(text) == cleaned


def test_a_caption_at_the_greatest_length_ends_with_a_whole_sentence(models, videos, monkeypatch):
    model = load(models("git_video"))
    sample, end = [sample_frames(videos[0], 4)], model.processor.tokenizer.eos_token_id

    def write(text, tokens):
        monkeypatch.setattr(model.model, "generate", lambda **_: torch.tensor([tokens]))
        decode = lambda tokens, skip_special_tokens: [text]  # noqa: E731
        monkeypatch.setattr(model.processor, "post_process_image_text_to_text", decode)
        return model.write(sample)[0]

    text = "A dog runs. It stops! Then the"
    assert write(text, [7, 8, 9]) == Caption("A dog runs. It stops!", True)
    assert write(text, [7, 8, end]) == Caption(text, False)
    assert write(text, [7, end, model.processor.tokenizer.pad_token_id]) == Caption(text, False)
    assert write("A dog", [7, 8]) == Caption("A dog", True)  # rather than nothing


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("He is 3.5 m tall. He", "He is 3.5 m tall."),
        ('She says "go!" Then', 'She says "go!"'),
        ("猫が走る。そして", "猫が走る。"),
        ("no end", "no end"),
    ],
)
def test_sentences_end_where_they_do(text, kept):
    assert captioner._end_sentence(text) == kept


def test_decoding_is_greedy_whatever_the_model_asks_for(models, videos, tmp_path):
    folder = shutil.copytree(models("llava"), tmp_path / "llava")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "num_beams": 2, "max_length": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    sample = [sample_frames(videos[0], 4)]
    assert load(folder).write(sample) == load(models("llava")).write(sample)


MARKER = "import pathlib\npathlib.Path({!r}).touch()\nclass Thing: pass\n"


def add_code(folder, marker, known):
    """Makes a model want Python code of its own; of an architecture that transformers has, or not."""
    (folder / "code.py").write_text(MARKER.format(str(marker)))
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        kinds = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor")
        content["auto_map"] = {kind: "code.Thing" for kind in kinds}
        content["auto_map"] |= {"AutoTokenizer": ["code.Thing", "code.Thing"]}
        if name == "config.json" and not known:
            content["model_type"] = "of_its_own"
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_model_is_never_executed(models, videos, tmp_path, known, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"asked: {text}"))
    folder = shutil.copytree(models("llava"), tmp_path / "llava")
    add_code(folder, tmp_path / "marker", known)
    if known:
        sample = [sample_frames(videos[0], 4)]
        assert load(folder).write(sample) == load(models("llava")).write(sample)
    else:
        with pytest.raises(ValueError, match="needs Python code of its own, which is not executed"):
            load(folder)
    assert not (tmp_path / "marker").exists()
    assert "code" not in {name.rsplit(".", 1)[-1] for name in sys.modules if "llava" in name}


def test_pickled_weights_are_refused(models, tmp_path):
    folder = shutil.copytree(models("llava"), tmp_path / "llava")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="llava has no safetensors, and pickled weights are not r"):
        load(folder)


def damage(folder, how):
    if how == "weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
    elif how == "missing":
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors.pop(next(name for name in tensors if "lm_head" in name))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "kind":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "processor":
        (folder / "processor_config.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weights", "llava cannot be loaded (.*): give the folder or name of a whole model"),
        ("missing", "llava lacks the weights of 1 parameters, such as .*lm_head.*: copy its files"),
        ("config", "llava cannot be loaded (.*): give the folder"),
        ("kind", "llava cannot be loaded (.*): give the folder"),
        ("processor", "llava (has no processor|cannot be loaded)"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(models, tmp_path, how, message):
    folder = shutil.copytree(models("llava"), tmp_path / "llava")
    damage(folder, how)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600 and text.endswith(".")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(models, device):
    with pytest.raises(ValueError, match=re.escape(f"PyTorch has no device {device!r} here")):
        load(models("llava"), device=device)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_names_the_command_that_installs_it(models, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = (
        f"captions need {package}, which is not installed: pip install 'videogen-jax[caption]'."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load("any")


def test_a_package_that_the_processor_needs_is_named(models, monkeypatch):
    def refuse(*_, **__):
        raise ImportError("TinyProcessor requires the Torchvision library\nbut it was not found.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    with pytest.raises(
        ValueError, match="needs a package .*Torchvision library but.*pip install '"
    ):
        load(models("llava"))


def test_too_little_memory_says_what_to_lower(models, videos, monkeypatch):
    model = load(models("llava"))

    def fail(**_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.model, "generate", fail)
    with pytest.raises(
        ValueError, match="cpu has too little memory for 1 files .*--batch_size"
    ) as e:
        model.write([sample_frames(videos[0], 4)])
    assert not isinstance(e.value, CaptionError)


def test_weights_are_kept_in_the_requested_type(models, videos):
    model = load(models("llava"), dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    assert model.write([sample_frames(videos[0], 4)])[0].text
    assert load(models("llava")).model.dtype == torch.float32
