"""Paths as users write them, in flags and options: all of them are local."""

import os
import re

# Options whose value is a path; those of weights may also name a repository on the Hugging Face hub.
OPTIONS = (
    "data.path",
    "vae.path",
    "text.path",
    "text.pooled_path",
    "init.path",
    "evaluation.reference",
    "perceptual.path",
)


def local_path(text: str, what: str) -> str:
    """Expands "~" in a path, and refuses addresses of remote storage.

    Args:
      text: path as the user wrote it.
      what: flag or option that it was given to, for the error message.
    Returns:
      The path; a shell leaves "~" in `--output=~/data` as it is.
    Raises:
      ValueError: it is an address such as gs://bucket/data, names a user without a home folder, or is not UTF-8 text.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        raise ValueError(
            f"{what} is {text!r}, but only local paths are read and written: copy the files to a local folder, or "
            f"mount the {match[1]}:// storage as one."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} is {text!a}, which is not UTF-8 text in this locale: set LC_ALL=C.UTF-8, or choose another name."
        ) from None
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"{what} is {text!r}, but {text.split('/')[0]} has no home folder: write the whole path, or ./{text} for a "
            "folder of that name."
        )
    return path


def absolute_path(path: str) -> str:
    """A path that means the same wherever it is used from later; an empty one stays empty."""
    return os.path.abspath(path) if path else path
