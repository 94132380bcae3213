"""The Python API: a run opened, and videos that depend on prompt, seed and settings alone."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import videogen_jax
from tests.conftest import ROOT
from tests.saved_runs import CAPTIONS, image_config, joint_config, long_config, write_run
from tests.tiny import tiny_config, tiny_vae_config
from videogen_jax import sample
from videogen_jax.data import video_io, video_writer
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import from_checkpoint, run_rollout, run_sampler
from videogen_jax.run import saved_config

LEFT, UP = CAPTIONS
PROMPTS = [LEFT, UP, "a red square moving up", LEFT, "a blue circle moving left"]
SEEDS = [3, 11, 0, 8, 2**32 - 1]


def plain_config():
    """Text to video: 4 frames of 8x8 pixels in two steps."""
    config = tiny_config()
    config.mesh.fsdp = 1
    config.sample.num_inference_steps = 2
    return config


def latent_config(**text):
    """Text to video in the latents of an autoencoder, whose weights are on the hub."""
    config = plain_config()
    config.vae.update({"name": "taef2", "path": "owner/none"})
    config.data.update({"height": 16, "width": 16})
    config.model.patch_size = (1, 1, 1)
    config.sample.clip_x0 = False
    config.text.update(text)
    return config


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("plain"), plain_config())


@pytest.fixture(scope="module")
def plain(plain_run):
    return videogen_jax.load(plain_run)


@pytest.fixture(scope="module")
def pairs(plain_run):
    """Two videos at a time."""
    return videogen_jax.load(plain_run, batch_size=2)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    return videogen_jax.load(write_run(tmp_path_factory.mktemp("image"), image_config()))


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return videogen_jax.load(write_run(tmp_path_factory.mktemp("joint"), joint_config()))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("long"), long_config())


@pytest.fixture(scope="module")
def long(long_run):
    return videogen_jax.load(long_run, batch_size=2)


@pytest.fixture
def built(monkeypatch):
    """The programs and rollouts that were built."""
    seen = []

    def note(module, name):
        make = getattr(module, name)

        def noted(*arguments):
            seen.append(make(*arguments))
            return seen[-1]

        monkeypatch.setattr(module, name, noted)

    note(run_sampler, "make_run_programs")
    note(run_rollout, "make_run_rollout")
    return seen


def run_verb(workdir, output, **options):
    """Runs the verb `sample` in this process; returns samples.json."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = {"workdir": workdir, "output_dir": output} | options
    texts = {
        name: list(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in options.items()
    }
    with flagsaver.as_parsed(**texts):
        sample.write_samples()
    return json.loads((output / "samples.json").read_text())


def picture(seed, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same_pixels(got, expected):
    """Up to one level: programs for other batches may round differently."""
    assert got.dtype == expected.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=1)


def largest_difference(one, other):
    return np.abs(one.astype(int) - other).max()


def assert_sentence(error):
    text = str(error.value)
    assert text.endswith((".", "?")) and "\n" not in text


def test_a_model_makes_videos(plain):
    videos = plain(PROMPTS[:2], seeds=[4, 5], guidance_scale=2.0)
    assert isinstance(videos, np.ndarray)
    assert videos.shape == (2, *plain.shape) == (2, 4, 8, 8, 3) and videos.dtype == np.uint8
    assert (plain.fps, plain.step) == (8.0, 1)
    assert largest_difference(videos[0], videos[1]) > 5
    assert largest_difference(videos[:, 1:], videos[:, :-1]) > 5
    # Prompt, seed and guidance each matter.
    assert largest_difference(plain([UP, UP], seeds=[4, 5], guidance_scale=2.0)[0], videos[0]) > 5
    assert largest_difference(plain([LEFT], seeds=[5], guidance_scale=2.0)[0], videos[0]) > 5
    assert largest_difference(plain(PROMPTS[:2], seeds=[4, 5], guidance_scale=4.0), videos) > 5


@pytest.mark.parametrize(("devices", "batch_size"), [(1, None), (8, 2)])
def test_the_verb_writes_the_same_videos(plain_run, tmp_path, monkeypatch, devices, batch_size):
    found = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: found)
    options = {"guidance_scale": 3.0, "sampler": "ddpm", "num_inference_steps": 3}
    others = {"negative_prompt": UP, "motion": 7.0}
    written, write_video = [], video_writer.write_video

    def write(path, video, fps):
        written.append((video, fps))
        write_video(path, video, fps)

    monkeypatch.setattr(video_writer, "write_video", write)
    recipe = run_verb(plain_run, tmp_path, prompts=[LEFT, UP], seed=6, **options, **others)
    videos, rates = zip(*written, strict=True)
    model = videogen_jax.load(str(plain_run), batch_size=batch_size)
    made = model([LEFT, UP], seeds=[6, 7], **options, **others)
    np.testing.assert_array_equal(made, videos)
    assert rates == (model.fps,) * 2
    described = model.describe(model.choose_settings(2, **options), **others)
    described = json.loads(json.dumps(described))
    assert described.items() <= recipe.items() and recipe["shape"] == list(model.shape)
    assert described["guidance_scale"] == 3.0 and described["negative_prompt"] == UP


