"""Augmentation that a run's data or model do not bear out is refused before anything is computed."""

from types import SimpleNamespace

import numpy as np
import pytest
from absl import logging

from tests.data.packed import random_clips, write_buckets, write_records
from tests.tiny import tiny_config
from videogen_jax import config as configs
from videogen_jax.data import bucketed_data
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.pipeline import DataError, PackedData
from videogen_jax.parallel import mesh as meshes
from videogen_jax.train import loop, run_kinds, setup


def packed(augment=None, latents=True):
    info = LatentInfo(
        "sd", "abc", "float16", [1, 1, 4], True, [0.0] * 4, [1.0] * 4, augment=augment
    )
    data = PackedData({}, {}, {}, 8, 8, 8, 8, 8.0, [])
    return data._replace(latents=info if latents else None, folder="FOLDER")


NOTED = {"fps_min": 2.0, "fps_max": 4.0, "jitter": 0.1, "variants": 3, "seed": 9}
LINES = {name: value for name, value in NOTED.items() if name != "seed"}


def test_latents_serve_the_augmentation_that_they_were_made_with_alone():
    config = tiny_config()
    setup.check_augmentation(config, packed())
    for name, value in LINES.items():
        with pytest.raises(ValueError, match=f"augment.{name} is .*: set --config.augment.{name}="):
            config.augment.update(LINES | {name: value + 1})
            setup.check_augmentation(config, packed(NOTED))
    config.augment.update(LINES)
    setup.check_augmentation(config, packed(NOTED))
    with pytest.raises(ValueError, match="the latents in FOLDER were encoded with 0.0: set"):
        setup.check_augmentation(config, packed())


def test_windows_are_cut_out_of_pixels():
    config = tiny_config()
    config.data.update({"height": 4, "width": 8})
    setup.check_augmentation(config, packed(latents=False))
    config.data.width = 9
    with pytest.raises(ValueError, match=r"data\.width is 9, but the clips in FOLDER were packed"):
        setup.check_augmentation(config, packed(latents=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.time_distribution": "log_normal"}, "choose objective.time_distribution unif"),
        ({"objective.prediction": "eps"}, "ends in pure noise"),
        (
            {"schedule.name": "flow", "schedule.zero_terminal_snr": False}
            | {"objective.prediction": "flow", "sample.sampler": "ddpm"},
            "ddpm",
        ),
        ({"sample.guidance_interval": (2.0, 1.0)}, "the lower first"),
    ],
)
def test_what_does_not_suit_the_schedule_is_refused_before_training(changes, message):
    config = tiny_config()
    config.sample.every = 0  # also where nothing is sampled on the way
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        run = run_kinds.DIFFUSION.make_run(configs.validate(config))
        run_kinds.DIFFUSION.make_generate(run)


def test_epochs_are_as_many_steps_as_batches_hold_all_clips(tmp_path):
    config = tiny_config()
    data = write_records(tmp_path / "plain", random_clips((4, 8, 8), 10), 4, 5)
    config.data.path = str(data)
    mesh, kind = meshes.make_mesh(), run_kinds.DIFFUSION
    assert setup.resolve_length(config, mesh, {}, kind) is config
    for epochs, steps in ((1.0, 3), (2.0, 5), (0.1, 1), (4.0, 10)):  # of 10 clips by 4
        config.train.epochs, config.learning_rate.warmup_steps = epochs, 0
        sets = bucketed_data.open_buckets(config.data.path)
        assert setup.resolve_length(config, mesh, sets, kind).train.steps == steps
    config.learning_rate.warmup_steps = 10
    with pytest.raises(ValueError, match=r"of 10 is not below train\.steps of 10"):
        kind.make_run(setup.resolve_length(config, mesh, sets, kind), mesh)


def test_epochs_of_buckets_count_the_batches_of_each(tmp_path):
    """64 tokens a batch: 4 clips of 4 x 2 x 2 tokens, or 16 images of 1 x 2 x 2."""
    config = tiny_config()
    clips = {"4x8x8": random_clips((4, 8, 8), 12), "1x8x8": random_clips((1, 8, 8), 24)}
    config.data.path = str(write_buckets(tmp_path / "data", clips))
    config.train.epochs, config.learning_rate.warmup_steps = 2.0, 0
    sets = bucketed_data.open_buckets(config.data.path)
    found = setup.resolve_length(config, meshes.make_mesh(), sets, run_kinds.DIFFUSION)
    counts = {data.frames: sum(data.lengths["train"]) for data in sets.values()}
    assert found.train.steps == np.ceil(2 * (counts[4] / 4 + counts[1] / 16))


