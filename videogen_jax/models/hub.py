"""Files of published models, from a local path or the Hugging Face hub."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

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


def find_config(
    path: str,
    read: Callable[[Path], Any],
    default: Any,
    absent: Callable[[Path], Any],
    *,
    published: Mapping[str, Any] = MappingProxyType({}),
    fetch: bool = True,
) -> Any:
    """Reads the config of a model.

    Args:
      path: see `find_file`; empty: the default.
      read: reads a config.json.
      default: the config where there is no other.
      absent: called with the path of local weights that have no config.json beside them.
      published: configs by path, to know shapes offline.
      fetch: if False, nothing is fetched: a model on the hub has its published config, or that in the hub's cache here,
        or else the default.
    Raises:
      FileNotFoundError: the path exists neither here nor on the hub.
    """
    if not path:
        return default
    here = Path(path)
    if here.exists():
        file = (here if here.is_dir() else here.parent) / CONFIG_FILE
        return read(file) if file.is_file() else absent(here)
    if not fetch and path in published:
        return published[path]
    try:
        file = find_file(path, CONFIG_FILE, fetch=fetch)
    except FileNotFoundError:
        if fetch:
            raise
        return default
    return read(file)


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


def is_name(path: str) -> bool:
    """Whether a path is the name of a model on the hub: nothing here has it, and no folder here is its owner's."""
    if os.path.lexists(path) or os.path.lexists(path.split("/")[0]):
        return False
    return Path(path).suffix not in PICKLES and bool(re.fullmatch(HUB_NAME, path))


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
        raise _DownloadError(f"the download failed ({_first_line(error)})") from error


def _manual_download(name: str, inside: str, reason: str) -> str:
    target = Path.cwd() / name / inside
    return (
        f"There is no local {name}/{inside} and {reason}: put {inside} of the hub's {name} at {target}, or give "
        "the path of the file or folder."
    )


def check_upload(name: str) -> None:
    """Checks what an upload needs, before there is anything to upload.

    Args:
      name: of the repository on the hub, `owner/repository`.
    Raises:
      ValueError: it is no such name, or nobody is logged in.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is no name on the Hugging Face hub: write it owner/repository.")
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise ValueError(
            f"There is no token of the Hugging Face hub to upload {name} with: log in with `hf auth login`, or set "
            "HF_TOKEN."
        )


def upload_folder(folder: Path, name: str, private: bool, message: str) -> str:
    """Uploads a folder to the hub, to a repository that is made if it is not there.

    Args:
      folder: whose files replace those of the same names there.
      name: of the repository, `owner/repository`.
      private: make a new repository private; otherwise it is what the owner's default is.
      message: of the commit.
    Returns:
      The address of the repository.
    Raises:
      OSError: the hub cannot be reached, or refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # of whatever library speaks HTTP for huggingface_hub
        raise OSError(
            f"The upload of {folder} to the hub's {name} failed ({_first_line(error)}): the folder is complete; "
            f"upload it with --push_to_hub={name} and without --workdir."
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}"