def test_the_verb_writes_the_same_long_videos(long_run, tmp_path, monkeypatch):
    written = {}

    class Writer:
        def __init__(self, path, fps):
            self.own = written.setdefault(path.name, [])
            path.write_bytes(b"a video")

        def __enter__(self):
            return lambda frames: self.own.append(frames)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(video_writer, "open_writer", Writer)
    options = {"num_frames": 5, "seed": 4, "guidance_scale": 3.0}
    recipe = run_verb(long_run, tmp_path, prompts=[LEFT, UP], **options)
    videos = [np.concatenate(written[entry["file"]]) for entry in recipe["videos"]]
    model = videogen_jax.load(long_run, batch_size=2)
    chunks = model.stream([LEFT, UP], 5, seeds=[4, 5], guidance_scale=3.0)
    np.testing.assert_array_equal(np.concatenate(list(chunks), axis=1), videos)
    assert model.describe_rollout(5, None, None).items() <= recipe.items()


def test_the_config_has_the_settings_that_are_not_given(plain):
    default = plain([LEFT])
    np.testing.assert_array_equal(default, plain([LEFT], guidance_scale=2.0, sampler="ddim"))
    assert (plain.settings.guidance_scale, plain.settings.num_inference_steps) == (2.0, 2)
    assert largest_difference(plain([LEFT], num_inference_steps=5), default) > 5
    np.testing.assert_array_equal(plain([LEFT], num_inference_steps=2), default)


@pytest.fixture(scope="module")
def alone(plain_run):
    """Each video by itself."""
    model = videogen_jax.load(plain_run, batch_size=1)
    made = zip(PROMPTS, SEEDS, strict=True)
    return np.concatenate([model([prompt], seeds=[seed]) for prompt, seed in made])


@pytest.mark.parametrize("batch_size", [1, 2, 3, None])
def test_a_video_is_the_same_in_any_batch(plain_run, alone, batch_size):
    assert min(largest_difference(*pair) for pair in zip(alone, alone[1:], strict=False)) > 5
    model = videogen_jax.load(plain_run, batch_size=batch_size)
    assert_same_pixels(model(PROMPTS, seeds=SEEDS), alone)
    order = [4, 1, 3]
    some = model([PROMPTS[i] for i in order], seeds=[SEEDS[i] for i in order])
    assert_same_pixels(some, alone[order])


