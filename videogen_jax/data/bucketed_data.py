"""Data sets in buckets: clips of one shape each, drawn batch by batch in proportion to their number.

    FOLDER/buckets.json         {"buckets": ["480x512x512", ...]}: frames x height x width; written last
    FOLDER/480x512x512/         a plain data set, as `pack` or `encode` writes it

Which bucket a step draws from, and how many batches of it came before, follow from (seed, step) alone, as the clips of
each bucket do: a run goes on at any step, and all processes agree. A plain data set is one bucket.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videogen_jax.data import atomic_files, latent_statistics, pipeline, records
from videogen_jax.data.latent_records import TextInfo
from videogen_jax.data.pipeline import Clips, DataError, PackedData

INDEX = "buckets.json"
LEAST_BATCHES = 8  # of a bucket in a period
LONGEST_PERIOD = 2**16  # steps


def is_bucketed(data_dir: str | Path) -> bool:
    """Whether a folder holds a finished data set in buckets."""
    return (Path(data_dir) / INDEX).is_file()


def check_kind(output: str | Path, bucketed: bool) -> None:
    """Refuses to write a set in buckets where a plain one is, or the other way round.

    Args:
      output: folder to write to.
      bucketed: what is to be written.
    Raises:
      ValueError: says what is there.
    """
    plain = (Path(output) / "dataset_info.json").exists()
    if plain if bucketed else is_bucketed(output):
        there, here = ("a plain data set", "in buckets") if bucketed else ("buckets", "plain")
        raise ValueError(
            f"{output} holds {there}, but this one is {here}: choose another --output, or delete {output}."
        )


def write_index(output: str | Path, names: Sequence[str]) -> None:
    """Makes a set in buckets whole.

    Args:
      output: its folder.
      names: of the buckets' folders, all finished.
    """
    atomic_files.write_text(Path(output) / INDEX, json.dumps({"buckets": list(names)}, indent=1))


def open_buckets(data_dir: str | Path) -> dict[str, PackedData]:
    """Reads what is written about a data set, in buckets or plain.

    Words, motion scores and the spread of latents are joined, so that they mean the same in every bucket.

    Args:
      data_dir: output folder of `videogen_jax.pack` or `videogen_jax.encode`.
    Returns:
      Folder of each bucket, in the order of the index, to its description. Of a plain set there is one.
    Raises:
      DataError: as `pipeline.open_data`, the index is damaged, or the buckets were not made alike.
    """
    if not is_bucketed(data_dir):
        return {str(data_dir): pipeline.open_data(data_dir)}
    folder = Path(data_dir)
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["buckets"]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it names no bucket")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / INDEX} is damaged ({error}): run videogen_jax.pack or encode again."
        ) from error
    sets = {str(folder / name): pipeline.open_data(folder / name) for name in names}
    return _join(sets) if len(sets) > 1 else sets


def draw_captions(data_dir: str | Path, count: int, seed: int) -> list[str]:
    """Captions as training meets them: of clips drawn uniformly, without putting them back while there are enough.

    Args:
      data_dir: of a data set, plain or in buckets.
      count: captions.
      seed: of the draw.
    Returns:
      The captions.
    Raises:
      DataError: the data set is missing or damaged.
    """
    sets = open_buckets(data_dir).values()
    shards = [
        shard
        for data in sets
        for shard in zip(data.files["train"], data.lengths["train"], strict=True)
    ]
    ends = np.cumsum([length for _, length in shards])
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(ends[-1]) for _ in range(-(-count // int(ends[-1])))]
    chosen = np.concatenate(rounds)[:count]
    places = np.searchsorted(ends, chosen, side="right")
    read = {place: pipeline.read_captions(shards[place][0]) for place in set(places.tolist())}
    return [
        read[place][number - ends[place]].decode()  # counted from the shard's end
        for place, number in zip(places.tolist(), chosen.tolist(), strict=True)
    ]


def _join(sets: dict[str, PackedData]) -> dict[str, PackedData]:
    """The same sets with the numbers that have to agree taken over all of them."""
    words: Counter[str] = Counter()
    for data in sets.values():
        words.update(data.words)
    ranked = dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))
    # Images stand still: their zeros would leave the videos fewer buckets.
    moving = [path for path, data in sets.items() if data.frames > 1] or list(sets)
    edges = records.motion_edges([read_scores(path) for path in moving])
    joined = {
        path: data._replace(words=ranked, motion_score_buckets=edges) for path, data in sets.items()
    }
    first = next(iter(sets.values())).texts
    if any(not _embedded_alike(first, data.texts) for data in sets.values()):
        raise DataError(
            f"The captions of the buckets {', '.join(Path(path).name for path in sets)} were not embedded alike: "
            "encode them again."
        )
    joined = {path: data._replace(texts=first) for path, data in joined.items()}
    infos = [data.latents for data in sets.values()]
    if all(info is None for info in infos):
        return joined
    alike = {
        None if info is None else json.dumps(info._replace(shape=[], **_unmeasured)._asdict())
        for info in infos
    }
    if len(alike) > 1:
        raise DataError(
            f"The buckets {', '.join(Path(path).name for path in sets)} were not encoded alike: encode them again."
        )
    parts = [
        latent_statistics.from_spread(info.places, info.mean, info.deviation)
        for info in infos
        if info is not None
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = latent_statistics.merge_statistics(whole, part)
    spread = {"mean": whole.mean.tolist(), "deviation": whole.deviation.tolist()}
    return {
        path: data._replace(latents=data.latents._replace(places=whole.count, **spread))
        for path, data in joined.items()
    }


def _embedded_alike(one: TextInfo | None, other: TextInfo | None) -> bool:
    """Whether caption embeddings are of the same weights; those of no caption may differ by rounding."""
    if one is None or other is None:
        return one is other
    rest = {"path": "", "null_tokens": [], "null_pooled": []}
    return one._replace(**rest) == other._replace(**rest)


_unmeasured = {"mean": [], "deviation": [], "places": 0}


def read_scores(folder: str | Path) -> np.ndarray:
    """The motion scores of a plain set's train clips.

    Args:
      folder: of the set.
    Returns:
      (N,) float32.
    Raises:
      DataError: the file is missing or damaged.
    """
    path = Path(folder) / records.MOTION_SCORES
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): pack the set again.") from error


class BucketSchedule(NamedTuple):
    """Which bucket each step draws from: in every period each as often as it has batches, in an order of its own."""

    counts: tuple[int, ...]  # batches of each bucket in a period
    seed: int

    def pick(self, step: int) -> tuple[int, int]:
        """The bucket of a step.

        Args:
          step: counted from 0.
        Returns:
          (number of the bucket, batches that earlier steps have drawn from it).
        """
        period, place = divmod(step, sum(self.counts))
        order = self._order(period)
        bucket = int(order[place])
        before = int(np.count_nonzero(order[:place] == bucket))
        return bucket, period * self.counts[bucket] + before

    def first_uses(self, step: int) -> list[int]:
        """All buckets, in the order in which they are first drawn from.

        Args:
          step: from which on.
        Returns:
          Their numbers.
        """
        found: dict[int, None] = {}
        for bucket in self.walk(step):
            found[bucket] = None
            if len(found) == len(self.counts):
                return list(found)
        raise AssertionError("unreachable: every period has every bucket")

    def walk(self, step: int) -> Iterator[int]:
        """The buckets of this step and all that follow."""
        period, place = divmod(step, sum(self.counts))
        while True:
            yield from map(int, self._order(period)[place:])
            period, place = period + 1, 0

    def _order(self, period: int) -> np.ndarray:
        order = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.random.default_rng((self.seed, period)).permutation(order)


def make_schedule(clips: Sequence[int], batch_sizes: Sequence[int], seed: int) -> BucketSchedule:
    """A schedule by which every bucket's clips are seen about equally often.

    Args:
      clips: of each bucket.
      batch_sizes: of each bucket.
      seed: of the order.
    Returns:
      The schedule. A period is an epoch, or several, so that the smallest bucket has at least LEAST_BATCHES in it and
      rounding changes its share by 1 in 16 at most; of very large sets it is a part of one, with each bucket at least
      once.
    """
    batches = np.asarray(clips) / np.asarray(batch_sizes)
    batches = batches * max(1.0, LEAST_BATCHES / batches.min())
    batches = batches * min(1.0, LONGEST_PERIOD / batches.sum())
    return BucketSchedule(tuple(np.maximum(1, np.round(batches)).astype(int).tolist()), seed)


def mix_clips(
    sources: Mapping[str, Callable[[int], Iterator[Clips]]],
    schedule: BucketSchedule,
    start_step: int,
) -> Iterator[tuple[str, Clips]]:
    """Batches of all buckets as the schedule has them.

    Args:
      sources: bucket -> (batches of it that the run has had) to the ones that follow, endless; called once, when the
        bucket's first batch is due.
      schedule: of `make_schedule`, in the order of the sources.
      start_step: batches of any bucket that the run has had.
    Yields:
      (bucket, batch).
    """
    names = list(sources)
    opened: dict[str, Iterator[Clips]] = {}
    for step, bucket in enumerate(schedule.walk(start_step), start_step):
        name = names[bucket]
        if name not in opened:
            opened[name] = sources[name](schedule.pick(step)[1])
        yield name, next(opened[name])
