"""The verb: which pictures the model is told of, and videos of any length into files."""

import contextlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from tests.conftest import ROOT
from tests.data.packed import random_clips, write_records
from tests.saved_runs import CAPTIONS, image_config, joint_config, long_config, write_run
from tests.tiny import make_run
from videogen_jax import sample
from videogen_jax.data import video_io, video_writer
from videogen_jax.generate import frame_flags, from_checkpoint, prompts
from videogen_jax.run import checkpoint
from videogen_jax.train import loop, run_kinds, validation

pytestmark = pytest.mark.slow

LEFT, UP = CAPTIONS


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """Image to video, trained for two steps by the loop itself."""
    folder = tmp_path_factory.mktemp("trained")
    config = image_config()
    clips = random_clips((4, 8, 8), 4)
    data = write_records(folder / "data", clips, 4, 2, CAPTIONS * 2, held_out=1)
    config.data.path = str(data)
    config.train.update({"steps": 2, "log_every": 1})
    config.learning_rate.warmup_steps = 1
    config.sample.every = config.checkpoint.every = 2
    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save

        def note_save(manager, state, *arguments):
            SAVED.add(int(state.step))
            save(manager, state, *arguments)

        patch.setattr(checkpoint, "save", note_save)
        log_samples = note_calls("samples", run_kinds.DIFFUSION.make_log_samples)
        kind = run_kinds.DIFFUSION._replace(make_log_samples=log_samples)
        patch.setattr(run_kinds, "find_kind", lambda config: kind)
        evaluate = note_calls("validation", validation.make_evaluate)
        patch.setattr(validation, "make_evaluate", evaluate)
        loop.train(config, folder / "run")
    return folder / "run"


SAVED = set()  # steps that the loop has handed to the checkpoints
SEEN = {}  # what the loop samples or validates to (parameters, whether their step was saved by then)


def note_calls(name, make):
    """Notes the parameters that the loop hands to what `make` returns."""

    def make_noting(*arguments):
        run = make(*arguments)

        def call(writer, step, params):
            SEEN[name] = jax.device_get(params), step in SAVED
            return run(writer, step, params)

        return call

    return make_noting


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("image"), image_config())


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("long"), long_config())


@pytest.fixture(scope="module")
def joint_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("joint"), joint_config())


@pytest.fixture
def told(monkeypatch):
    """The conditions that short videos are made by."""
    seen, make = [], from_checkpoint.make_generator

    def make_generator(programs):
        generate = make(programs)
        return lambda params, own, seeds: seen.append((own, seeds)) or generate(params, own, seeds)

    monkeypatch.setattr(from_checkpoint, "make_generator", make_generator)
    return seen


@pytest.fixture
def rolled(monkeypatch):
    """What long videos are made by: (condition of each chunk, frames to begin with, chunks under way)."""
    seen, roll = [], from_checkpoint.roll

    def note(rollout, params, condition_of, seeds, chunks, beginning=None):
        conditions, under_way = [condition_of(i) for i in range(chunks)], []
        seen.append((conditions, beginning, under_way))

        def extend(*arguments):
            under_way.append(1)
            return rollout.extend(*arguments)

        counted = rollout._replace(extend=extend)
        yield from roll(counted, params, condition_of, seeds, chunks, beginning)

    monkeypatch.setattr(from_checkpoint, "roll", note)
    return seen


