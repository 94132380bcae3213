"""The config of a run as its folder keeps it, and the lines that older runs do not have yet."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from videogen_jax.data.records import write_json
from videogen_jax.run.trained_autoencoder import SECTION

# What a diffusion model's run was before there was a choice.
LATER_LINES: dict[str, dict[str, Any]] = {
    "text": {"encoder": "words", "path": ""},
    "model": {"conditioning": "none", "time_cycle": 0},
    "tasks": {"text": 1.0, "image": 0.0, "frames": 0.0, "prefix": 0.0},
    "known": {
        "noise_mean": -3.0,
        "noise_std": 0.5,
        "sampling_noise": 0.02,
        "dropout": 0.0,
        "joint_dropout": 0.0,
    },
    "prefix": {"lengths": (), "chunk": 1, "noise": 0.1, "sampling_noise": 0.05},
    "sample": {"known_guidance_scale": None},
}


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes the resolved config to `workdir`/config.json, whole or not at all."""
    write_json(workdir / "config.json", config.to_dict())


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """Reads back the config of a run.

    Args:
      workdir: of the run.
    Returns:
      The config, locked.
    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: the run is of a version whose configs had other lines.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: name the --workdir of a run that launch.py has started."
        )
    config = ml_collections.ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    if SECTION in config:
        return config.lock()
    # JSON has lists where Flax wants something hashable.
    try:
        for name in ("patch_size", "micro_conditions"):
            config.model[name] = tuple(config.model[name])
        add_later_lines(config)
        config.prefix.lengths = tuple(config.prefix.lengths)
        config.memory, config.vae  # noqa: B018
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} is of an older videogen_jax ({error.args[0]}): sample with that version, or train again."
        ) from None
    return config.lock()


def add_later_lines(config: Any) -> None:
    """Gives a diffusion model's config, a ConfigDict or dict, the lines of LATER_LINES that it lacks."""
    for section, lines in LATER_LINES.items():
        if section not in config:
            config[section] = {}
        for name, value in lines.items():
            if name not in config[section]:
                config[section][name] = value
