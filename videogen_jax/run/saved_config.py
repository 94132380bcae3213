"""The config of a run as its folder keeps it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from videogen_jax import config as configs
from videogen_jax.data.atomic_files import write_json


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes the complete config to `workdir`/config.json, whole or not at all."""
    write_json(workdir / "config.json", config.to_dict())


def check_link(workdir: Path) -> None:
    """Raises FileNotFoundError for a link to a folder that is not there."""
    if workdir.is_symlink() and not workdir.exists():
        raise FileNotFoundError(
            f"{workdir} is a link to {workdir.readlink()}, which is not there: make that folder, or mend the link."
        )


def check_no_export(workdir: Path) -> None:
    """Raises ValueError for the folder of an export, whose config.json is not a run's and would be overwritten."""
    try:
        lines = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(lines, dict) and "format_version" in lines:
        raise ValueError(
            f"{workdir} is an export, and not the folder of a run: open it with videogen_jax.load or sample, or start "
            "a run from it in another folder (init.layout=export)."
        )


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """Reads back the config of a run; options that it does not have yet take their defaults.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: the run has an option that no longer exists, or one of another type.
    """
    check_link(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: name the --workdir of a run that launch.py has started."
        )
    check_no_export(workdir)
    unknown = (
        "which this version of videogen_jax does not have: use the version that wrote it, or remove the line if the "
        "run does not depend on it"
    )
    lines = json.loads(path.read_text(encoding="utf-8"))
    return convert_options(path, lines, configs.complete, unknown)


def convert_options(
    path: Path,
    lines: dict[str, Any],
    convert: Callable[[dict[str, Any]], ml_collections.ConfigDict],
    unknown: str,
) -> ml_collections.ConfigDict:
    """The options of a file as a config.

    Args:
      path: of the file, for errors.
      lines: its options, by section.
      convert: `config.complete` or `config.validate_values`.
      unknown: what to say of an option that this version does not have.
    Raises:
      ValueError: an option is unknown, or `convert` refuses its value.
    """
    lines = _without_selective_remat(lines)
    known = configs.options_of(configs.is_autoencoder(lines))
    if foreign := [name for name, _ in configs.flatten(lines) if name not in known]:
        raise ValueError(f"{path} has the option {foreign[0]!r}, {unknown}.")
    try:
        return convert(lines)
    except ValueError as error:
        raise ValueError(f"{path} is not valid: {error}") from error


def _without_selective_remat(lines: dict[str, Any]) -> dict[str, Any]:
    """The options of a file, where that of an earlier version also saved some activations: no number depends on it."""
    memory = lines.get("memory")
    if not isinstance(memory, dict) or "saved" not in memory:
        return lines
    memory = {name: value for name, value in memory.items() if name != "saved"}
    if memory.get("remat") == "selective":
        memory["remat"] = "block"
    return lines | {"memory": memory}


def parameter_meaning(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options that give a run's parameters their meaning, by dotted name."""
    if configs.is_autoencoder(config):
        return {f"autoencoder.{key}": value for key, value in config.autoencoder.items()}
    sections = {name: config[name].to_dict() for name in ("model", "schedule")}
    rest = {"objective.prediction": config.objective.prediction}
    if config.tasks.prefix:
        rest["prefix.lengths"] = config.prefix.lengths
    return dict(configs.flatten(sections)) | rest | {"text.length": config.text.length}