def run(workdir, output=None, **options):
    """Runs the verb in this process; returns samples.json."""
    options = {"workdir": str(workdir), "output_dir": str(output)} | options
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = {
        name: list(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in options.items()
    }
    with flagsaver.as_parsed(**options):
        sample.write_samples()
    return json.loads((output / "samples.json").read_text())


def read_all(output, recipe):
    return [video_io.read_video(output / entry["file"]) for entry in recipe["videos"]]


def picture(path, height, width, seed=0, alpha=None):
    """Writes a PNG of noise and returns its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if alpha is None:
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(np.dstack([pixels, alpha])).save(path)
    return pixels


def noisy(pixels, seed, frames, sigma=0.02):
    """What a model is told of a known first frame, at all frames: with noise of the video's own seed."""
    noise = np.random.default_rng([seed, 0]).standard_normal((frames, *pixels.shape))
    return pixels / 127.5 - 1 + sigma * noise[0]


def test_a_trained_run_is_told_of_the_picture(trained_run, told, tmp_path, caplog):
    wide = picture(tmp_path / "wide.png", 8, 16)
    caplog.set_level("INFO")
    options = {"prompts": [LEFT], "num_videos": 2, "seed": 5, "image": [tmp_path / "wide.png"]}
    recipe = run(trained_run, tmp_path / "out", **options)
    assert "Frame 0 of 8x16 pixels has another aspect" in caplog.text
    assert "resized to cover 8x8, and cropped to the centre" in caplog.text
    ((condition, seeds),) = told
    assert seeds == [5, 6]
    assert condition["mask"].tolist() == [[1, 0, 0, 0]] * 2
    np.testing.assert_allclose(condition["augmentation"], np.log(0.02) / 4, rtol=1e-6)
    for known, seed in zip(condition["known"], seeds, strict=True):
        expected = noisy(wide[:, 4:12], seed, 4)
        np.testing.assert_allclose(known, np.stack([expected] * 4), atol=1e-6)
    assert recipe["image"] == [str(tmp_path / "wide.png")] and "known" not in recipe
    assert [video["seed"] for video in recipe["videos"]] == [5, 6]
    assert [video.shape for video in read_all(tmp_path / "out", recipe)] == [(4, 8, 8, 3)] * 2


def test_training_shows_what_it_makes_of_held_out_first_frames(trained_run):
    shown = {path.stem for path in (trained_run / "samples").glob("*.mp4")}
    assert shown == {"step_00000002", "first_frames_00000002"}


def test_training_samples_and_validates_the_average_and_saves_before_it_samples(trained_run):
    model = from_checkpoint.load(trained_run, step=2)
    average = jax.device_get(model.params)
    with checkpoint.open_checkpoints(trained_run, read_only=True) as manager:
        raw = checkpoint.restore(manager, make_run(image_config()).abstract).params
    differences = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), average, raw)
    assert max(jax.tree.leaves(differences)) > 1e-4
    for name, is_saved in (("samples", True), ("validation", False)):
        params, saved = SEEN[name]
        jax.tree.map(np.testing.assert_array_equal, params, average)
        assert saved == is_saved
    lines = (trained_run / "samples" / "step_00000002.txt").read_text().splitlines()
    assert lines == list(CAPTIONS)


def test_one_scale_for_text_and_frames_stays_one(tmp_path):
    """As in configs/i2v_512.py; and without text in its training, a model wants a picture."""
    config = image_config()
    config.sample.update({"guidance_scale": 3.0, "num_inference_steps": 1})
    config.sample.known_guidance_scale = 3.0
    config.tasks.update({"text": 0.0, "image": 1.0})
    workdir = write_run(tmp_path / "run", config)
    picture(tmp_path / "first.png", 8, 8)
    options = {"prompts": [LEFT], "guidance_scale": 5.0, "image": [tmp_path / "first.png"]}
    recipe = run(workdir, tmp_path / "out", **options)
    assert (recipe["guidance_scale"], recipe["known_guidance_scale"]) == (5.0, 5.0)
    with pytest.raises(
        ValueError, match=r"from their caption alone .* \(--image\), or --num_frames"
    ):
        run(workdir, tmp_path / "out", prompts=[LEFT])


def test_transparent_pixels_are_white(image_run, told, tmp_path):
    alpha = np.repeat(np.uint8([[0] * 4 + [255] * 4]), 8, axis=0)
    pixels = picture(tmp_path / "alpha.png", 8, 8, alpha=alpha)
    run(image_run, tmp_path, prompts=[LEFT], image=[tmp_path / "alpha.png"], num_inference_steps=1)
    shown = np.where(alpha[..., None] == 255, pixels, 255)
    known = told[0][0]["known"]
    np.testing.assert_allclose(known[0, 0], noisy(shown, 0, 4), atol=1e-6)