def test_the_same_program_gives_the_same_bits(pairs):
    videos = pairs(PROMPTS, seeds=SEEDS)
    np.testing.assert_array_equal(pairs(PROMPTS, seeds=SEEDS), videos)
    for i in range(len(PROMPTS)):
        np.testing.assert_array_equal(pairs([PROMPTS[i]], seeds=[SEEDS[i]])[0], videos[i])
    np.testing.assert_array_equal(pairs(PROMPTS[::-1], seeds=SEEDS[::-1]), videos[::-1])


def test_seeds_count_from_0(pairs):
    np.testing.assert_array_equal(pairs(PROMPTS), pairs(PROMPTS, seeds=range(5)))
    assert largest_difference(*pairs([LEFT, LEFT])) > 5


def test_batches_come_in_order(pairs):
    batches = list(pairs.iterate(PROMPTS, seeds=SEEDS))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), pairs(PROMPTS, seeds=SEEDS))


def test_a_batch_is_made_when_it_is_asked_for(pairs, monkeypatch):
    made, make = [], from_checkpoint.make_generator

    def make_generator(programs):
        generate = make(programs)
        return lambda params, condition, seeds: (
            made.append(seeds) or generate(params, condition, seeds)
        )

    monkeypatch.setattr(from_checkpoint, "make_generator", make_generator)
    batches = pairs.iterate(PROMPTS, seeds=SEEDS, num_inference_steps=1)
    assert not made
    next(batches)
    assert made == [SEEDS[:2]]
    assert len(list(batches)) == 2 and made == [SEEDS[:2], SEEDS[2:4], SEEDS[4:]]


@pytest.fixture
def compiled(caplog):
    """Names the functions among some that were traced or compiled since it was last asked."""
    caplog.set_level("WARNING", "jax")

    def names(*functions):
        told = caplog.text
        caplog.clear()
        return {name for name in functions if re.search(rf"\b{name}\b", told)}

    with jax.log_compiles():
        yield names


def test_the_same_settings_take_the_same_program(plain_run, built, compiled):
    model = videogen_jax.load(plain_run, batch_size=2)
    assert not built
    names = {"init", "denoise"}
    model([LEFT])
    assert compiled(*names) == names
    for prompts, options in (
        (PROMPTS, {"seeds": SEEDS, "motion": 3.0}),
        ([UP], {"guidance_scale": 2.0}),  # the config's
        (["a square"], {"negative_prompt": "", "guidance_interval": []}),
    ):
        model(prompts, **options)
        assert len(built) == 1 and not compiled(*names)
    model([LEFT], guidance_scale=3.0)
    model([LEFT], negative_prompt=UP)
    assert len(built) == 3 and compiled("denoise")
    model([UP], guidance_scale=3.0)
    model([UP], negative_prompt=UP)
    model([UP])
    assert len(built) == 3 and not compiled(*names)


def test_long_videos_of_the_same_settings_take_the_same_program(long_run, built, compiled):
    model = videogen_jax.load(long_run, batch_size=1)
    names = {"start", "extend"}
    list(model.stream([LEFT], 5))
    assert compiled(*names) == names
    list(model.stream([[(0, UP), (2, LEFT)]], 3, seeds=[4]))
    list(model.stream([UP], 7, chunk=2, prefix=2))  # the config's, and the most
    assert len(built) == 1 and not compiled(*names)
    names |= {"write"}
    for seed in range(2):
        list(model.stream([LEFT], 3, first_frame=picture(seed), seeds=[seed]))
        list(model.stream([LEFT], 3, prefix=1, seeds=[seed]))
        assert len(built) == 3 and compiled(*names) == (set() if seed else names)


def test_captions_are_embedded_once(plain_run):
    model = videogen_jax.load(plain_run)
    embedded, embed = [], model.texts.embed
    model.texts = model.texts._replace(embed=lambda texts: embedded.append(texts) or embed(texts))
    rows, null = model.embed([UP, LEFT, UP], "a square")
    np.testing.assert_array_equal(rows, embed([UP, LEFT, UP]))
    np.testing.assert_array_equal(null, embed(["a square"])[0])
    assert embedded == [[UP, LEFT, "a square"]]
    np.testing.assert_array_equal(model.embed([LEFT])[1], model.texts.null)
    assert embedded[1:] == [[""]]
    model.embed([UP, LEFT], "a square")
    assert len(embedded) == 2


