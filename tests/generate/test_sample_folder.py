"""The verb writes each batch when it is made, and continues where it was stopped; with a stand-in for the model."""

import gc
import json
import os
import shutil
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from tests.conftest import ROOT
from videogen_jax import sample
from videogen_jax.data import video_io
from videogen_jax.generate import contact_sheet, from_checkpoint, sample_folder


class Stopped(Exception):
    """Stands for a kill."""


class FakeModel:
    """Videos of one grey, 16 + 20 seed.

    `made` has the seeds of each batch, `alive` the number of batches in memory when it begins.
    """

    fps, shape = 8.0, (4, 16, 24, 3)

    def __init__(self, step, batch_size):
        self.step, self.batch_size = step, batch_size
        self.made, self.alive, self.stop_at = [], [], None
        self._batches = []

    def choose_settings(self, count, **changes):
        return types.SimpleNamespace(guidance_scale=changes.get("guidance_scale", 2.0))

    def describe(self, settings, negative_prompt="", motion=None):
        recipe = {"step": self.step, "version": "1", "negative_prompt": negative_prompt}
        return recipe | {"guidance_scale": settings.guidance_scale, "interval": (0.5, 1.0)}

    def plan_batches(self, prompts, *, seeds, **_):
        def make(part):
            gc.collect()
            self.alive.append(sum(batch() is not None for batch in self._batches))
            if len(self.made) == self.stop_at:
                raise Stopped
            self.made.append([seeds[i] for i in part])
            levels = np.uint8([16 + 20 * seeds[i] for i in part])
            videos = np.broadcast_to(levels[:, None, None, None, None], (len(part), *self.shape))
            videos = videos.copy()
            self._batches.append(weakref.ref(videos))
            return videos

        starts = range(0, len(prompts), self.batch_size)
        parts = [range(i, min(i + self.batch_size, len(prompts))) for i in starts]
        return [(part, lambda part=part: make(part)) for part in parts]

    def embed(self, captions):
        assert captions == sorted(set(captions))

    def describe_rollout(self, num_frames, chunk, prefix):
        return {"num_frames": num_frames, "prefix_lengths": (1, 2)}

    def stream(self, timelines, num_frames, *, seeds, **_):
        """Three frames at a time; `stop_at` counts the chunks of all calls."""

        def make():
            self.made.append(seeds)
            for start in range(0, num_frames, 3):
                self.alive.append(start)
                if len(self.alive) - 1 == self.stop_at:
                    raise Stopped
                count = min(3, num_frames - start)
                levels = np.uint8([16 + 20 * seed + 5 * start for seed in seeds])
                shape = (len(seeds), count, *self.shape[1:])
                yield np.broadcast_to(levels[:, None, None, None, None], shape)

        return make()


@pytest.fixture
def workdir(tmp_path):
    for step in (7, 9):
        folder = tmp_path / "run" / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        os.utime(folder, (1_700_000_000, 1_700_000_000 + step))
    return tmp_path / "run"