def test_pictures_for_each_caption(image_run, told, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    pixels = [picture(file, 8, 8, seed) for seed, file in enumerate(files)]
    options = {"num_inference_steps": 1, "batch_size": 2}  # the programs of the test before
    run(image_run, tmp_path, prompts=[LEFT, UP], image=files, num_videos=2, **options)
    known = np.concatenate([condition["known"] for condition, _ in told])
    for seed in range(4):
        np.testing.assert_allclose(known[seed, 0], noisy(pixels[seed // 2], seed, 4), atol=1e-6)
    with pytest.raises(ValueError, match="2 pictures for 3 captions: give one --image for all"):
        run(image_run, tmp_path, prompts=[LEFT, UP, UP], image=files)


def test_a_picture_changes_the_video_and_no_picture_is_no_mask(image_run, told, tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    options = {"prompts": [LEFT], "num_inference_steps": 1}
    plain = read_all(tmp_path / "b", run(image_run, tmp_path / "b", **options))
    options["image"] = [tmp_path / "a.png"]
    shown = read_all(tmp_path / "c", run(image_run, tmp_path / "c", **options))
    assert not told[0][0]["mask"].any() and not told[0][0]["known"].any()
    assert np.abs(plain[0].astype(int) - shown[0]).max() > 5
    # A scale of its own asks a third time.
    recipe = run(image_run, tmp_path / "d", known_guidance_scale=1.5, **options)
    assert recipe["known_guidance_scale"] == 1.5
    stronger = read_all(tmp_path / "d", recipe)
    assert np.abs(stronger[0].astype(int) - shown[0]).max() > 5


def test_any_frames_may_be_known(joint_run, told, tmp_path):
    clip = np.repeat(np.uint8([[[[10]]], [[[90]]], [[[200]]]]), 3, axis=3)
    clip = clip.repeat(8, axis=1).repeat(8, axis=2)
    video_writer.write_video(tmp_path / "clip.mp4", clip, 8)
    last = picture(tmp_path / "last.png", 8, 8)
    known = [f"0-1:{tmp_path / 'clip.mp4'}", f"3:{tmp_path / 'last.png'}"]
    recipe = run(joint_run, tmp_path, prompts=[LEFT], known=known, num_inference_steps=1)
    assert recipe["known"] == known
    ((condition, _),) = told
    assert condition["mask"].tolist() == [[1, 1, 0, 1]]
    noise = np.random.default_rng([0, 0]).standard_normal((4, 8, 8, 3))
    decoded = video_io.read_video(tmp_path / "clip.mp4")
    frames = np.stack([decoded[0], decoded[1], decoded[1], last]) / 127.5 - 1
    # A causal model sees at the third frame the nearest earlier one, as it is there.
    np.testing.assert_allclose(
        condition["known"][0], frames + 0.02 * noise[[0, 1, 1, 3]], atol=1e-6
    )


def test_known_frames_of_a_video_come_at_the_rate_of_the_model(tmp_path):
    clip = np.full((6, 8, 8, 3), np.uint8([10, 50, 90, 130, 170, 210])[:, None, None, None])
    video_writer.write_video(tmp_path / "clip.mp4", clip, 16)
    found = dict(frame_flags.read_known_frames(f"1-2:{tmp_path / 'clip.mp4'}", 8.0))
    assert sorted(found) == [1, 2]
    for number, level in ((1, 10), (2, 90)):  # every second frame
        assert abs(found[number].astype(int) - level).max() < 12


def test_known_frames_that_make_no_sense_are_refused(image_run, long_run, tmp_path):
    path = tmp_path / "a.png"
    picture(path, 8, 8)
    video_writer.write_video(tmp_path / "clip.mp4", np.zeros((3, 8, 8, 3), np.uint8), 8)

    def refuse(sentence, workdir=image_run, **options):
        with pytest.raises(ValueError, match=sentence):
            run(workdir, tmp_path, prompts=[LEFT], **options)

    refuse("does not understand 'last.png': write it like 15:last.png", known=["last.png"])
    refuse("does not understand '3-1:", known=[f"3-1:{path}"])
    refuse(r"several frames, but .*a\.png is one picture", known=[f"0-1:{path}"])
    refuse(r"wants 5 frames, but .*clip\.mp4 has 3", known=[f"0-4:{tmp_path / 'clip.mp4'}"])
    refuse("Frame 0 is given by --image and by --known", known=[f"0:{path}"], image=[path])
    refuse("Frame 2 is given twice", known=[f"2:{path}", f"1-2:{tmp_path / 'clip.mp4'}"])
    refuse("Frame 4 is said .* has frames 0 to 3", known=[f"4:{path}"])
    refuse(r"Frames 0, 3 are said .* \(tasks\.frames=0\)", known=[f"0:{path}", f"3:{path}"])
    refuse("model.conditioning='prefix' and knows no frames", long_run, image=[path])
    refuse("known_guidance_scale is 2, but this model", long_run, known_guidance_scale=2)
    refuse("--chunk is of long videos: give --num_frames too", chunk=2)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        run(image_run, tmp_path, prompts=[LEFT], image=[tmp_path / "nothing.png"])


def test_an_unreadable_picture_is_one_sentence(image_run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "videogen_jax.sample", f"--workdir={image_run}"]
    command += [f"--image={tmp_path / 'broken.png'}", "--prompts", LEFT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("sample: error: ")
    assert "broken.png cannot be read as an image" in sentence


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_long_video_has_the_frames_asked_for(long_run, tmp_path, suffix):
    options = {"num_frames": 7, "num_videos": 3, "batch_size": 2, "format": suffix, "seed": 4}
    recipe = run(long_run, tmp_path, prompts=[UP], **options)
    videos = read_all(tmp_path, recipe)
    assert [video.shape for video in videos] == [(7, 8, 8, 3)] * 3
    assert [(entry["prompt"], entry["seed"]) for entry in recipe["videos"]] == [
        (UP, 4),
        (UP, 5),
        (UP, 6),
    ]
    assert recipe["num_frames"] == 7 and recipe["chunk"] == 2 and recipe["prefix_lengths"] == [1, 2]
    assert all(entry["file"].endswith(suffix) for entry in recipe["videos"])
    assert np.abs(videos[0].astype(int) - videos[1]).max() > 5  # the partial batch is not a copy
    assert np.abs(videos[0].astype(int) - videos[2]).max() > 5


def test_frames_are_written_as_they_come(long_run, rolled, tmp_path, monkeypatch):
    writes = []

    @contextlib.contextmanager
    def open_writer(path, fps):
        yield lambda frames: writes.append((path.name, frames.shape, len(rolled[-1][2])))
        path.write_bytes(b"a video")

    monkeypatch.setattr(video_writer, "open_writer", open_writer)
    run(long_run, tmp_path, prompts=[UP], num_frames=9, num_videos=2)
    names = [name for name, _, _ in writes]
    assert len(writes) == 10 and len(set(names)) == 2 and names[0] != names[1]
    assert [shape[0] for _, shape, _ in writes[::2]] == [2, 2, 2, 2, 1]
    # One chunk is ahead of the one that is written.
    assert [made for _, _, made in writes[::2]] == [2, 3, 4, 5, 5]


def make_long(workdir, seeds, timeline=((0, UP),), frames=9, batch_size=16, **options):
    rows = min(batch_size, len(seeds))
    model = from_checkpoint.load(workdir, batch_size=rows)
    videos = []
    for start in range(0, len(seeds), rows):
        part = seeds[start : start + rows]
        chunks = model.stream([timeline] * len(part), frames, seeds=part, **options)
        videos.append(np.concatenate(list(chunks), axis=1))
    return np.concatenate(videos)


@pytest.fixture(scope="module")
def company(long_run):
    """Three videos, two at a time."""
    return make_long(long_run, [3, 4, 5], batch_size=2)


def test_a_seed_makes_the_same_video_in_any_company(long_run, company):
    assert company.shape == (3, 9, 8, 8, 3)
    for seed, video in zip([3, 5], company[[0, 2]], strict=True):
        alone = make_long(long_run, [seed])[0]
        assert np.abs(alone.astype(int) - video).max() <= 1
    # The videos move and differ, so that this says something.
    assert np.abs(np.diff(company.astype(int), axis=1)).max() > 5
    assert np.abs(company[0].astype(int) - company[2]).max() > 5


def test_a_schedule_is_obeyed_from_the_first_chunk_that_begins_in_it(
    long_run, company, rolled, tmp_path
):
    # Chunks begin at frames 0, 2, 4, ...: the second caption holds from 4 on.
    (tmp_path / "lines.txt").write_text(f"0: {UP}\n\n 3:  {LEFT} \n")
    options = {"num_frames": 9, "num_videos": 3, "seed": 3, "batch_size": 2}
    recipe = run(long_run, tmp_path, prompts_schedule=tmp_path / "lines.txt", **options)
    assert recipe["videos"][0]["prompt"] == f"0: {UP}; 3: {LEFT}"
    texts = np.stack([condition["text"][0] for condition in rolled[0][0]])  # (chunks, L)
    changes = np.any(texts != texts[0], axis=1)
    assert changes.tolist() == [False, False, True, True, True]
    changed = make_long(long_run, [3, 4, 5], [(0, UP), (3, LEFT)], batch_size=2)
    np.testing.assert_array_equal(changed[:, :4], company[:, :4])
    assert np.abs(changed[:, 4:].astype(int) - company[:, 4:]).max() > 5


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("0 a circle", "has the line '0 a circle': write each like"),
        ("0: a\n: b", "has the line ': b'"),
        ("5: a", "are 5: begin with 0"),
        ("0: a\n4: b\n4: c", "are 0, 4, 4: begin with 0, and let them rise"),
        ("0: a\n9: b\n4: c", "are 0, 9, 4"),
        ("\n", "are none"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(tmp_path, lines, sentence):
    (tmp_path / "lines.txt").write_text(lines)
    with pytest.raises(ValueError, match=sentence):
        prompts.read_schedule(tmp_path / "lines.txt")


def test_a_picture_is_told_beside_the_first_chunk(joint_run, rolled, tmp_path):
    pixels = picture(tmp_path / "a.png", 8, 8)
    options = {"num_frames": 5, "image": [tmp_path / "a.png"], "seed": 7, "num_videos": 2}
    recipe = run(joint_run, tmp_path, prompts=[UP], **options)
    assert recipe["image"] == [str(tmp_path / "a.png")]
    assert [len(video) for video in read_all(tmp_path, recipe)] == [5, 5]
    ((conditions, beginning, _),) = rolled
    assert beginning is None and len(conditions) == 3
    assert conditions[0]["mask"].tolist() == [[1, 0]] * 2
    for known, seed in zip(conditions[0]["known"], (7, 8), strict=True):
        np.testing.assert_allclose(known, [noisy(pixels, seed, 2)] * 2, atol=1e-6)
    assert not any(
        condition[name].any() for condition in conditions[1:] for name in ("known", "mask")
    )


def test_a_picture_is_the_first_latent_frame_of_a_model_that_goes_on_from_one(
    long_run, rolled, tmp_path
):
    pixels = picture(tmp_path / "a.png", 8, 8)
    options = {"num_frames": 6, "image": [tmp_path / "a.png"]}
    recipe = run(long_run, tmp_path, prompts=[UP], num_videos=3, batch_size=2, **options)
    assert [len(video) for video in read_all(tmp_path, recipe)] == [6] * 3
    for conditions, beginning, _ in rolled:
        assert len(conditions) == 3  # frame 0, and three times two
        np.testing.assert_allclose(beginning, [[pixels / 127.5 - 1]] * 2, atol=1e-6)
    videos = make_long(long_run, [0, 1], frames=6, first_frame=pixels)
    np.testing.assert_array_equal(videos[:, 0], [pixels] * 2)
    alone = make_long(long_run, [0], frames=1, first_frame=pixels)
    np.testing.assert_array_equal(alone, [[pixels]])
    other = make_long(long_run, [0, 1], frames=6, first_frame=255 - pixels)
    assert np.abs(videos[:, 1:].astype(int) - other[:, 1:]).max() > 5


def test_long_videos_that_cannot_be_are_refused(long_run, image_run, tmp_path):
    path = tmp_path / "a.png"
    picture(path, 8, 8)
    (tmp_path / "lines.txt").write_text(f"0: {UP}")

    def refuse(sentence, workdir=long_run, **options):
        with pytest.raises(ValueError, match=sentence):
            run(workdir, tmp_path, **{"num_frames": 6, "prompts": [UP]} | options)

    refuse(r"model\.causal is False.*train one like configs/long_512\.py", image_run)
    refuse("choose one of 1 to 3", chunk=4)
    refuse("prefix of 3 latent frames ahead of a chunk of 2 .*: choose one of 1, 2", prefix=3)
    refuse("a GIF cannot be: give --format=mp4 or webm", format="gif")
    refuse("begins with one --image, or with none", image=[path, path])
    refuse("begins with one --image, or with none", known=[f"0:{path}"])
    refuse("--prompts_schedule says it all", prompts_schedule=tmp_path / "lines.txt")
    refuse("words outside the vocabulary: 'purpel'", prompts=["a purpel circle"])
    assert not list(tmp_path.glob("*.mp4"))


def test_a_shorter_prefix_remembers_less(long_run, company):
    """The first chunk has no memory, the second sees one frame of it instead of two."""
    shorter = make_long(long_run, [3, 4, 5], batch_size=2, prefix=1)
    np.testing.assert_array_equal(shorter[:, :2], company[:, :2])
    assert np.abs(shorter[:, 2:].astype(int) - company[:, 2:]).max() > 5
