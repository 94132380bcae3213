"""Bucketed data sets: each bucket holds clips of one shape, and each batch comes from one bucket.

    FOLDER/buckets.json         {"buckets": ["480x512x512", ...]}: frames x height x width; written last
    FOLDER/480x512x512/         a plain data set, as `pack` or `encode` writes it

The bucket of a step, and the number of earlier batches from it, are functions of (seed, step), as are the clips within
a bucket. So training resumes at any step, and all processes agree. A plain data set is a single bucket.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videogen_jax.data import (
    atomic_files,
    json_files,
    latent_statistics,
    packed_data,
    pipeline,
    records,
)
from videogen_jax.data.latent_records import TextInfo
from videogen_jax.data.pipeline import Clips, DataError, PackedData

INDEX = "buckets.json"
MIN_BATCHES = 8  # of each bucket in a period
MAX_PERIOD = 2**16  # steps


def is_bucketed(data_dir: str | Path) -> bool:
    """Whether a folder holds a finished bucketed data set."""
    return (Path(data_dir) / INDEX).is_file()


def check_kind(output: str | Path, bucketed: bool) -> None:
    """Refuses to write a bucketed data set over a plain one, or a plain one over a bucketed one.

    Args:
      output: folder to write to.
      bucketed: whether the data set to write is bucketed.
    Raises:
      ValueError: the folder holds a data set of the other kind.
    """
    plain = (Path(output) / "dataset_info.json").exists()
    if plain if bucketed else is_bucketed(output):
        found, wanted = ("plain", "bucketed") if bucketed else ("bucketed", "plain")
        raise ValueError(
            f"{output} holds a {found} data set, but this one is {wanted}: choose another --output."
        )


def write_index(output: str | Path, names: Sequence[str]) -> None:
    """Writes buckets.json, which marks a bucketed data set as finished.

    Args:
      output: folder of the data set.
      names: folder names of the finished buckets.
    """
    atomic_files.write_text(Path(output) / INDEX, json.dumps({"buckets": list(names)}, indent=1))


def open_buckets(data_dir: str | Path) -> dict[str, PackedData]:
    """Opens a data set, bucketed or plain.

    Word counts, motion-score buckets and latent statistics are computed over all buckets and shared by them.

    Args:
      data_dir: output folder of `videogen_jax.pack` or `videogen_jax.encode`.
    Returns:
      Folder -> description of each bucket, in the order of the index; a single entry for a plain data set.
    Raises:
      DataError: as `pipeline.open_data`, the index is damaged, or the buckets were encoded with different settings.
    """
    if not is_bucketed(data_dir):
        return {str(data_dir): pipeline.open_data(data_dir)}
    folder = Path(data_dir)
    names = read_index(folder)
    sets = {str(folder / name): pipeline.open_data(folder / name) for name in names}
    return _join(sets) if len(sets) > 1 else sets


def read_index(folder: str | Path) -> list[str]:
    """Reads the folder names of the buckets from buckets.json.

    Raises:
      DataError: the file is damaged.
    """
    path = Path(folder) / INDEX
    try:
        names = json_files.read(path, {"buckets": [str]}, packed_data.WAY_OUT)["buckets"]
    except json_files.FieldError as error:
        raise DataError(str(error)) from error
    if not names or any(not name or Path(name).name != name for name in names):
        raise DataError(
            f"{path} is damaged (it should name folders beside it): {packed_data.WAY_OUT}"
        )
    return names


def draw_captions(data_dir: str | Path, count: int, seed: int) -> list[str]:
    """Draws training clips uniformly, without replacement until all are used, for a caption of each.

    Args:
      data_dir: folder of a data set, bucketed or plain.
      count: number of captions.
      seed: seed of the draw.
    Returns:
      Texts, as of `pipeline.read_captions`.
    Raises:
      DataError: the data set is missing or damaged.
    """
    sets = open_buckets(data_dir).values()
    shards = [
        (path, data, length)
        for data in sets
        for path, length in zip(data.files["train"], data.lengths["train"], strict=True)
    ]
    ends = np.cumsum([length for *_, length in shards])
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(ends[-1]) for _ in range(-(-count // int(ends[-1])))]
    chosen = np.concatenate(rounds)[:count]
    shard_of = np.searchsorted(ends, chosen, side="right")
    read = {shard: pipeline.read_captions(*shards[shard][:2]) for shard in set(shard_of.tolist())}
    return [
        read[shard][number - ends[shard]].decode()  # a negative index, from the shard's end
        for shard, number in zip(shard_of.tolist(), chosen.tolist(), strict=True)
    ]


def _join(sets: dict[str, PackedData]) -> dict[str, PackedData]:
    """Replaces words, numbers per frame, motion-score buckets, text info and latent statistics by those of all buckets.

    Numbers are those that all buckets have.
    """
    words: Counter[str] = Counter()
    for data in sets.values():
        words.update(data.words)
    ranked = dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))
    # Images have a motion score of 0, which would leave fewer quantile buckets for videos.
    moving = [path for path, data in sets.items() if data.frames > 1] or list(sets)
    edges = records.motion_edges([packed_data.read_scores(path) for path in moving])
    names = next(iter(sets.values())).numbers
    names = tuple(n for n in names if all(n in data.numbers for data in sets.values()))
    shared = {"words": ranked, "numbers": names, "motion_score_buckets": edges}
    joined = {path: data._replace(**shared) for path, data in sets.items()}
    first = next(iter(sets.values())).texts
    if any(not _same_embedding(first, data.texts) for data in sets.values()):
        raise DataError(
            f"The captions of the buckets {', '.join(Path(path).name for path in sets)} were embedded with different "
            "settings: encode them again."
        )
    joined = {path: data._replace(texts=first) for path, data in joined.items()}
    infos = [data.latents for data in sets.values()]
    if all(info is None for info in infos):
        return joined
    settings = {
        None if info is None else json.dumps(info._replace(shape=[], **_NO_STATISTICS)._asdict())
        for info in infos
    }
    if len(settings) > 1:
        raise DataError(
            f"The buckets {', '.join(Path(path).name for path in sets)} were encoded with different settings: encode "
            "them again."
        )
    parts = [
        latent_statistics.from_deviation(info.places, info.mean, info.deviation)
        for info in infos
        if info is not None
    ]
    total = parts[0]
    for part in parts[1:]:
        total = latent_statistics.merge_statistics(total, part)
    moments = {"mean": total.mean.tolist(), "deviation": total.deviation.tolist()}
    return {
        path: data._replace(latents=data.latents._replace(places=total.count, **moments))
        for path, data in joined.items()
    }


def _same_embedding(one: TextInfo | None, other: TextInfo | None) -> bool:
    """Whether two text encoders are the same; the null embeddings may differ by rounding."""
    if one is None or other is None:
        return one is other
    return one.content() == other.content()


_NO_STATISTICS = {"mean": [], "deviation": [], "places": 0}


class BucketSchedule(NamedTuple):
    """Maps steps to buckets: every period is a random permutation of a fixed number of batches per bucket."""

    counts: tuple[int, ...]  # batches per bucket in a period
    seed: int

    def pick(self, step: int) -> tuple[int, int]:
        """Returns (index of the bucket of a step, number of batches drawn from it by earlier steps)."""
        period, offset = divmod(step, sum(self.counts))
        order = self._order(period)
        bucket = int(order[offset])
        before = int(np.count_nonzero(order[:offset] == bucket))
        return bucket, period * self.counts[bucket] + before

    def first_uses(self, step: int) -> list[int]:
        """Returns the indices of all buckets in the order of their first use from `step` on."""
        found: dict[int, None] = {}
        for bucket in self.walk(step):
            found[bucket] = None
            if len(found) == len(self.counts):
                return list(found)
        raise AssertionError("unreachable: every period uses every bucket")

    def walk(self, step: int) -> Iterator[int]:
        """Yields the bucket indices of `step` and all later steps."""
        period, offset = divmod(step, sum(self.counts))
        while True:
            yield from map(int, self._order(period)[offset:])
            period, offset = period + 1, 0

    def _order(self, period: int) -> np.ndarray:
        order = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.random.default_rng((self.seed, period)).permutation(order)


def make_schedule(clips: Sequence[int], batch_sizes: Sequence[int], seed: int) -> BucketSchedule:
    """Makes a schedule in which all clips are seen about equally often, independent of their bucket.

    A period is one epoch, or several if the smallest bucket has fewer than MIN_BATCHES batches, so that rounding
    changes its share by at most 1/16. For very large data sets it is part of an epoch, with each bucket at least once.

    Args:
      clips: number of clips per bucket.
      batch_sizes: batch size per bucket.
      seed: seed of the order.
    """
    batches = np.asarray(clips) / np.asarray(batch_sizes)
    batches = batches * max(1.0, MIN_BATCHES / batches.min())
    batches = batches * min(1.0, MAX_PERIOD / batches.sum())
    return BucketSchedule(tuple(np.maximum(1, np.round(batches)).astype(int).tolist()), seed)


def mix_clips(
    sources: Mapping[str, Callable[[int], Iterator[Clips]]],
    schedule: BucketSchedule,
    start_step: int,
) -> Iterator[tuple[str, Clips]]:
    """Interleaves the batches of all buckets according to a schedule.

    Args:
      sources: bucket -> function from the number of its batches already consumed to an endless iterator over the
        following ones; called once, when the bucket is first needed.
      schedule: from `make_schedule`, with buckets in the order of `sources`.
      start_step: number of batches already consumed over all buckets.
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
