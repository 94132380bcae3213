"""Captions as words, and words as ids: the vocabulary of a data set that brings its own.

Pure Python and NumPy, so that sampling needs no TensorFlow.
"""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

PADDING_ID = 0  # behind the last word
UNKNOWN_ID = 1  # a word outside the vocabulary
NULL_ID = 2  # "no caption", for classifier-free guidance
NUM_SPECIAL_IDS = 3

# Scripts written without spaces, in which each character counts as a word.
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # CJK ideographs
    "]"
)


def split_words(caption: str) -> list[str]:
    r"""Splits a caption into lower-case words without punctuation.

    The text is normalised (NFKC) and lowered. A word is a run of letters, digits and underscores
    (what `\w+` matches) with their combining marks; in scripts that are written without spaces
    each character is one. Everything else only separates words.

    Args:
      caption: text in any script.
    Returns:
      The words in order; empty where there is none.
    """
    text = unicodedata.normalize("NFKC", caption).lower()
    if text.isascii():
        return re.findall(r"\w+", text)
    words: list[str] = []
    joins = False  # does the next letter continue the last word?
    adjacent = False  # does the next combining mark belong to the last word?
    for character in text:
        category = unicodedata.category(character)
        if category == "Cf":  # joiners, soft hyphens: invisible, and no end of a word
            continue
        if category[0] == "M":
            if adjacent:
                words[-1] += character
        elif not (character.isalnum() or character == "_"):
            joins = adjacent = False
        elif _UNSPACED.match(character):
            words.append(character)
            joins, adjacent = False, True
        else:
            if joins:
                words[-1] += character
            else:
                words.append(character)
            joins = adjacent = True
    return words


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words that a caption encoder knows; the word `words[i]` has the id i + 3."""

    words: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.words)) != len(self.words):
            twice = sorted({word for word in self.words if self.words.count(word) > 1})
            raise ValueError(f"a vocabulary names each word once, but {twice[0]!r} occurs twice.")

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], size: int) -> "Vocabulary":
        """Keeps the most frequent words; words that occur equally often go by the alphabet.

        Args:
          counts: word -> how often it occurs, as "words" of a data set's statistics.json.
          size: the largest `len` of the result, the three special ids included.
        Returns:
          A Vocabulary.
        Raises:
          ValueError: size leaves no room for a word.
        """
        if size <= NUM_SPECIAL_IDS:
            raise ValueError(
                f"a vocabulary of {size} ids has no room for a word: {NUM_SPECIAL_IDS} are "
                f"special, so ask for {NUM_SPECIAL_IDS + 1} or more."
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: size - NUM_SPECIAL_IDS]))

    @classmethod
    def from_list(cls, words: Sequence[str]) -> "Vocabulary":
        """Restores a vocabulary from what `to_list` returned."""
        return cls(tuple(words))

    def to_list(self) -> list[str]:
        """Returns the words in the order of their ids, ready for JSON."""
        return list(self.words)

    def __len__(self) -> int:
        """Counts the ids: the words and the three special ones."""
        return len(self.words) + NUM_SPECIAL_IDS

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i + NUM_SPECIAL_IDS for i, word in enumerate(self.words)}

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Turns captions into ids, cut or padded to one length.

        Args:
          captions: B captions; one without any word becomes the null caption.
          length: L >= 1.
        Returns:
          (B, L) int32: the words' ids (unknown words 1), then 0; the null caption is 2, 0, 0, ...
        Raises:
          ValueError: length is not positive, or captions is a single string.
        """
        if isinstance(captions, str):
            raise ValueError("encode takes a list of captions: write [caption] for a single one.")
        if length < 1:
            raise ValueError(f"a caption needs at least one id, not {length}: give a length >= 1.")
        ids = np.full((len(captions), length), PADDING_ID, np.int32)  # (B, L)
        for row, caption in zip(ids, captions, strict=True):
            found = [self._ids.get(word, UNKNOWN_ID) for word in split_words(caption)][:length]
            found = found or [NULL_ID]
            row[: len(found)] = found
        return ids

    def check(self, caption: str) -> None:
        """Raises where a caption has words outside the vocabulary.

        Raises:
          ValueError: names each such word and the known word nearest to it.
        """
        unknown = [word for word in dict.fromkeys(split_words(caption)) if word not in self._ids]
        if not unknown:
            return
        hints = []
        for word in unknown:
            nearest = difflib.get_close_matches(word, self.words, n=1, cutoff=0.5)
            hints.append(f"{word!r}" + (f" (nearest: {nearest[0]!r})" if nearest else ""))
        shown = caption if len(caption) <= 80 else caption[:77] + "..."
        raise ValueError(
            f"the caption {shown!r} has words that the model never saw: {', '.join(hints)}; use "
            f"words of its {len(self.words)}-word vocabulary, such as "
            f"{', '.join(repr(word) for word in self.words[:5])}."
        )
