"""Writes the shards of a plain data set, with a journal from which an interrupted call resumes.

Both are in OUTPUT/unfinished, as the docstring of `pack_folder` describes.
"""

import collections
import itertools
import os

import numpy as np
from absl import logging

from videogen_jax.data import atomic_files, json_files, records
from videogen_jax.data import vocabulary as vocabularies
from videogen_jax.data.annotations import Annotations
from videogen_jax.packing.extraction import read_clips
from videogen_jax.packing.sources import refuse_skipped

SPLITS = ("train", "validation")
MAX_SHARD_BYTES = 256 * 2**20  # limits what is lost when a call is interrupted


JOURNAL = {
    "split": str,
    "shard": int,
    "packed": [[int]],
    "next": [int],
    "motion_scores": [float],
    "clips": int,
    "bytes": int,
    "file_bytes": int,
    "checksum": json_files.Optional(str),  # absent in journals of earlier versions
    "skipped": {str: str},
    "cut_off": {str: int},
    "words": json_files.Optional({str: int}),  # absent in journals of earlier versions
    "counts": json_files.Optional({str: {str: int}}),  # as `write_shards` returns them
}


def read_journal(output, work) -> list[dict]:
    """Reads the journal up to the first shard that is missing, incomplete or damaged, and truncates it there.

    Args:
      output: folder of the data set.
      work: OUTPUT/unfinished.
    Returns:
      One entry per finished shard, in the order in which they were written.
    Raises:
      ValueError: the shards have the records of an earlier version.
    """
    path = work / "journal.jsonl"
    shards = []
    if path.exists():
        try:
            for line in path.read_bytes().splitlines():
                shards.append(json_files.parse(path, line, JOURNAL))
        except json_files.FieldError as error:  # most often a line cut short by a kill
            logging.warning("%s Packing resumes after %d shards.", error, len(shards))
    if any("words" not in shard for shard in shards):
        raise ValueError(
            f"{output} was begun by an earlier version, whose records have one caption and no episode: finish it with "
            "that version, or choose another --output."
        )
    for index, (shard, final_name) in enumerate(zip(shards, _final_names(shards), strict=True)):
        places = [p for p in (work / _work_name(shard), output / final_name) if p.exists()]
        if not places or not _is_intact(places[0], shard):
            shards = shards[:index]
            break
    atomic_files.write_text(
        path, "".join(json_files.dump_checked(shard) + "\n" for shard in shards)
    )
    return shards


def _is_intact(path, shard) -> bool:
    """Whether the bytes of a finished shard are those that were written."""
    if path.stat().st_size == shard["file_bytes"]:
        if "checksum" not in shard or records.checksum(path) == shard["checksum"]:
            return True
    logging.warning("The TFRecord file %s is damaged: it is packed again.", path)
    return False


def _work_name(shard):
    return f"{shard['split']}-{shard['shard']:05d}"


def _final_names(shards):
    totals = collections.Counter(shard["split"] for shard in shards)
    return [records.shard_name(s["split"], s["shard"], totals[s["split"]]) for s in shards]


def write_shards(videos, work, found, settings, journal, strict, advance) -> dict:
    """Writes shard by shard, each followed by a line of the journal.

    Args:
      videos: yields (index of the source, path of its clips, what `extract_clips` returned) in order.
      work: OUTPUT/unfinished.
      found: all sources of the data set.
      settings: settings of the data set.
      journal: entries of the finished shards; new ones are appended.
      strict: stop at the first source that is skipped.
      advance: takes the number of sources that are done, one by default.
    Returns:
      {"skipped", "cut_off", "counts"} of the sources after the last shard: name -> reason, name -> frames, and index of
      the source -> reason -> number of clips, scenes or sources that the filters left out.
    """
    notes: dict[str, dict] = {"skipped": {}, "cut_off": {}, "counts": {}}
    clips = _assign_shards(videos, found, settings, journal, notes, strict, advance)
    first = next(clips, None)  # starts the workers before TensorFlow is imported, which takes 10 s
    if first is None:
        return notes
    features = records.make_features()
    groups = itertools.groupby(itertools.chain([first], clips), key=lambda clip: clip[0])
    for (split, number), group in groups:
        shard = {"split": split, "shard": number, "packed": collections.Counter()}
        shard |= {"next": None, "motion_scores": [], "words": collections.Counter()}

        def serialize(group=group, shard=shard):
            for _, position, record in group:
                shard["packed"][position[0]] += 1
                shard["next"] = position  # source and clip with which the next shard begins
                shard["motion_scores"].append(record["motion_score"])
                for text in record["annotations"].texts:
                    shard["words"].update(vocabularies.split_words(text))
                yield records.serialize_clip(features, **record)

        path = work / _work_name(shard)
        shard["clips"], shard["bytes"] = records.write_shard(path, serialize())
        shard["file_bytes"] = path.stat().st_size
        shard["checksum"] = records.checksum(path)
        shard["packed"] = list(shard["packed"].items())  # [source, number of its clips]
        shard |= {name: dict(values) for name, values in notes.items()}
        with open(work / "journal.jsonl", "a", encoding="utf-8") as file:
            file.write(json_files.dump_checked(shard) + "\n")
            file.flush()
            os.fsync(file.fileno())
        journal.append(shard)
        for values in notes.values():
            values.clear()
    return notes


