"""Patches that have far more numbers than the hidden size are warned of, and no config of the project has them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import logging

from tests.tiny import tiny_config, tiny_vae_config, write_autoencoders
from videogen_jax import config as configs
from videogen_jax import plan
from videogen_jax.parallel import device_specs
from videogen_jax.run.model import describe_large_patch
from videogen_jax.train import loop, resume_checks, setup

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py"))


def with_patch(size, width, channels):
    """A config of 16x128x128 pixels whose patches have so many channels: 3 of pixels, or 32 of taef2."""
    config = tiny_config()
    config.data.update({"frames": 16, "height": 128, "width": 128})
    config.sample.clip_x0 = False
    config.vae.name = {3: "identity", 32: "taef2"}[channels]
    config.model.update({"patch_size": size, "width": width})
    return config


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that are logged."""
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


def test_2048_numbers_for_a_hidden_size_of_256_are_warned_of(warnings):
    setup.warn_of_large_patch(with_patch((4, 4, 4), 256, channels=32))
    assert warnings == [
        "A patch of model.patch_size=(4, 4, 4) has 2,048 numbers (32 channels), more than 4 times the hidden size of "
        "256 that it is projected to, and the model may not learn where patches belong: make model.patch_size smaller, "
        "or model.width at least 512."
    ]
    setup.warn_of_large_patch(with_patch((4, 6, 6), 128, channels=3))  # the quick start's 432
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("size", "channels", "width"), [((4, 4, 4), 32, 512), ((2, 4, 4), 32, 256), ((4, 4, 4), 3, 48)]
)
def test_four_times_the_hidden_size_is_the_most(size, channels, width):
    assert describe_large_patch(with_patch(size, width, channels)) == ""
    assert f"least {width}." in describe_large_patch(with_patch(size, width - 1, channels))


@pytest.mark.parametrize("name", NAMES)
def test_no_config_of_the_project_is_warned_of(name, tmp_path, monkeypatch):
    config = configs.load_config(name)
    write_autoencoders(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert describe_large_patch(config) == ""


def test_autoencoders_have_no_such_patches():
    assert describe_large_patch(tiny_vae_config()) == ""


class Reached(Exception):
    """What comes behind the warning, which is all that is wanted here."""


def stop(*arguments):
    raise Reached


def test_a_run_starts_with_the_warning(warnings, monkeypatch, tmp_path):
    monkeypatch.setattr(loop.bucketed_data, "open_buckets", lambda path: {})
    monkeypatch.setattr(setup, "check_data", lambda config, sets: None)
    monkeypatch.setattr(resume_checks, "read_saved_config", stop)
    config = with_patch((4, 4, 4), 256, channels=32)
    config.mesh.fsdp = 1
    with pytest.raises(Reached):
        loop.train(config, tmp_path)
    assert len(warnings) == 1 and "has 2,048 numbers" in warnings[0]


def test_a_plan_starts_with_the_warning(monkeypatch, capsys):
    values = SimpleNamespace(
        target="cpux1",
        pcie="x16",
        host_memory=None,
        config=with_patch((4, 4, 4), 256, channels=32),
    )
    monkeypatch.setattr(plan.flags, "FLAGS", values)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # the devices are there
    monkeypatch.setattr(device_specs, "find_devices", lambda card, count: [None])
    monkeypatch.setattr(plan.targets, "place", stop)
    level = logging.get_verbosity()
    try:
        with pytest.raises(Reached):
            plan.main([])
    finally:
        logging.set_verbosity(level)
    printed = capsys.readouterr()
    assert printed.err.startswith("plan: warning: A patch of model.patch_size=(4, 4, 4) has 2,048")
    assert printed.out == ""
