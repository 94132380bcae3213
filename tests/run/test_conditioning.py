"""What a config has a model told: tasks, micro-conditions, channels; and what means nothing is refused."""

import numpy as np
import pytest

from tests.tiny import tiny_config
from videogen_jax.run import conditioning

FRAMES = 4


def long_config():
    """Of a model of long videos."""
    config = tiny_config()
    config.model.update({"causal": True, "conditioning": "prefix", "time_cycle": FRAMES})
    config.tasks.update({"text": 0.25, "prefix": 0.75})
    config.prefix.lengths = (1, 2)
    return config


def test_text_alone_has_no_tasks():
    assert conditioning.make_tasks(tiny_config(), FRAMES) is None


def test_the_tasks_are_those_of_the_config():
    config = long_config()
    config.model.patch_size = (2, 4, 4)
    tasks = conditioning.make_tasks(config, FRAMES)
    assert tasks.shares == {"text": 0.25, "image": 0, "frames": 0, "prefix": 0.75}
    assert tasks.lengths == (1, 2) and tasks.prefix_noise == config.prefix.noise
    assert (tasks.patch_frames, tasks.causal, tasks.time_cycle) == (2, True, FRAMES)
    assert (tasks.noise_mean, tasks.noise_std) == (config.known.noise_mean, config.known.noise_std)


def test_of_a_picture_nothing_is_known():
    """In buckets beside those of videos: it has no other frames, and is learned from its text."""
    tasks = conditioning.make_tasks(long_config(), 1)
    assert tasks.shares == {"text": 1.0, "image": 0.0, "frames": 0.0, "prefix": 0.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"model.conditioning": "none"}, "set it to 'prefix', or tasks.text to 1"),
        ({"tasks.image": 0.75, "tasks.prefix": 0.0}, "'prefix', but .* set it to 'frames'"),
        ({"model.time_cycle": 3}, "time_cycle of 3 is less than the 4 latent frames"),
        ({"model.time_cycle": 0}, "set model.time_cycle to 4 or more, or model.positions to"),
        ({"prefix.lengths": (4,)}, "from 1 to 3"),
        ({"tasks.prefix": 0.5}, "their sum 1"),
    ],
)
def test_tasks_that_the_model_cannot_do_are_refused(lines, message):
    config = long_config()
    config.update_from_flattened_dict(lines)
    with pytest.raises(ValueError, match=message):
        conditioning.make_tasks(config, FRAMES)


def test_rotations_need_no_cycle():
    config = long_config()
    config.model.update({"time_cycle": 0, "positions": "rope"})
    assert conditioning.make_tasks(config, FRAMES).time_cycle == 0


def test_the_noise_on_known_frames_is_told_to_models_that_know_frames():
    config = long_config()
    config.model.micro_conditions = ("fps", "augmentation")
    with pytest.raises(ValueError, match=r"'augmentation', .* is 'prefix': set it to 'frames'"):
        conditioning.check_micro_conditions(config)
    config.model.conditioning = "frames"
    conditioning.check_micro_conditions(config)
    assert conditioning.batch_conditions(config) == ("fps",)
    told = conditioning.tell_nothing(config, np.zeros((2, 4, 8, 8, 3)))
    assert {*told, *conditioning.batch_conditions(config)} == {
        *("known", "mask", "start", "fps", "augmentation")
    }


@pytest.mark.parametrize(
    ("kind", "names", "channels"),
    [("none", [], 3), ("prefix", ["mask"], 4), ("frames", ["known", "mask"], 7)],
)
def test_where_nothing_is_known_the_model_is_told_so(kind, names, channels):
    config = tiny_config()
    config.model.conditioning = kind
    video = np.zeros((2, 4, 8, 8, 3))
    told = conditioning.tell_nothing(config, video)
    assert sorted(told) == names
    assert all(np.all(array == 0) for array in told.values())
    assert conditioning.input_channels(config, 3) == channels
    if told:
        assert told["mask"].shape == (2, 4)
