"""Whether a run may resume a checkpoint: its parameters must mean what they meant. What else changed is listed."""

from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

from videogen_jax import config as configs
from videogen_jax import config_rules
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.run import saved_config, step_files, text_conditioning
from videogen_jax.run.model import Model
from videogen_jax.run.saved_config import parameter_meaning

# Beside `parameter_meaning`: what the arrays of a checkpoint are, and what they were trained to make.
STATE = ("optimizer.name", "optimizer.mu_dtype", "ema.decays", "ema.widths", "train.frozen")
LORA = ("train.lora.rank", "train.lora.alpha", "train.lora.layers", "train.lora.full")
VIDEOS = ("data.frames", "data.height", "data.width", "data.fps", "vae.name")
TEXT = ("text.encoder", "text.vocabulary_size")


def read_saved_config(workdir: str | Path) -> ml_collections.ConfigDict | None:
    """The config of the checkpoints in a workdir; None where there are none, or config.json cannot be read."""
    if not step_files.list_steps(Path(workdir) / "checkpoints"):
        return None
    try:
        return saved_config.read_config(Path(workdir))
    except (ValueError, OSError) as error:
        # The copy inside the checkpoint is compared once that is restored.
        logging.warning("What this run changes is not listed: %s", error)
        return None


def check_options(
    saved: ml_collections.ConfigDict | None, config: ml_collections.ConfigDict, workdir: str | Path
) -> None:
    """Logs every option that differs from those of the checkpoints, and refuses what cannot change.

    Args:
      saved: of `read_saved_config`.
      config: of the run that resumes, valid and resolved.
      workdir: for the sentences.
    Raises:
      ValueError: names each option that cannot change, as it was and as it is.
    """
    if saved is None:
        return
    if configs.is_autoencoder(saved) != configs.is_autoencoder(config):
        kinds = ["a diffusion model", "an autoencoder"]
        was, now = (kinds[configs.is_autoencoder(one)] for one in (saved, config))
        raise ValueError(
            f"{workdir} has checkpoints of {was}, but this config trains {now}: use another --workdir."
        )
    changes = find_changes(saved, config)
    fixed = find_fixed(config)
    if refused := [line for name, line in changes.items() if name in fixed]:
        raise ValueError(
            f"{workdir} cannot be resumed with this config: {'; '.join(refused)}. Set back what differs, or use "
            f"another --workdir{'' if configs.is_autoencoder(config) else ' (and start from this run with init.path)'}."
        )
    if changes:
        logging.info("Resuming with other options: %s.", "; ".join(changes.values()))


def find_changes(
    saved: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> dict[str, str]:
    """Dotted name to "name was A, is B" of each option that differs."""
    before = dict(configs.flatten(saved.to_dict()))
    after = dict(configs.flatten(config.to_dict()))
    return {
        name: f"{name} was {config_rules.shorten(before[name])}, is {config_rules.shorten(value)}"
        for name, value in after.items()
        if value != before[name]
    }


def find_fixed(config: ml_collections.ConfigDict) -> set[str]:
    """The options that a run keeps: those that give its state and its videos their meaning.

    An autoencoder is the same for clips of any size; a diffusion model learns the statistics of one size and rate.
    """
    fixed = {*parameter_meaning(config), *STATE}
    if not configs.is_autoencoder(config):
        fixed |= {*VIDEOS, *TEXT, *LORA}
    return fixed


def check_same_run(
    metadata: dict[str, Any],
    model: Model,
    texts: text_conditioning.Texts,
    latents: LatentInfo | None,
) -> None:
    """Raises ValueError, listing what differs, where a checkpoint's parameters would mean something else.

    Args:
      metadata: saved with the checkpoint.
      model: of the run that resumes.
      texts: of `text_conditioning.open_texts`.
      latents: of its data.
    """
    changes = find_changes(configs.complete(metadata["config"]), model.config)
    fixed = find_fixed(model.config)
    differences = [line for name, line in changes.items() if name in fixed]
    if difference := text_conditioning.find_difference(texts, metadata):
        differences.append(difference)
    saved = metadata.get("latents")
    # Through LatentInfo: fields that came later have defaults.
    if latents != (saved and LatentInfo(**saved)):
        differences.append("the latents were encoded or measured otherwise")
    if differences:
        raise ValueError(
            f"The checkpoint was trained otherwise: {'; '.join(differences)}. "
            "Set them back, or use another --workdir."
        )