def _assign_shards(videos, found, settings, journal, notes, strict, advance):
    """Yields all clips in order as ((split, shard), (source, index of the next clip), record); adds to `notes`."""
    shards = collections.Counter(shard["split"] for shard in journal)  # number started per split
    begin = tuple(journal[-1]["next"]) if journal else (0, 0)
    advance(begin[0])
    split, clips, num_bytes = None, 0, 0
    for index, spill, (reason, frames, counts) in videos:
        name = found[index].name
        if frames:
            notes["cut_off"][name] = frames
        if counts:
            notes["counts"][str(index)] = counts
        if reason:
            notes["skipped"][name] = reason
            if strict:
                refuse_skipped(name, reason)
        partial = index == begin[0] and begin[1]  # resumes within a source, which keeps its split
        wanted = journal[-1]["split"] if partial else _choose_split(index, found, settings, shards)
        for clip, record in enumerate(read_clips(spill)):
            if (index, clip) < begin:
                continue
            full = clips == settings.clips_per_shard or num_bytes >= MAX_SHARD_BYTES
            if wanted != split or full:
                split, clips, num_bytes = wanted, 0, 0
                shards[split] += 1
            clips, num_bytes = clips + 1, num_bytes + sum(map(len, record["strips"]))
            captions, numbers = record.pop("captions"), record.pop("numbers")
            captions = tuple(tuple(map(tuple, timeline)) for timeline in captions)
            numbers = {n: np.frombuffer(values, np.float32) for n, values in numbers.items()}
            said = Annotations(captions, found[index].episode, numbers)
            record |= {"annotations": said, "source": name}
            yield (split, shards[split] - 1), (index, clip + 1), record
        advance()


def _choose_split(index, found, settings, shards):
    """Chooses the split of a source by its order key, leaving neither split empty if possible.

    Sources are sorted by order key, so the validation split comes first. It gets at least one source, however few there
    are, and leaves at least one for training.
    """
    if found[index].split:
        return found[index].split
    fraction = settings.validation_fraction
    if not fraction or (index == len(found) - 1 and not shards["train"]):
        return "train"
    missing = not shards["validation"] and not shards["train"]
    return "validation" if found[index].order_key < fraction or missing else "train"


def move_shards(output, work, journal) -> None:
    """Moves the finished shards from `work` to `output`, under their final names."""
    for shard, name in zip(journal, _final_names(journal), strict=True):
        if (work / _work_name(shard)).exists():  # else an interrupted call has moved it already
            os.replace(work / _work_name(shard), output / name)


def read_checksums(journal) -> dict[str, str]:
    """Returns the checksums of the shards that have one, by their final names."""
    names = _final_names(journal)
    return {
        n: shard["checksum"] for n, shard in zip(names, journal, strict=True) if "checksum" in shard
    }


def count_words(journal) -> collections.Counter:
    """Counts the words of all texts of the captions of all training clips."""
    words = collections.Counter()
    for shard in journal:
        if shard["split"] == "train":
            words.update(shard["words"])
    return words


def shared_numbers(journal, found) -> list[str]:
    """Returns the names of the numbers per frame that all clips have."""
    packed = {index for shard in journal for index, _ in shard["packed"]}
    names = [set(found[index].numbers) for index in packed]
    return sorted(set.intersection(*names)) if names else []


def count_clips(journal, found) -> collections.Counter:
    """Counts the clips of each source, by its name."""
    clips = collections.Counter()
    for shard in journal:
        for index, count in shard["packed"]:
            clips[found[index].name] += count
    return clips


def training_scores(journal) -> np.ndarray:
    """Returns the motion scores (N,) float32 of the training clips, in order."""
    scores = [score for s in journal if s["split"] == "train" for score in s["motion_scores"]]
    return np.asarray(scores, np.float32)
