"""Files of published models: at a path, or on the Hugging Face hub."""

import re
from pathlib import Path

from videogen_jax.models.weights import PICKLES

HUB_NAME = r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+)?"  # owner/repository, or a folder or file in it


def find_file(path: str, file: str) -> Path:
    """Finds one file of a model, and fetches it if it is on the hub alone.

    Args:
      path: a file (which is the result, whatever its name), a folder that holds `file`, or a name on the hub:
        `owner/repository`, with the folder or the file in it behind another slash where there is one.
      file: the file's name in a folder.
    Returns:
      Where it is.
    Raises:
      FileNotFoundError: it is neither here nor to be had from the hub.
    """
    here = Path(path)
    if here.is_file():
        return here
    if here.is_dir():
        if not (here / file).is_file():
            raise FileNotFoundError(f"{here} holds no {file}: name the folder that does.")
        return here / file
    if here.is_absolute() or here.suffix in PICKLES or not re.fullmatch(HUB_NAME, path):
        raise FileNotFoundError(
            f"There is no {path!r}: name a .safetensors file, a folder that holds {file}, or a model on the "
            "Hugging Face hub as owner/repository."
        )
    return _fetch(path, file)


def _fetch(path: str, file: str) -> Path:
    owner, repository, *rest = path.split("/")
    if not (rest and rest[-1].endswith(Path(file).suffix)):
        rest.append(file)
    name, inside = f"{owner}/{repository}", "/".join(rest)
    try:
        import huggingface_hub  # comes with tokenizers
    except ImportError:
        reason = "huggingface_hub is not installed (pip install huggingface_hub)"
        raise FileNotFoundError(_by_hand(name, inside, reason)) from None
    try:
        return Path(huggingface_hub.hf_hub_download(name, inside))
    except (OSError, ValueError) as error:  # what the hub's errors and the network's are
        first = str(error).strip().split("\n")[0].rstrip(".")
        reason = f"the hub did not give it ({type(error).__name__}: {first})"
        raise FileNotFoundError(_by_hand(name, inside, reason)) from error


def _by_hand(name: str, inside: str, reason: str) -> str:
    place = Path.cwd() / name / inside
    return (
        f"There is no {name}/{inside} here and {reason}: place {inside} of the hub's {name} at {place}, or name "
        "the file or folder where you have it."
    )
