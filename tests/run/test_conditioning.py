"""What a config has a model told: tasks, micro-conditions, channels; and what means nothing is refused."""

import numpy as np
import pytest

from tests.tiny import tiny_config
from videogen_jax.run.model import make_conditioning

FRAMES = 4


def long_config():
    """Of a model of long videos."""
    config = tiny_config()
    config.model.update({"causal": True, "conditioning": "prefix", "time_cycle": FRAMES})
    config.tasks.update({"text": 0.25, "prefix": 0.75})
    config.prefix.lengths = (1, 2)
    return config


def test_text_alone_has_no_tasks():
    assert make_conditioning(tiny_config(), FRAMES).tasks is None


def test_the_tasks_are_those_of_the_config():
    config = long_config()
    config.model.patch_size = (2, 4, 4)
    tasks = make_conditioning(config, FRAMES).tasks
    assert tasks.shares == {"text": 0.25, "image": 0, "frames": 0, "prefix": 0.75}
    assert tasks.lengths == (1, 2) and tasks.prefix_noise == config.prefix.noise
    assert (tasks.patch_frames, tasks.causal, tasks.time_cycle) == (2, True, FRAMES)
    assert (tasks.noise_mean, tasks.noise_std) == (config.known.noise_mean, config.known.noise_std)


def test_of_a_picture_nothing_is_known():
    """In buckets beside those of videos: it has no other frames, and is learned from its text."""
    tasks = make_conditioning(long_config(), 1).tasks
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
        make_conditioning(config, FRAMES)


def test_rotations_need_no_cycle():
    config = long_config()
    config.model.update({"time_cycle": 0, "positions": "rope"})
    assert make_conditioning(config, FRAMES).tasks.time_cycle == 0


def test_micro_conditions_come_with_the_batch_or_with_known_frames():
    config = long_config()
    config.model.micro_conditions = ("fps", "augmentation")
    config.model.conditioning = "frames"
    conditioning = make_conditioning(config, FRAMES)
    assert conditioning.batch_conditions == ("fps",)
    empty = conditioning.empty((2, 4, 8, 8, 3))
    assert {*empty, *conditioning.batch_conditions} == {
        *("known", "mask", "start", "fps", "augmentation")
    }


@pytest.mark.parametrize(
    ("kind", "names", "channels"),
    [("none", [], 3), ("prefix", ["mask"], 4), ("frames", ["known", "mask"], 7)],
)
def test_without_known_frames_the_inputs_are_zeros(kind, names, channels):
    config = tiny_config()
    config.model.conditioning = kind
    conditioning = make_conditioning(config, FRAMES)
    empty = conditioning.empty((2, 4, 8, 8, 3))
    assert sorted(empty) == names
    assert all(np.all(array == 0) for array in empty.values())
    assert conditioning.input_channels(3) == channels
    if empty:
        assert empty["mask"].shape == (2, 4)
