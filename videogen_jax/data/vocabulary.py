"""A word-level tokenizer whose vocabulary is built from the captions of a data set.

Pure Python and NumPy, so that sampling needs no TensorFlow.
"""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

PADDING_ID = 0
UNKNOWN_ID = 1  # a word outside the vocabulary
NULL_ID = 2  # the empty caption, for classifier-free guidance
NUM_SPECIAL_IDS = 3
MOST_WORDS = 8192  # with the special ids, where a config leaves the size to the data

# Scripts written without spaces: each character is a word.
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

    The text is normalised (NFKC) and lower-cased. A word is a run of letters, digits and underscores (`\w+`) with
    their combining marks; in scripts written without spaces each character is a word. All other characters separate
    words.
    """
    text = unicodedata.normalize("NFKC", caption).lower()
    if text.isascii():
        return re.findall(r"\w+", text)
    words: list[str] = []
    joins = False  # does the next letter continue the last word?
    adjacent = False  # does the next combining mark belong to the last word?
    for character in text:
        category = unicodedata.category(character)
        if category == "Cf":  # invisible (joiners, soft hyphens); does not end a word
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
    """The known words; `words[i]` has the id i + 3, after the special ids."""

    words: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.words)) != len(self.words):
            twice = sorted({word for word in self.words if self.words.count(word) > 1})
            raise ValueError(
                f"the words of a vocabulary must be distinct, but {twice[0]!r} occurs twice."
            )

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], size: int) -> "Vocabulary":
        """Keeps the most frequent words, breaking ties alphabetically.

        Args:
          counts: word -> number of occurrences, as "words" in statistics.json.
          size: maximum number of ids, including the three special ids.
        Raises:
          ValueError: size leaves no room for a word.
        """
        if size <= NUM_SPECIAL_IDS:
            raise ValueError(
                f"a vocabulary of {size} ids has no room for a word: {NUM_SPECIAL_IDS} are "
                f"special, so set it to {NUM_SPECIAL_IDS + 1} or more."
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: size - NUM_SPECIAL_IDS]))

    @classmethod
    def from_list(cls, words: Sequence[str]) -> "Vocabulary":
        """Restores a vocabulary from the result of `to_list`."""
        return cls(tuple(words))

    def find_sources(self, other: "Vocabulary") -> np.ndarray:
        """Where each id's embedding is in another vocabulary: (len(self),) int32; -1 for a word that is new.

        The special ids are the same in all vocabularies.
        """
        ids = [other._ids.get(word, -1) for word in self.words]
        return np.asarray([*range(NUM_SPECIAL_IDS), *ids], np.int32)

    def to_list(self) -> list[str]:
        """Returns the words in the order of their ids, as JSON values."""
        return list(self.words)

    def __len__(self) -> int:
        """Returns the number of ids: the words and the three special ids."""
        return len(self.words) + NUM_SPECIAL_IDS

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i + NUM_SPECIAL_IDS for i, word in enumerate(self.words)}

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Encodes captions to ids, truncated or padded to one length.

        Args:
          captions: B captions; one without words becomes the null caption.
          length: L >= 1.
        Returns:
          (B, L) int32: word ids (1 for unknown words) padded with 0; the null caption is 2, 0, 0, ...
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
        """Checks that all words of a caption are in the vocabulary.

        Raises:
          ValueError: names each unknown word and the most similar known word.
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
            f"the caption {shown!r} has words outside the vocabulary: {', '.join(hints)}; use "
            f"some of its {len(self.words)} words, such as "
            f"{', '.join(repr(word) for word in self.words[:5])}."
        )
