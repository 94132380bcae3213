"""Whether a run may resume a checkpoint: its parameters must mean what they meant."""

from typing import Any

from videogen_jax import config as configs
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.run import text_conditioning
from videogen_jax.run.model import Model
from videogen_jax.run.saved_config import parameter_meaning


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
    ours = parameter_meaning(model.config)
    theirs = parameter_meaning(configs.complete(metadata["config"]))
    differences = [
        f"{name} is {ours[name]} instead of {theirs.get(name)}"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
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