@pytest.mark.parametrize(
    ("words", "mirrored"),
    [
        (["a", "dog"], True),
        (["turns", "clockwise"], False),
        (["the", "west", "wind"], False),
        (["moving", "left"], False),
        (["upright"], True),
    ],
)
def test_words_of_the_config_forbid_mirroring(words, mirrored):
    config = tiny_config()
    config.data.flip = True
    assert setup.mirrors(config, words) is mirrored
    config.data.no_flip_words = ("Dog",)
    assert setup.mirrors(config, words) is ("dog" not in words)
    config.data.no_flip_words = ()
    assert setup.mirrors(config, words) is True
    config.data.flip = False
    assert setup.mirrors(config, words) is False


def test_paths_of_data_are_absolute_in_the_saved_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config.data.path = "clips"
    config.vae.update({"name": "workdir", "path": "vae"})
    found = setup.absolute_paths(config)
    assert found.vae.path == str(tmp_path / "vae")
    assert found.data.path == str(tmp_path / "clips")
    assert found.evaluation.reference == ""
    assert setup.absolute_paths(found) == found


class FakeManager:
    def latest_step(self):
        return 5

    def wait_until_finished(self):
        pass


@pytest.mark.parametrize(("step", "saved"), [(5, []), (6, [6]), (4, [])])
def test_the_state_is_saved_when_the_data_cannot_be_read(monkeypatch, step, saved):
    steps = []
    monkeypatch.setattr(
        loop.checkpoint, "save", lambda manager, state, metadata, loss: steps.append(state.step)
    )
    state, window = SimpleNamespace(step=step), SimpleNamespace(flush=lambda: None)
    with pytest.raises(DataError, match="gone"):
        with loop.save_on_data_errors(FakeManager(), lambda: state, {}, window, first=5):
            raise DataError("gone")
    assert steps == saved


def test_the_vocabulary_is_as_large_as_the_captions_need(tmp_path):
    config = tiny_config()
    config.data.path = str(write_records(tmp_path / "data", random_clips((4, 8, 8), 5), 4, 5))
    sets = bucketed_data.open_buckets(config.data.path)
    words = len(next(iter(sets.values())).words)
    assert setup.resolve_vocabulary(config, sets, None) is config  # 32, as given
    config.text.vocabulary_size = 0
    assert setup.resolve_vocabulary(config, sets, None).text.vocabulary_size == words + 3
    # A run that resumes keeps its table.
    assert setup.resolve_vocabulary(config, sets, tiny_config()).text.vocabulary_size == 32
    many = {"a": next(iter(sets.values()))._replace(words=dict.fromkeys(map(str, range(9000)), 1))}
    assert setup.resolve_vocabulary(config, many, None).text.vocabulary_size == 8192


def test_a_batch_larger_than_the_data_set_is_told(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    config = tiny_config()
    config.data.path = str(write_records(tmp_path / "data", random_clips((4, 8, 8), 5), 4, 5))
    sets = bucketed_data.open_buckets(config.data.path)
    count = sum(sum(data.lengths["train"]) for data in sets.values())
    config.batch_size = count
    setup.check_data(config, sets)
    assert not warnings
    config.batch_size = count + 1
    setup.check_data(config, sets)
    assert f"batch_size is {count + 1}, but {config.data.path} has {count} training" in warnings[0]


def test_a_run_that_resumes_with_other_clips_says_so(tmp_path, caplog):
    caplog.set_level("WARNING")
    clips = random_clips((2, 16, 16), 5)
    one, other = (
        bucketed_data.open_buckets(write_records(tmp_path / str(count), clips[:count], 2))
        for count in (4, 5)
    )
    moved = {"elsewhere": next(iter(one.values()))._replace(folder="elsewhere")}
    saved = {"data": setup.data_metadata(one)}
    setup.warn_of_other_data(saved, moved, "PATH")
    setup.warn_of_other_data({}, other, "PATH")
    assert caplog.text == ""
    setup.warn_of_other_data(saved, other, "PATH")
    assert (
        "The data set in PATH is another than that of the checkpoint (4 training clips then, 5 now)"
        in caplog.text
    )