def test_a_negative_prompt_changes_the_video(pairs, long):
    plain = pairs([LEFT])
    np.testing.assert_array_equal(pairs([LEFT], negative_prompt=""), plain)
    negative = pairs([LEFT], negative_prompt=UP)
    assert largest_difference(negative, plain) > 5
    # Without guidance the model is not asked what the video is not to show.
    unguided = [pairs([LEFT], negative_prompt=text, guidance_scale=1.0) for text in ("", UP)]
    np.testing.assert_array_equal(*unguided)
    # What is wanted and what is not cancel each other.
    same = pairs([LEFT], negative_prompt=LEFT, guidance_scale=5.0)
    assert_same_pixels(same, unguided[0])
    videos = [next(long.stream([LEFT], 2, negative_prompt=text)) for text in ("", UP)]
    assert largest_difference(*videos) > 5


def test_a_first_frame_of_all_or_of_each(pictured):
    first, second = picture(0), picture(1)
    prompts, seeds = [LEFT, UP], [4, 5]
    shared = pictured(prompts, seeds=seeds, first_frame=first)
    assert largest_difference(shared, pictured(prompts, seeds=seeds)) > 5
    for options in (
        {"first_frame": [first, first]},
        {"first_frame": np.stack([first, first])},
        {"known_frames": {0: first}},
        {"known_frames": [{0: first}, {0: first}]},
    ):
        np.testing.assert_array_equal(pictured(prompts, seeds=seeds, **options), shared)
    each = pictured(prompts, seeds=seeds, first_frame=[first, second])
    np.testing.assert_array_equal(each[0], shared[0])
    other = pictured(prompts, seeds=seeds, first_frame=second)
    np.testing.assert_array_equal(each[1], other[1])
    assert largest_difference(each[1], shared[1]) > 5


def test_pictures_go_with_their_prompts_through_batches(pictured):
    firsts = [picture(seed) for seed in range(3)]
    prompts, seeds = PROMPTS[:3], SEEDS[:3]
    together = pictured(prompts, seeds=seeds, first_frame=firsts)
    apart = list(pictured.iterate(prompts, seeds=seeds, first_frame=firsts, batch_size=1))
    assert_same_pixels(np.concatenate(apart), together)


def test_known_frames_of_all_or_of_each(joint):
    first, last = picture(0), picture(1, 16, 32)
    prompts, seeds = [LEFT, UP], [4, 5]
    shared = joint(prompts, seeds=seeds, known_frames={0: first, 3: last})
    for options in (
        {"known_frames": [{3: last, 0: first}] * 2},
        {"first_frame": first, "known_frames": {3: last}},
        {"first_frame": [first, first], "known_frames": {3: last}},
        {"first_frame": first, "known_frames": [{3: last}] * 2},
    ):
        np.testing.assert_array_equal(joint(prompts, seeds=seeds, **options), shared)
    each = joint(prompts, seeds=seeds, known_frames=[{0: first, 3: last}, {1: first}])
    np.testing.assert_array_equal(each[0], shared[0])
    assert largest_difference(each[1], shared[1]) > 5
    mixed = joint(prompts, seeds=seeds, known_frames=[{0: first, 3: last}, {}])
    np.testing.assert_array_equal(mixed[0], shared[0])
    np.testing.assert_array_equal(mixed[1], joint(prompts, seeds=seeds)[1])


