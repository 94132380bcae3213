"""The captions of videos to make: from flags, and from text files with a caption a line."""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from videogen_jax.data import text_files


def read_prompts(given: Sequence[str], path: str | None) -> list[str]:
    """The captions given as they are, then those of a file.

    Args:
      given: captions; the empty one is a video without a caption.
      path: text file, one caption a line; blank lines are passed over.
    Raises:
      ValueError: there are none, one is blank, or it is no text; the sentence names the file.
      OSError: the file cannot be read.
    """
    prompts = [check_text(prompt, "--prompts") for prompt in given]
    if path:
        lines = [line.strip() for line in text_files.read_lines(path)]
        if not any(lines):
            raise ValueError(f"{path} has no caption: write one a line.")
        prompts += [line for line in lines if line]
    if not prompts:
        raise ValueError("There is no prompt: give --prompts or --prompts_file.")
    return prompts


def check_text(text: str, flag: str) -> str:
    """The text of a flag.

    Raises:
      ValueError: it is blank but not empty, or bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{flag} is {text!a}, which is not UTF-8 text: write it in UTF-8, or use --prompts_file."
        ) from None
    if "\0" in text:
        raise ValueError(f"{flag} is {text!a}, which has a NUL character: leave it out.")
    if text and not text.strip():
        raise ValueError(
            f'{flag} is {text!r}, which has no word: write {flag} "" for a video without a caption.'
        )
    return text


def warn_of_words(prompts: Sequence[str], arguments: Sequence[str]) -> None:
    """Warns of `--prompts a red circle`, which is three captions.

    Args:
      prompts: all captions of the flags.
      arguments: those of them that followed the first one of --prompts.
    """
    if arguments and all(len(prompt.split()) == 1 for prompt in prompts):
        logging.warning(
            'The words %s are %d captions, a video of each: a caption of several words needs quotes, --prompts "%s".',
            *(", ".join(map(repr, prompts)), len(prompts), " ".join(prompts)),
        )


def read_schedule(path: Path) -> list[tuple[int, str]]:
    """Captions and the frames from which on they hold, of a file with lines like `240: a blue circle`.

    Raises:
      ValueError: a line cannot be understood, or the frames do not begin with 0 and rise.
      OSError: the file cannot be read.
    """
    timeline = []
    for line in text_files.read_lines(path):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(.+?)\s*", line)
        if not match:
            raise ValueError(f"{path} has the line {line!r}: write each like `240: a blue circle`.")
        timeline.append((int(match[1]), match[2]))
    numbers = [number for number, _ in timeline]
    if not numbers or numbers[0] != 0 or sorted(set(numbers)) != numbers:
        raise ValueError(
            f"The frames in {path} are {', '.join(map(str, numbers)) or 'none'}: begin with 0, and let them rise."
        )
    return timeline
