"""What a run that resumes may change, and what it says of it; without any model."""

import pytest
from absl import logging

from tests.tiny import tiny_config, tiny_vae_config
from videogen_jax.run import saved_config
from videogen_jax.train import resume_checks


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "info", lambda text, *values: found.append(text % values))
    return found


def change(config, changes):
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.width": 24}, "model.width was 12, is 24. Set back"),
        ({"data.frames": 3}, "data.frames was 4, is 3. Set back"),
        (
            {"data.height": 4, "data.width": 4},
            "data.height was 8, is 4; data.width was 8, is 4. Set",
        ),
        ({"data.fps": 4.0}, "data.fps was 8.0, is 4.0"),
        ({"optimizer.name": "lion"}, "optimizer.name was 'adamw', is 'lion'"),
        ({"ema.decays": (0.5,)}, "ema.decays was (0.9,), is (0.5,)"),
        ({"objective.prediction": "v"}, "objective.prediction was 'x0', is 'v'"),
        ({"schedule.shift": 2.0}, "schedule.shift was 1.0, is 2.0"),
        ({"text.vocabulary_size": 64}, "text.vocabulary_size was 32, is 64"),
    ],
)
def test_what_cannot_change_is_refused_by_name(changes, sentence):
    config = tiny_config()
    with pytest.raises(ValueError) as caught:
        resume_checks.check_options(config, change(config, changes | {"train.steps": 20}), "runs/a")
    assert sentence in str(caught.value) and "runs/a cannot be resumed" in str(caught.value)
    assert "train.steps" not in str(caught.value)


def test_every_other_option_that_differs_is_listed(lines):
    config = tiny_config()
    changes = {"train.steps": 20, "learning_rate.peak": 1e-3, "data.path": "elsewhere"}
    resume_checks.check_options(config, change(config, changes), "runs/a")
    assert lines == [
        "Resuming with other options: data.path was 'no data', is 'elsewhere'; "
        "learning_rate.peak was 0.002, is 0.001; train.steps was 10, is 20."
    ]
    resume_checks.check_options(config, config, "runs/a")
    resume_checks.check_options(None, config, "runs/a")
    assert len(lines) == 1


def test_an_autoencoder_may_see_clips_of_another_size(lines):
    config = tiny_vae_config()
    resume_checks.check_options(config, change(config, {"data.frames": 9}), "runs/a")
    assert lines == ["Resuming with other options: data.frames was 5, is 9."]
    with pytest.raises(ValueError, match=r"autoencoder.channels was 4, is 5"):
        resume_checks.check_options(config, change(config, {"autoencoder.channels": 5}), "runs/a")
    with pytest.raises(ValueError, match="checkpoints of an autoencoder, but .* a diffusion model"):
        resume_checks.check_options(config, tiny_config(), "runs/a")


def test_the_saved_config_counts_once_there_are_checkpoints(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    saved_config.write_config(tmp_path, tiny_config())
    assert resume_checks.read_saved_config(tmp_path) is None
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert resume_checks.read_saved_config(tmp_path).model.width == 12
    (tmp_path / "config.json").write_text("{")
    assert resume_checks.read_saved_config(tmp_path) is None and len(warnings) == 1