def test_frames_that_make_no_sense_are_refused(pictured, joint, plain):
    first = picture(0)

    def refuse(sentence, model=joint, **options):
        with pytest.raises(ValueError, match=sentence) as error:
            model.iterate([LEFT, UP, LEFT], **options)
        assert_sentence(error)

    refuse(
        "Frame 0 is given by first_frame and by known_fr",
        first_frame=first,
        known_frames={0: first},
    )
    refuse("Frame 0 is given", first_frame=[first] * 3, known_frames={3: first, 0: first})
    refuse("Frame 0 is given", first_frame=first, known_frames=[{}, {}, {0: first}])
    refuse("first_frame has 2 entries for 3 prompts: give one for all", first_frame=[first] * 2)
    refuse("known_frames has 2 entries for 3 prompts", known_frames=[{0: first}, {1: first}])
    refuse("first_frame has 0 entries for 3 prompts", first_frame=[])
    refuse("Frame 4 is said to be known", known_frames={4: first})
    refuse("Frame -1 is said to be known", known_frames={-1: first})
    refuse(
        r"Frames 0, 3 are said .*\(tasks\.frames=0\)", pictured, known_frames={0: first, 3: first}
    )
    refuse("model.conditioning='none' and knows no frames", plain, first_frame=first)


@pytest.fixture(scope="module")
def long_videos(long_run):
    """Three long videos, each by itself."""
    model = videogen_jax.load(long_run, batch_size=1)
    prompts = [[(0, LEFT)], [(0, UP), (3, LEFT)], [(0, UP)]]
    videos = [
        np.concatenate(list(model.stream([prompt], 7, seeds=[seed])), axis=1)[0]
        for prompt, seed in zip(prompts, SEEDS, strict=False)
    ]
    return prompts, np.stack(videos)


@pytest.mark.parametrize("batch_size", [1, 2, 3, None])
def test_a_long_video_is_the_same_in_any_batch(long_run, long_videos, batch_size):
    prompts, expected = long_videos
    assert expected.shape == (3, 7, 8, 8, 3)
    assert min(largest_difference(expected[i], expected[i - 1]) for i in range(3)) > 5
    model = videogen_jax.load(long_run, batch_size=batch_size)
    rows = batch_size or 3
    for start in range(0, 3, rows):
        part = slice(start, start + rows)
        chunks = list(model.stream(prompts[part], 7, seeds=SEEDS[:3][part]))
        assert [chunk.shape[1] for chunk in chunks] == [2, 2, 2, 1]
        assert_same_pixels(np.concatenate(chunks, axis=1), expected[part])


def test_a_longer_video_begins_as_a_shorter_one(long):
    frames = {
        count: np.concatenate(list(long.stream([LEFT], count)), axis=1) for count in (1, 2, 3, 6)
    }
    for count, video in frames.items():
        assert video.shape == (1, count, 8, 8, 3)
        np.testing.assert_array_equal(video, frames[6][:, :count])
    np.testing.assert_array_equal(
        np.concatenate(list(long.stream([[(0, LEFT)]], 3, seeds=[0])), axis=1), frames[3]
    )


def test_a_chunk_is_there_before_the_rest_is_made(long, monkeypatch):
    under_way, roll = [], from_checkpoint.roll

    def note(rollout, *arguments):
        def extend(*inputs):
            under_way.append(1)
            return rollout.extend(*inputs)

        return roll(rollout._replace(extend=extend), *arguments)

    monkeypatch.setattr(from_checkpoint, "roll", note)
    chunks = long.stream([LEFT], 1_000_000)
    assert not under_way
    assert next(chunks).shape == (1, 2, 8, 8, 3) and len(under_way) == 2  # one is ahead
    assert next(chunks).shape == (1, 2, 8, 8, 3) and len(under_way) == 3