@pytest.fixture
def call(workdir, monkeypatch):
    """Runs the verb: (output folder, batch to be stopped at, newest step, flags) to the model."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def run(output, stop_at=None, newest=7, **options):
        models = []

        def load(path, *, step, batch_size, **_):
            models.append(FakeModel(step or newest, batch_size))
            models[-1].stop_at = stop_at
            return models[-1]

        monkeypatch.setattr(from_checkpoint, "load", load)
        monkeypatch.setattr(sample.saved_config, "read_config", lambda folder: {})
        options = {"prompts": ["a", "b", "c"], "num_videos": 2, "batch_size": 2} | options
        options |= {"workdir": str(workdir), "output_dir": str(output)}
        values = {
            name: list(value) if isinstance(value, list) else str(value)
            for name, value in options.items()
        }
        with flagsaver.as_parsed(**values):
            sample.write_samples()
        return models[0]

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def listing(folder):
    return json.loads((folder / "samples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_stopped_call_continues_and_the_result_is_that_of_an_undisturbed_one(
    call, tmp_path, stop_at
):
    whole = call(tmp_path / "whole")
    assert whole.made == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(Stopped):
        call(tmp_path / "out", stop_at=stop_at)
    begun = listing(tmp_path / "out")
    assert len(begun["videos"]) == 2 * stop_at
    assert begun["unfinished"]["missing"] == 6 - 2 * stop_at
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2 * stop_at
    again = call(tmp_path / "out")
    assert again.made == whole.made[stop_at:]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert "unfinished" not in listing(tmp_path / "out")
    assert call(tmp_path / "out").made == []  # nothing is left to do
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("stop_at", [0, 2, 4])
def test_long_videos_continue_too(call, tmp_path, stop_at):
    options = {"num_frames": 8, "prompts": ["a", "b"], "num_videos": 2}
    assert call(tmp_path / "whole", **options).made == [[0, 1], [2, 3]]
    with pytest.raises(Stopped):
        call(tmp_path / "out", stop_at=stop_at, **options)
    assert len(list((tmp_path / "out").iterdir())) == 1 + 2 * (stop_at // 3 > 0)  # no half videos
    again = call(tmp_path / "out", **options)
    assert again.made == [[0, 1], [2, 3]][stop_at // 3 > 0 :]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert call(tmp_path / "out", **options).made == []
    assert "contact_sheet.png" not in contents(tmp_path / "out")


def test_a_checkpoint_that_training_removed_meanwhile_is_no_error(call, workdir, tmp_path):
    shutil.rmtree(workdir / "checkpoints" / "7")
    call(tmp_path / "out")
    assert "saved_at" not in listing(tmp_path / "out")


def test_what_a_killed_process_left_is_removed(call, tmp_path):
    call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "out", stop_at=1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f".0003_b.mp4.{gone.pid}.unfinished", f".0003_b.mp4.{2**80}.unfinished"):
        (tmp_path / "out" / name).write_bytes(b"half a video")
    kept = [f".0003_b.mp4.{os.getppid()}.unfinished", f".mine.mp4.{gone.pid}.unfinished"]
    for name in kept:  # of a process that runs, and of another file
        (tmp_path / "out" / name).write_bytes(b"")
    call(tmp_path / "out")
    for name in kept:
        (tmp_path / "out" / name).unlink()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_video_is_on_the_disk_before_the_next_batch_and_in_memory_no_longer(call, tmp_path):
    model = call(tmp_path / "out", num_videos=4)
    assert len(model.alive) == 6 and max(model.alive) <= 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"),
    ],
)
def test_a_lost_or_damaged_video_is_made_again(call, tmp_path, spoil):
    call(tmp_path / "out")
    before = contents(tmp_path / "out")
    spoil(tmp_path / "out" / "0003_b.mp4")
    assert call(tmp_path / "out").made == [[2, 3]]
    assert contents(tmp_path / "out") == before


def test_a_lost_sheet_or_listing_is_made_again(call, tmp_path):
    call(tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "contact_sheet.png").unlink()
    assert call(tmp_path / "out").made == []
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "samples.json").write_text("{")
    assert len(call(tmp_path / "out").made) == 3
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance_scale": 3}, "guidance_scale was 2.0, is 3.0"),
        ({"prompts": ["a", "b", "d"]}, "there were other prompts, seeds or formats"),
        ({"seed": 1}, "there were other prompts, seeds or formats"),
        ({"format": "gif"}, "there were other prompts, seeds or formats"),
        ({"num_videos": 1}, "there were 6 videos, now there are 3"),
        ({"newest": 9}, "step was 7, is 9"),
    ],
)
@pytest.mark.parametrize("stop_at", [None, 2])
def test_another_recipe_starts_anew_and_says_what_differs(
    call, tmp_path, caplog, change, sentence, stop_at
):
    if stop_at and "newest" in change:
        pytest.skip("an unfinished call keeps its checkpoint")
    try:
        call(tmp_path / "out", stop_at=stop_at)
    except Stopped:
        pass
    model = call(tmp_path / "out", **change)
    assert sentence in caplog.text and "All are made anew" in caplog.text
    assert sum(map(len, model.made)) == len(listing(tmp_path / "out")["videos"])
    fresh = call(tmp_path / "fresh", **change)
    assert fresh.made == model.made
    new = contents(tmp_path / "fresh")
    assert new.items() <= contents(tmp_path / "out").items()


def test_an_unfinished_call_keeps_its_checkpoint_while_the_run_trains_on(call, tmp_path, caplog):
    caplog.set_level("INFO")
    call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "out", stop_at=1)
    assert call(tmp_path / "out", newest=9).step == 7
    assert "Continuing with step 7" in caplog.text
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Another call takes the newest, though there are unfinished videos.
    with pytest.raises(Stopped):
        call(tmp_path / "other", stop_at=1)
    assert call(tmp_path / "other", newest=9, guidance_scale=5).step == 9


def test_a_checkpoint_of_the_same_step_that_was_saved_again_is_another_recipe(
    call, workdir, tmp_path, caplog
):
    call(tmp_path / "out")
    os.utime(workdir / "checkpoints" / "7", (1_700_000_000, 1_800_000_000))
    assert len(call(tmp_path / "out").made) == 3
    assert "saved_at was" in caplog.text


def test_another_picture_of_the_same_name_is_another_recipe(call, tmp_path):
    picture = tmp_path / "first.png"
    for level, batches in ((0, 3), (0, 0), (255, 3)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(picture)
        model = call(tmp_path / "out", image=[str(picture)])
        assert len(model.made) == batches


def test_the_folder_is_tried_before_the_model_is_loaded(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(sample, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(OSError, match=r"file/out cannot be written to .*--output_dir\."):
        call(tmp_path / "file" / "out")


def test_a_folder_without_a_run_is_left_as_it_is(tmp_path):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(workdir=str(tmp_path), prompts=["a"]):
        with pytest.raises(FileNotFoundError, match=r"no .*config\.json: name the --workdir"):
            sample.write_samples()
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_shows_the_files(call, tmp_path):
    call(tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    factor = 4  # 16 pixels become 64
    row = contact_sheet.LINE + 16 * factor + contact_sheet.GAP
    assert sheet.shape == (6 * row + contact_sheet.GAP, 4 * (24 * factor + 4) + 4, 3)
    for seed in range(6):
        level = sheet[contact_sheet.GAP + seed * row + contact_sheet.LINE + 32, 50].astype(int)
        assert np.abs(level - (16 + 20 * seed)).max() <= 3


def test_a_sheet_of_large_and_many_videos_is_bounded(tmp_path, monkeypatch):
    frames = np.zeros((30, 512, 1024, 3), np.uint8)
    read = lambda *_: ((0.0, frame) for frame in frames)  # noqa: E731
    monkeypatch.setattr(video_io, "read_frames", read)
    assert contact_sheet.read_thumbnails(tmp_path / "x.mp4", 8).shape == (8, 128, 256, 3)
    rows = []
    monkeypatch.setattr(contact_sheet, "write_sheet", lambda path, files, *_: rows.append(files))
    entries = [{"file": f"{i}.mp4", "prompt": "a", "seed": i} for i in range(500)]
    sample_folder.SampleFolder(tmp_path, {}, 8.0, entries, {}).finish()
    assert len(rows[0]) == contact_sheet.MOST_ROWS == 64


@pytest.mark.parametrize(
    "prompt", ["x" * 300, "赤い円が左へ動く" * 40, "🐈 kот" * 90, "𠜎" * 99, "!?", ""]
)
@pytest.mark.parametrize("number", [0, 123_456])
def test_names_of_any_script_fit_a_file_system(tmp_path, prompt, number):
    name = sample_folder.name_file(number, prompt, "webm")
    unfinished = f".{name}.{2**22}.unfinished"  # of `video_writer`
    assert len(unfinished.encode()) <= 255
    (tmp_path / unfinished).touch()
    assert name.startswith(f"{number:04d}_") and name.endswith(".webm")
    kept = name.encode().decode()  # no half characters
    assert "\ufffd" not in kept


def test_names_of_earlier_versions_stay():
    assert sample_folder.name_file(3, "A red circle, moving left!", "mp4") == (
        "0003_A_red_circle_moving_left.mp4"
    )
    assert sample_folder.name_file(3, "ab " * 40, "mp4") == f"0003_{('ab_' * 40)[:60]}.mp4"


def test_names_that_the_locale_cannot_write_are_told(tmp_path):
    code = "from videogen_jax.generate import sample_folder as s; print(s.name_file(0, 'gr\\xfcn', 'mp4'))"
    run = lambda **more: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"} | more,
        capture_output=True,
        encoding="utf-8",
    )
    assert run().stdout == "0000_grün.mp4\n"  # the C locale is UTF-8 to Python
    failed = run(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "'0000_gr\\xfcn.mp4' cannot be written in the encoding of this system" in failed.stderr
