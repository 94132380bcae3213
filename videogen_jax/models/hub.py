"""Files of published models, from a local path or the Hugging Face hub."""

import re
from pathlib import Path

from videogen_jax.models.weights import INDEX, PICKLES, read_index

FILE, CONFIG_FILE = "model.safetensors", "config.json"  # of transformers' models
REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"  # owner/repository
HUB_NAME = rf"{REPOSITORY}(/[\w./-]+)?"  # or a folder or file in it


def find_file(path: str, file: str, fetch: bool = True) -> Path:
    """Finds a file of a model, and downloads it from the hub if it is not local.

    Args:
      path: a file (returned whatever its name), a folder that contains `file`, or a name on the hub:
        `owner/repository`, optionally followed by a slash and a folder or file in it.
      file: name of the file in a folder.
      fetch: whether to ask the hub; if False, only its cache here is looked into.
    Returns:
      Local path of the file.
    Raises:
      FileNotFoundError: it is neither local nor available from the hub.
    """
    here = Path(path)
    if here.is_file():
        return here
    if here.is_dir():
        if not (here / file).is_file():
            raise FileNotFoundError(f"{here} has no {file}: give the folder that does.")
        return here / file
    if here.is_absolute() or here.suffix in PICKLES or not re.fullmatch(HUB_NAME, path):
        raise FileNotFoundError(
            f"There is no {path!r}: give a .safetensors file, a folder with {file}, or a model on the "
            "Hugging Face hub as owner/repository."
        )
    return _fetch(path, file, fetch)


def find_weights(path: str, file: str = FILE) -> Path:
    """Finds the safetensors of a model, in one file or in several with an index.

    Args:
      path: see `find_file`.
      file: name of the one file.
    Returns:
      Local path of the file, or of the folder of the files.
    Raises:
      FileNotFoundError: they are neither local nor available from the hub.
      WeightsError: the index is damaged.
    """
    here = Path(path)
    if here.is_dir() and not (here / file).is_file():
        return here  # of files with an index; or of a pickle, which is refused where it is opened
    try:
        return find_file(path, file)
    except FileNotFoundError as error:
        if here.is_absolute() or not re.fullmatch(HUB_NAME, path) or here.suffix == ".safetensors":
            raise
        try:
            index = find_file(path, file.removesuffix(".safetensors") + INDEX)
        except FileNotFoundError:
            raise error from None
    for name in read_index(index):
        find_file(path, name)
    return index.parent


def check_model(path: str, file: str = CONFIG_FILE) -> None:
    """Checks that a model of several files is there, before a library looks for them.

    Args:
      path: a folder that contains `file`, or a name on the hub: `owner/repository`, of which `file` is downloaded.
      file: name of a file that every such model has.
    Raises:
      FileNotFoundError: it is neither local nor available from the hub.
    """
    here = Path(path)
    if here.is_dir():
        if not (here / file).is_file():
            raise FileNotFoundError(f"{here} has no {file}: give the folder that does.")
        return
    if here.exists() or here.is_absolute() or not re.fullmatch(REPOSITORY, path):
        raise FileNotFoundError(
            f"There is no folder {path!r}: give one with {file}, or a model on the Hugging Face hub as "
            "owner/repository."
        )
    try:
        _download(path, file, fetch=True)
    except _DownloadError as error:
        raise FileNotFoundError(
            f"There is no local folder {path} and {error}: put the files of the hub's {path} into {Path.cwd() / path}, "
            "or give the path of their folder."
        ) from error


class _DownloadError(Exception):
    """A file cannot be downloaded; the message is the reason."""


def _fetch(path: str, file: str, fetch: bool) -> Path:
    owner, repository, *rest = path.split("/")
    if not (rest and rest[-1].endswith(Path(file).suffix)):
        rest.append(file)
    name, inside = f"{owner}/{repository}", "/".join(rest)
    try:
        return _download(name, inside, fetch)
    except _DownloadError as error:
        raise FileNotFoundError(_manual_download(name, inside, str(error))) from error


def _download(name: str, inside: str, fetch: bool) -> Path:
    try:
        import huggingface_hub  # a dependency of tokenizers
    except ImportError:
        raise _DownloadError(
            "huggingface_hub is not installed (pip install huggingface_hub)"
        ) from None
    options = {} if fetch else {"local_files_only": True}
    try:
        return Path(huggingface_hub.hf_hub_download(name, inside, **options))
    except (OSError, ValueError) as error:  # base classes of the hub's and the network's errors
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise _DownloadError(f"the download failed ({type(error).__name__}: {first})") from error


def _manual_download(name: str, inside: str, reason: str) -> str:
    target = Path.cwd() / name / inside
    return (
        f"There is no local {name}/{inside} and {reason}: put {inside} of the hub's {name} at {target}, or give "
        "the path of the file or folder."
    )