def test_long_videos_that_cannot_be_are_refused(long, pictured):
    def refuse(sentence, model=long, prompts=(LEFT,), frames=5, **options):
        with pytest.raises(ValueError, match=sentence) as error:
            model.stream(list(prompts), frames, **options)
        assert_sentence(error)

    refuse("3 long videos are more than the batch size of 2", prompts=[LEFT] * 3)
    refuse("makes videos of 4 frames and continues none", pictured)
    refuse("A chunk of 4 latent frames .* choose one of 1 to 3", chunk=4)
    refuse("A prefix of 3 latent frames .* choose one of 1, 2", prefix=3)
    refuse("num_frames is 0: give a number at least 1", frames=0)
    refuse("There are 2 seeds for 1 prompts", seeds=[1, 2])
    refuse(r"begin at its frames \[2\]: begin with 0", prompts=[[(2, LEFT)]])
    refuse(r"begin at its frames \[0, 4, 2\]: .* let them", prompts=[[(0, UP), (4, UP), (2, LEFT)]])
    refuse(r"begin at its frames \[\]: begin with 0", prompts=[[]])
    refuse("did you mean 'guidance_scale'", guidance_scal=2.0)
    refuse("guidance_scale is -2", guidance_scale=-2.0)
    refuse("motion is 256", motion=256.0)
    refuse("words outside the vocabulary: 'purpel'", prompts=[[(0, LEFT), (2, "a purpel one")]])
    refuse("words outside the vocabulary: 'purpel'", negative_prompt="a purpel one")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"guidance_scal": 2.0},
            "no sampler setting 'guidance_scal': did you mean 'guidance_scale'",
        ),
        (
            {"inference_steps": 2},
            "no sampler setting 'inference_steps': did you mean 'num_inference_steps'",
        ),
        (
            {"xyz": 2},
            "no sampler setting 'xyz': choose among sampler, num_inference_steps, spacing",
        ),
        ({"guidance_scale": -1.0}, r"guidance_scale is -1\.0: give a number at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan: give a finite number"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high': give a number"),
        ({"first_frame_guidance_scale": -2.0}, r"first_frame_guidance_scale is -2\.0"),
        ({"known_guidance_scale": 2.0}, "known_guidance_scale is 2, but this model takes no known"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale is 1\.5: give a number from 0 to 1"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval is \(2\.0, 1\.0\): give two"),
        (
            {"guidance_interval": (-1.0, 1.0)},
            r"guidance_interval is \(-1\.0, 1\.0\): give a number",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps is 0: give a number at least 1"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps is 2\.5: give a whole number"),
        (
            {"num_inference_steps": 1001},
            "num_inference_steps is 1001, .*: choose between 1 and 1000",
        ),
        ({"sampler": "dimm"}, r"sampler 'dimm' \(ddim\?\): choose one of ddim, ddpm, euler"),
        ({"spacing": "even"}, "spacing 'even': choose one of leading, trailing, linspace"),
        ({"eta": 2.0}, r"eta is 2\.0: choose a value between 0 and 1"),
        ({"eta": 0.5, "sampler": "euler"}, r"eta is 0\.5, but euler solves an ODE"),
        ({"clip_x0": 1}, "clip_x0 is 1: give True or False"),
        ({"batch_size": 0}, "batch_size is 0: give a number at least 1"),
        ({"motion": 256.0}, r"motion is 256\.0: give a number from 0 to 255"),
        ({"motion": -1}, r"motion is -1\.0"),
        ({"seeds": [1, 2]}, "There are 2 seeds for 1 prompts: give one each"),
        ({"seeds": []}, "There are 0 seeds for 1 prompts"),
        ({"seeds": [-1]}, "There is no seed -1: give whole numbers from 0 to 4294967295"),
        ({"seeds": [2**32]}, "There is no seed 4294967296: give"),
        ({"negative_prompt": "a purpel one"}, "words outside the vocabulary: 'purpel'"),
    ],
)
def test_what_does_not_do_is_named_before_anything_is_made(plain, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        plain.iterate([LEFT], **options)
    assert_sentence(error)


def test_prompts_are_a_list(plain, long):
    for prompts in (LEFT, "", [], ()):
        for make in (plain, plain.iterate, lambda prompts: long.stream(prompts, 5)):
            with pytest.raises(ValueError, match="The prompts are .*: give a list") as error:
                make(prompts)
            assert_sentence(error)
    with pytest.raises(ValueError, match="words outside the vocabulary: 'purpel'"):
        plain.iterate([LEFT, "a purpel circle"])


def test_a_model_that_never_saw_captions_alone_wants_a_frame(tmp_path):
    config = image_config()
    config.tasks.update({"text": 0.0, "image": 1.0})
    model = videogen_jax.load(write_run(tmp_path, config))
    with pytest.raises(ValueError, match="never learned videos from their caption alone"):
        model.iterate([LEFT])
    assert len(model([LEFT], first_frame=picture(0), num_inference_steps=1)) == 1


def write_config(folder, config, **lines):
    saved_config.write_config(folder, config)
    if lines:
        path = folder / "config.json"
        saved = json.loads(path.read_text())
        for name, value in lines.items():
            section, key = name.split("__")
            saved[section][key] = value
        path.write_text(json.dumps(saved))
    return folder


def refuse_to_load(folder, kind, sentence, **options):
    with pytest.raises(kind, match=sentence) as error:
        videogen_jax.load(folder, **options)
    assert_sentence(error)


def test_folders_that_are_no_run_of_videos_are_refused(tmp_path):
    refuse_to_load(tmp_path, FileNotFoundError, r"There is no .*config\.json: name the --workdir")
    nowhere = tmp_path / "nowhere"
    refuse_to_load(nowhere, FileNotFoundError, r"There is no .*nowhere.config\.json")
    write_config(tmp_path, plain_config())
    refuse_to_load(tmp_path, ValueError, "There is no checkpoint in .*checkpoints: train first")
    (tmp_path / "checkpoints").mkdir()
    refuse_to_load(tmp_path, ValueError, "There is no checkpoint in .*checkpoints: train first")
    write_config(tmp_path, tiny_vae_config())
    refuse_to_load(tmp_path, ValueError, "is the run of an autoencoder, which makes no videos")
    # Loading only reads.
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "config.json"}


