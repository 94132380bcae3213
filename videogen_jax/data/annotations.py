"""What a clip carries beside its pixels: captions over time, the name of its episode, and numbers per frame.

A caption is a timeline: entries of (first frame, text), the first at frame 0, each in force until the next one begins.
Most captions have one entry. Several captions of a clip describe it in several ways.
"""

import collections
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Timeline = tuple[tuple[int, str], ...]  # (first frame, text), by frame

# Fields of a record as `tf.io` names them; TFDS shows them as mappings "captions" and "numbers".
NUMBER, FIRST_FRAME, TEXT = "captions/number", "captions/first_frame", "captions/text"
TOKENS = "captions/tokens"  # number of tokens of the text's embedding, in latent records
NAME, VALUES = "numbers/name", "numbers/values"


class Annotations(NamedTuple):
    """What is known of a clip of T frames beside its pixels."""

    captions: tuple[Timeline, ...]  # at least one
    episode: str = ""  # name of the recording that the clip was cut from; empty: not named
    numbers: Mapping[str, np.ndarray] = MappingProxyType({})  # name -> (T,) float32

    @classmethod
    def of_text(cls, text: str) -> "Annotations":
        """One caption that holds for all frames."""
        return cls((((0, text),),))

    @classmethod
    def from_record(cls, fields: Mapping[str, Any]) -> "Annotations":
        """Reads them from the fields of a record, by their names in this module, or of one with a single caption.

        Args:
          fields: field name -> NumPy array or value, as `record_decoding.parse` gives them for all numbers.
        """
        if TEXT not in fields:
            return cls.of_text(fields["caption"].decode())
        captions: list[list[tuple[int, str]]] = []
        rows = zip(fields[NUMBER], fields[FIRST_FRAME], fields[TEXT], strict=True)
        for number, first, text in rows:
            if number == len(captions):
                captions.append([])
            captions[-1].append((int(first), text.decode()))
        names = [name.decode() for name in fields[NAME]]
        numbers = dict(
            zip(names, np.split(fields[VALUES], len(names)), strict=True) if names else ()
        )
        return cls(tuple(map(tuple, captions)), fields["episode"].decode(), numbers)

    @property
    def texts(self) -> list[str]:
        """The texts of all entries of all captions, in order."""
        return [text for timeline in self.captions for _, text in timeline]

    def describe(self, chosen: Sequence[int] | np.ndarray) -> str:
        """The text of the first caption that most of some frames have, of equals the earlier one.

        Args:
          chosen: as of `select`.
        """
        (timeline, *_) = self.select(chosen).captions
        ends = [first for first, _ in timeline[1:]] + [len(chosen)]
        lengths: collections.Counter[str] = collections.Counter()
        for (first, text), end in zip(timeline, ends, strict=True):
            lengths[text] += end - first
        return lengths.most_common(1)[0][0]

    def select(self, chosen: Sequence[int] | np.ndarray) -> "Annotations":
        """The annotations of some frames, such as those of a cut or a resampled clip.

        Args:
          chosen: (K,) indices of frames, never falling, K >= 1.
        Returns:
          Annotations of K frames. A number of a frame is that of the frame it was; an entry begins at the first chosen
          frame at or after its own; entries that none shows are dropped, and equal neighbours are merged.
        """
        chosen = np.asarray(chosen)
        captions = tuple(_select_entries(timeline, chosen) for timeline in self.captions)
        numbers = {name: values[chosen] for name, values in self.numbers.items()}
        return self._replace(captions=captions, numbers=numbers)

    def to_record(self) -> dict[str, Any]:
        """The fields of a record, as TFDS takes them."""
        entries = [
            {"number": number, "first_frame": first, "text": text}
            for number, timeline in enumerate(self.captions)
            for first, text in timeline
        ]
        names = sorted(self.numbers)
        values = [np.asarray(self.numbers[name], np.float32) for name in names]
        numbers = {"name": names, "values": np.concatenate([np.zeros(0, np.float32), *values])}
        return {"captions": entries, "episode": self.episode, "numbers": numbers}


def _select_entries(timeline: Timeline, chosen: np.ndarray) -> Timeline:
    starts = [first for first, _ in timeline]
    in_force = np.searchsorted(starts, chosen, side="right") - 1  # (K,) entry of each frame
    entries: list[tuple[int, str]] = []
    for frame in np.flatnonzero(np.diff(in_force, prepend=-1)).tolist():
        text = timeline[in_force[frame]][1]
        if not entries or entries[-1][1] != text:
            entries.append((frame, text))
    return tuple(entries)


def make_features(extra: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Makes the TFDS features of annotations: the single definition of these fields of a record.

    Args:
      extra: features of each entry of the captions beside its number, first frame and text.
    """
    import tensorflow_datasets as tfds

    features = tfds.features
    entry = {"number": np.int32, "first_frame": np.int32, "text": features.Text(), **extra}
    numbers = {"name": features.Sequence(features.Text()), "values": features.Sequence(np.float32)}
    return {
        "captions": features.Sequence(entry),
        "episode": features.Text(),
        "numbers": features.FeaturesDict(numbers),
    }
