"""Every config is locked, complete, documented, and describes a run that can be built."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

from tests.tiny import make_run, write_autoencoders
from videogen_jax import config as configs
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.sharding import path_name

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key_types(config, prefix=""):
    """Dotted name -> type of each value; None, which stands for a number that is not given, passes for any."""
    types = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            types |= key_types(value, f"{prefix}{key}.")
        else:
            types[prefix + key] = type(value)
    return types


def test_the_promised_configs_are_there():
    assert {"quickstart", "dit_512", "vae_moving_shapes", "vae_512"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked_against_misspelt_keys(name):
    config = load(name).get_config()
    assert config.is_locked
    for part in (config, *(value for value in config.values() if hasattr(value, "items"))):
        with pytest.raises((AttributeError, KeyError)):
            part.no_such_key = 1


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_complete(name):
    config = load(name).get_config()
    assert configs.is_autoencoder(config) == name.startswith("vae_")
    assert configs.validate(config).to_dict() == config.to_dict()
    found, wanted = key_types(config), configs.options_of(configs.is_autoencoder(config))
    assert set(found) == set(wanted)
    for key in found:
        assert found[key] in (type(wanted[key].default), wanted[key].of), key


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command_the_hardware_and_the_result(name):
    text = load(name).__doc__
    assert f"python launch.py --config=configs/{name}.py --workdir=" in text
    assert "python -m videogen_jax.pack" in text
    for word in ("Hardware", "wall time", "result"):
        assert word in text


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_abstractly(name, tmp_path, monkeypatch):
    """Only shapes: no parameter of the 512 x 512 model is allocated."""
    write_autoencoders(tmp_path)
    monkeypatch.chdir(tmp_path)
    module = load(name)
    config = module.get_config()
    run = make_run(config)
    assert dict(run.mesh.shape) == config.mesh.to_dict()
    assert config.batch_size % (meshes.batch_parts(run.mesh) * config.train.accumulation) == 0
    leaves = jax.tree_util.tree_leaves_with_path(run.abstract)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in leaves)
    for path, leaf in leaves:
        if path_name(path).startswith(("params/", "ema/")):
            assert leaf.dtype == "float32"
    count = sum(leaf.size for leaf in jax.tree.leaves(run.abstract.params))
    if stated := re.search(r"([\d.]+) (M|million) parameters", module.__doc__):
        assert count / 1e6 == pytest.approx(float(stated[1]), rel=0.02)


def test_each_stage_starts_from_the_one_before_it_with_the_same_model():
    names = [name for name in NAMES if name.startswith("stages_")]
    configs_of = [load(name).get_config() for name in names]
    frames = [config.data.frames for config in configs_of]
    assert frames == [1, 16, 120, 480]
    former = ""
    for name, config in zip(names, configs_of, strict=True):
        assert config.init.path == former
        former = re.search(
            rf"launch\.py --config=configs/{name}\.py --workdir=(\S+)", load(name).__doc__
        )[1]
        assert config.model.to_dict() == configs_of[0].model.to_dict()
        assert (config.vae.to_dict(), config.text.to_dict()) == (
            configs_of[0].vae.to_dict(),
            configs_of[0].text.to_dict(),
        )
    # A place has one position at all sizes: that of 512 x 512 in patches of 16 x 16 pixels.
    assert configs_of[0].model.position_grid == (32, 32)