def test_options_that_no_longer_exist_are_named(tmp_path, plain_run):
    write_config(tmp_path, plain_config(), model__window=3)
    refuse_to_load(
        tmp_path,
        ValueError,
        r"config\.json has the option 'model\.window', .* use the version that wrote it, or remove the line",
    )
    write_config(tmp_path, plain_config(), model__width="wide")
    refuse_to_load(tmp_path, ValueError, r"config\.json is not valid: model\.width is 'wide'")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": 5}))  # no section
    refuse_to_load(tmp_path, ValueError, r"config\.json has the option 'memory'")


def test_a_run_that_saved_some_activations_recomputes_its_blocks(tmp_path):
    """Regression: remat=selective is gone; runs that were trained with it, or beside it, still open."""
    for remat, now in (("selective", "block"), ("none", "none")):
        write_config(tmp_path, plain_config(), memory__remat=remat, memory__saved=["mlp"])
        assert saved_config.read_config(tmp_path).memory.remat == now


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ema": "decay_0.9", "ema_width": 0.1}, "give one of"),
        ({"ema": "decay_0.5"}, r"no moving average 'decay_0\.5' in .*: choose one of decay_0\.9"),
        ({"dtype": "float8"}, r"'float8' .*choose one of float32, bfloat16, float16"),
        ({"step": 2}, "no checkpoint of step 2 in .*: choose one of 1"),
        ({"batch_size": 0}, "batch_size is 0: give a number at least 1"),
        ({"batch_size": -1}, "batch_size is -1: give a number at least 1"),
    ],
)
def test_arguments_that_do_not_fit_the_run_are_refused(plain_run, options, sentence):
    refuse_to_load(plain_run, ValueError, sentence, **options)


