"""The sources that an unfinished data set was begun with, so that files may vanish before it is finished.

OUTPUT/unfinished/sources.jsonl has the skipped files in its first line and one source in each of the others. The
journal and the split refer to this list, so a call that resumes uses it instead of a new listing that lacks files.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence

from videogen_jax.data import atomic_files, json_files
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.sources import Source

FILE = "sources.jsonl"
FIELDS = Source.__annotations__ | {
    "captions": json_files.Optional([[[object]]]),
    "caption": json_files.Optional(str),  # instead, in sources of one text
    "episode": json_files.Optional(str),
    "numbers": json_files.Optional({str: str}),
    # absent in sources that are files of their own
    "container": json_files.Optional(str),
    "start": json_files.Optional(float),
    "end": json_files.Optional(float),
    "members": json_files.Optional([[object]]),
    "ranges": json_files.Optional([[int]]),  # of pieces in buckets, which are not listed here
}


def resume(
    output,
    saved: dict,
    share: Sequence[Source],
    listed: Sequence[Source],
    skipped: dict[str, str],
) -> tuple[list[Source], dict[str, str], dict]:
    """Claims OUTPUT for a data set, and chooses the sources to pack.

    Args:
      output: folder of the data set, or of a part of it.
      saved: its settings as JSON values, with the fingerprint of the listing in "videos".
      share: sources to pack, as listed now.
      listed: all sources of the folder, as listed now.
      skipped: name -> reason, as listed now.
    Returns:
      (share, skipped, saved): as given or, if the only difference from the listing with which the data set was begun is
      that files have vanished, as they were then.
    Raises:
      ValueError: the data set was begun with other settings or other videos.
    """
    path = pack_settings.work_folder(output) / FILE
    begun = pack_settings.read_unfinished(output)
    if begun and path.exists() and begun.get("videos") != saved["videos"]:
        share_then, skipped_then = _read(path)
        whole = "shard" not in saved
        if _only_vanished(share_then, skipped_then, listed, skipped, whole):
            share, skipped, saved = share_then, skipped_then, saved | {"videos": begun["videos"]}
    pack_settings.claim_output(output, saved)
    if not path.exists():
        lines = itertools.chain([skipped], map(_to_json, share))
        atomic_files.write_parts(path, (f"{json.dumps(line)}\n" for line in lines))
    return list(share), skipped, saved


def _only_vanished(
    share: Sequence[Source],
    skipped: Mapping[str, str],
    listed: Sequence[Source],
    skipped_now: Mapping[str, str],
    whole: bool,
) -> bool:
    """Whether files have only vanished since `share` and `skipped` were listed.

    A part does not know the sources of the other parts; `merge` compares the listings with which they were begun.
    """
    then = {source.name: _content(source) for source in share}
    for source in listed:
        known = then.get(source.name)
        if known != _content(source) and (known or whole):
            return False
    files = {source.file for source in share}
    return not whole or skipped_now.keys() <= then.keys() | files | skipped.keys()


def _read(path: pathlib.Path) -> tuple[list[Source], dict[str, str]]:
    first, *lines = path.read_bytes().splitlines()
    skipped = json_files.parse(path, first, {str: str})
    return [_from_json(json_files.parse(path, line, FIELDS)) for line in lines], skipped


def _content(source: Source) -> tuple:
    return source.num_bytes, source.captions, source.episode, dict(source.numbers)


def _to_json(source: Source) -> dict:
    return source.to_json() | {"order_key": source.order_key}


def _from_json(fields: dict) -> Source:
    """Reads a source of one text too, which has "caption"."""
    captions = [[[0, fields.pop("caption")]]] if "caption" in fields else fields["captions"]
    captions = tuple(tuple((first, text) for first, text in entries) for entries in captions)
    members = tuple(map(tuple, fields.get("members") or ()))
    return Source(**fields | {"captions": captions, "members": members})