def test_a_width_wants_a_run_with_snapshots(plain_run):
    with pytest.raises(ValueError, match=r"ema\.widths") as error:
        videogen_jax.load(plain_run, ema_width=0.1)
    assert_sentence(error)


def test_averages_steps_and_types_are_chosen(plain_run, plain):
    chosen = videogen_jax.load(plain_run, step=1, ema="decay_0.9", dtype="float32")
    np.testing.assert_array_equal(chosen([LEFT]), plain([LEFT]))
    half = videogen_jax.load(plain_run, dtype="bfloat16")
    assert half.describe(half.settings)["dtype"] == "bfloat16"
    difference = np.abs(half([LEFT]).astype(int) - plain([LEFT]))
    assert 0 < difference.mean() < 10


@pytest.mark.parametrize("text", [{}, {"encoder": "clip", "path": "owner/none"}])
def test_weights_that_the_hub_does_not_give_are_named(tmp_path, monkeypatch, text):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    mean = [0.0] * 16
    info = LatentInfo("taef2", "0" * 64, "float16", [2, 2, 16], False, mean, [1.0] * 16)
    workdir = write_run(tmp_path / "run", latent_config(**text), info)
    file = "config.json" if text else r"\w+\.safetensors"
    sentence = f"There is no local owner/none/{file} and .*: put {file} of the hub's owner/none at"
    refuse_to_load(workdir, FileNotFoundError, sentence)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_video_is_saved_and_reads_back(tmp_path, suffix):
    ramp = np.linspace(0, 250, 16).astype(np.uint8)
    video = np.stack([np.roll(np.tile(ramp, (16, 1)), 4 * t, axis=1) for t in range(4)])
    video = np.repeat(video[..., None], 3, axis=3)
    path = tmp_path / f"a.{suffix}"
    videogen_jax.save_video(path if suffix == "mp4" else str(path), video, 8.0)
    if suffix == "gif":
        with Image.open(path) as image:
            assert image.n_frames == 4
            read = []
            for frame in range(4):
                image.seek(frame)
                read.append(np.asarray(image.convert("RGB")))
    else:
        read = video_io.read_video(path)
    assert np.shape(read) == video.shape
    assert np.abs(np.stack(read).astype(int) - video).mean() < 8


def test_a_video_of_no_known_ending_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"a\.avi: name it with one of \.mp4, \.webm, \.gif"):
        videogen_jax.save_video(tmp_path / "a.avi", np.zeros((2, 8, 8, 3), np.uint8), 8.0)
    assert not list(tmp_path.iterdir())


def test_sampling_loads_no_tensorflow_and_nothing_of_training(long_run, tmp_path):
    """In a process of its own, as a notebook does."""
    lines = [
        "import sys",
        "import videogen_jax",
        f"model = videogen_jax.load({str(long_run)!r})",
        f"video = model([{LEFT!r}], num_inference_steps=1)[0]",
        f"next(model.stream([{LEFT!r}], 3, num_inference_steps=1))",
        f"videogen_jax.save_video({str(tmp_path / 'a.mp4')!r}, video, model.fps)",
        "print(*sys.modules)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(done.stdout.split())
    assert "videogen_jax.generate.from_checkpoint" in loaded and (tmp_path / "a.mp4").is_file()
    assert not {"tensorflow", "optax", "videogen_jax.train"} & loaded


def test_a_damaged_newest_step_is_passed_over_by_name(plain_run, tmp_path, caplog):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(plain_run, tmp_path / "run")
    shutil.copytree(folder / "1", folder / "2")
    assert from_checkpoint.load(tmp_path / "run").step == 2
    largest = max((folder / "2" / "ema").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert from_checkpoint.load(tmp_path / "run").step == 1
    assert f"2 is damaged ({largest.relative_to(folder / '2')} has other bytes" in caplog.text
    with pytest.raises(ValueError, match=r"Checkpoint 2 in .* is damaged .*there are: 1\)"):
        from_checkpoint.load(tmp_path / "run", step=2)
