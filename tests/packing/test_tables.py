"""Clips listed in tables: names, splits and reasons; packed, they equal files that hold the same frames."""

import collections
import csv
import json
import os
import shlex

import numpy as np
import pytest

from tests.data.made_videos import write
from tests.data.test_table_files import write_csv, write_jsonl, write_parquet
from tests.packing.test_pack import caption_of, read, run
from videogen_jax.packing import (
    input_forms,
    media_files,
    merge_parts,
    metadata,
    saved_sources,
    sidecars,
    sources,
    tables,
)
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.tables import Columns

SPANS = Columns(start="start", end="end")


def add(folder, *names, content=b"video"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    add(tmp_path / "clips", "a.mp4", "b.mp4", "sub/c.webm")
    return tmp_path / "clips"


def listing(path, columns=Columns(), **options):  # noqa: B008
    defaults = dict(video_folder=None, images=False, follow_links=False, max_caption_bytes=2**16)
    return input_forms.list_input(path, columns=columns, **defaults | options)


def texts(found):
    return {source.name: source.texts for source in found.sources}


def table(folder, rows, header=("file_name", "text"), name="clips.csv"):
    return write_csv(folder / name, [header, *rows])


def test_a_whole_video_is_named_and_placed_as_in_a_folder(folder):
    path = table(folder, [["sub/c.webm", "two\nlines"], ["./a.mp4", "a"], ["b.mp4", "b"]])
    found = listing(path)
    assert texts(found) == {"a.mp4": ["a"], "b.mp4": ["b"], "sub/c.webm": ["two\nlines"]}
    assert found.skipped == {}
    for name, text in {"a": "a", "b": "b", "sub/c": "two\nlines"}.items():
        (folder / f"{name}.txt").write_text(text)
    expected, skipped = sources.list_sources(folder)
    assert found.sources == expected  # in order, too
    assert sources.fingerprint(found.sources, {}) == sources.fingerprint(expected, skipped)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_all_kinds_of_tables_give_the_same_clips(folder, kind):
    rows = [["a.mp4", "x", "one", "0", "2.5"], ["a.mp4", "y", "", "0:01:02.5", "90"]]
    header = ["video", "caption", "detail", "start", "end"]
    path = folder / f"clips.{kind}"
    if kind in ("csv", "tsv"):
        write_csv(path, [header, *rows], "," if kind == "csv" else "\t")
    else:
        values = [dict(zip(header, row, strict=True)) for row in rows]
        values[0]["end"], values[1]["detail"] = 2.5, None
        values[0]["end"] = values[0]["end"] if kind == "jsonl" else "2.5"
        (write_jsonl if kind == "jsonl" else write_parquet)(path, values)
    columns = Columns(captions=("caption", "detail"), start="start", end="end")
    found = listing(path, columns)
    assert texts(found) == {"a.mp4[0-2.5]": ["x", "one"], "a.mp4[62.5-90]": ["y"]}
    assert sorted(source.span for source in found.sources) == [(0.0, 2.5), (62.5, 90.0)]
    assert {source.file for source in found.sources} == {"a.mp4"}


def test_panda_has_lists_of_times_and_captions_in_a_row(folder):
    times = "[['0:00:57.115', '0:01:06.124'], ['0:01:06.124', '0:01:10']]"
    captions = """['It\\'s a dog.', "A cat's \\"tail\\"."]"""
    rows = [["a", "https://example.com/watch?v=a", times, captions, "[0.4, 0.5]"]]
    path = table(folder, rows, ["videoID", "url", "timestamp", "caption", "matching_score"])
    columns = Columns(path="videoID", times="timestamp")
    found = listing(path, columns)
    assert texts(found) == {
        "a.mp4[57.115-66.124]": ["It's a dog."],
        "a.mp4[66.124-70]": ['A cat\'s "tail".'],
    }
    rows = [{"videoID": "a", "timestamp": [[0, 1.5]], "caption": ["x"]}]
    assert texts(listing(write_jsonl(folder / "p.jsonl", rows), columns)) == {"a.mp4[0-1.5]": ["x"]}


def test_rows_of_one_clip_are_its_captions(folder):
    rows = [["a.mp4", "x"], ["b.mp4", "z"], ["a.mp4", "y"], ["./a.mp4", " x "]]
    found = listing(table(folder, rows))
    assert texts(found) == {"a.mp4": ["x", "y"], "b.mp4": ["z"]}
    assert found.skipped == {"clips.csv line 5": "it repeats an earlier row"}
    rows = [{"file_name": "a.mp4", "text": ["x", "y", "x"]}]
    assert texts(listing(write_jsonl(folder / "a.jsonl", rows))) == {"a.mp4": ["x", "y"]}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"start": "3", "end": "2"}, "its end, 2 s, is not after its start, 3 s"),
        ({"start": "3", "end": "3"}, "its end, 3 s, is not after its start, 3 s"),
        ({"start": "-1", "end": "2"}, 'its start is "-1": give seconds from 0 on'),
        ({"start": "nan", "end": "2"}, 'its start is "nan": give seconds'),
        ({"start": "0", "end": "inf"}, 'its end is "inf": give seconds'),
        ({"start": "one", "end": "2"}, 'its start is "one": give seconds'),
        ({"start": "1:2:3:4"}, 'its start is "1:2:3:4": give seconds'),
        ({"start": True}, "its start is true: give seconds"),
        ({"start": 10**400}, "its start is 1000"),
        ({"text": " \n"}, "its caption is empty"),
        ({"text": None}, "its caption is empty"),
        ({"text": []}, "its caption is empty"),
        ({"text": 5}, "its caption is no text: 5"),
        ({"text": "x" * 101}, "its captions have 101 bytes, more than --max_caption_bytes=100"),
        ({"text": "\ud83d"}, "its caption has a letter that is no Unicode text"),
        ({"file_name": ""}, "it names no file"),
        ({"file_name": 7}, "it names no file"),
    ],
)
def test_rows_that_cannot_be_used_are_listed_with_the_reason(folder, cells, reason):
    rows = [{"file_name": "b.mp4", "text": "good", "start": None, "end": None}]
    rows += [{"file_name": "a.mp4", "text": "x", "start": None, "end": None} | cells]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = listing(path, SPANS, max_caption_bytes=100)
    assert texts(found) == {"b.mp4": ["good"]}
    ((name, why),) = found.skipped.items()
    assert name == "a.jsonl line 2" and why.startswith(reason)


def test_lists_that_do_not_match_are_reasons(folder):
    cells = {
        "[[0, 1]": "its list of times should be a list, but is",
        "[0, 1]": "its list of times has 0 instead of",
        "[[0, 1], [1, 2]]": "it has 2 times, but 1 captions",
        "__import__('os').remove('a.mp4')": "its list of times should be a list, but is",
        "[__import__('os').remove('a.mp4')]": "its list of times should be a list, but is",
        "[" * 5000: "its list of times should be a list, but is",
    }
    rows = [["b", "[[0, 1]]", "['x']"], *([f"{i}", cell, "['x']"] for i, cell in enumerate(cells))]
    add(folder, *(f"{i}.mp4" for i in range(len(cells))))
    found = listing(table(folder, rows, ["path", "times", "text"]), Columns(times="times"))
    assert texts(found) == {"b.mp4[0-1]": ["x"]}
    for why, expected in zip(found.skipped.values(), cells.values(), strict=True):
        assert why.startswith(expected)
    assert (folder / "a.mp4").exists()
    rows = [{"path": "b", "times": [[0, 1]], "text": ["x"]}, {"path": "a", "text": ["x", "y"]}]
    found = listing(write_jsonl(folder / "p.jsonl", rows), Columns(times="times"))
    assert texts(found) == {"b.mp4[0-1]": ["x"]}
    assert found.skipped == {"p.jsonl line 2": "its list of times is empty"}


def test_files_that_cannot_be_used_are_listed_once_with_their_rows(folder, tmp_path, monkeypatch):
    add(tmp_path / "other", "out.mp4")
    (folder / "link.mp4").symlink_to(tmp_path / "other" / "out.mp4")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "inside.mp4").symlink_to("a.mp4")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "notes.md").write_text("x")
    (folder / "poster.jpg").write_bytes(b"x")
    names = ["a.mp4", "inside.mp4", f"{folder}/b.mp4", "gone.mp4", "gone.mp4", "../other/out.mp4"]
    names += [str(tmp_path / "other" / "out.mp4"), "sub/../../other/out.mp4", "link.mp4"]
    names += ["linked/out.mp4", "fifo.mp4", "notes.md", "poster.jpg", "x" * 5000, "sub"]
    path = table(folder, [[name, f"{i}"] for i, name in enumerate(names)])
    found = listing(path)
    assert texts(found) == {"a.mp4": ["0"], "inside.mp4": ["1"], "b.mp4": ["2"]}
    assert {name[:40]: why for name, why in found.skipped.items()} == {
        "gone.mp4": f"{tables.MISSING} (2 rows)",
        "../other/out.mp4": f"{tables.LEADS_OUT} (2 rows)",
        str(tmp_path / "other" / "out.mp4")[:40]: tables.LEADS_OUT,
        "link.mp4": f"it {sidecars.OUTSIDE_LINK}",
        "linked/out.mp4": tables.LEADS_OUT,
        "fifo.mp4": "it is not a regular file",
        "notes.md": tables.NO_VIDEO,
        "sub": f"{tables.MISSING}, nor one with a suffix of videos",
        "poster.jpg": media_files.UNWANTED_IMAGE,
        "x" * 40: "its path is none",
    }
    followed = listing(path, follow_links=True)
    assert len(followed.sources) == 3 + 4
    calls = []
    check = media_files.check_status
    monkeypatch.setattr(media_files, "check_status", lambda *a: calls.append(a) or check(*a))
    rows = [["a.mp4", "x", str(i), str(i + 1)] for i in range(500)]
    assert (
        len(listing(table(folder, rows, [*"pqrs"]), Columns("p", ("q",), "r", "s")).sources) == 500
    )
    assert len(calls) == 1


def test_addresses_are_refused(folder):
    path = table(folder, [["a.mp4", "x"], ["https://example.com/b.mp4", "y"]])
    with pytest.raises(ValueError, match="file of clips.csv line 3 is .*only local paths"):
        listing(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(), "no column file_name or .* or path, only x, y, z: name one with --path_column"),
        (Columns(path="x"), "no column text or caption, only x, y, z: name one with --caption_c"),
        (Columns(path="w", captions=("y",)), r"no column 'w' \(--path_column\), only x, y, z"),
        (Columns(path="x", captions=("y", "v")), r"no column 'v' \(--caption_column\), only x"),
        (Columns(path="x", captions=("y",), end="e"), r"no column 'e' \(--end_column\), only x"),
    ],
)
def test_a_missing_column_lists_those_there(folder, columns, message):
    path = table(folder, [["a.mp4", "x", "1"]], header="xyz")
    with pytest.raises(ValueError, match=message):
        listing(path, columns)


def test_clips_of_a_video_are_in_one_split_that_of_the_whole_video(folder):
    names = [f"{i}.mp4" for i in range(40)]
    add(folder, *names)
    rows = [[name, "x", str(start), str(start + 1)] for name in names for start in range(5)]
    found = listing(table(folder, rows, ["video", "text", "start", "end"]), SPANS).sources
    order = [source.file for source in found]
    assert sum(a == b for a, b in zip(order, order[1:], strict=False)) < 20  # they are mixed
    splits = {}
    for source in sources.fix_splits(found, 0.2):
        splits.setdefault(source.file, set()).add(source.split)
    whole = listing(table(folder, [[name, "x"] for name in names])).sources
    expected = {source.name: {source.split} for source in sources.fix_splits(whole, 0.2)}
    assert splits == expected and {"validation"} in splits.values()


def test_an_unfinished_set_keeps_its_list_when_files_vanish(folder, tmp_path):
    rows = [["a.mp4", "x", str(i), str(i + 1)] for i in range(3)] + [["b.mp4", "y", "0", "1"]]
    rows += [["gone.mp4", "z", "0", "1"], ["b.mp4", "y", "5", "4"]]
    path = table(folder, rows, ["video", "text", "start", "end"])

    def resume():
        found = listing(path, SPANS)
        saved = {"videos": sources.fingerprint(found.sources, found.skipped)}
        options = (tmp_path / "set", saved, found.sources, found.sources, found.skipped)
        return found, saved_sources.resume(*options)

    before, first = resume()
    assert len(first[0]) == 4 and list(first[1]) == ["clips.csv line 7", "gone.mp4"]
    assert saved_sources._read(tmp_path / "set" / "unfinished" / "sources.jsonl")[0] == first[0]
    (folder / "a.mp4").unlink()
    after, again = resume()
    assert again == first
    assert pack_settings.read_unfinished(tmp_path / "set")["videos"] == first[2]["videos"]
    # What packing saves at its end is what a listing gives then.
    present = before.without_vanished(before.sources, before.skipped)
    assert sources.fingerprint(*present) == sources.fingerprint(after.sources, after.skipped)
    table(folder, [*rows, ["b.mp4", "new", "2", "3"]], ["video", "text", "start", "end"])
    with pytest.raises(ValueError, match="the videos or their captions changed"):
        resume()


def test_video_folder(folder):
    write_csv(folder / "metadata.csv", [["file_name", "text"], ["a.mp4", "x"], ["sub/c.webm", "y"]])
    found = listing(folder)
    assert texts(found) == {"a.mp4": ["x"], "sub/c.webm": ["y"]}
    assert found.skipped == {"b.mp4": tables.UNNAMED}
    (folder / "metadata.csv").unlink()
    write_jsonl(folder / "sub" / "metadata.jsonl", [{"video_file_name": "c.webm", "text": "z"}])
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.mp4", "text": "x"}])
    assert texts(listing(folder)) == {"a.mp4": ["x"], "sub/c.webm": ["z"]}
    (folder / "b.mp4").unlink()
    present = found.without_vanished(found.sources, found.skipped)
    assert present == (found.sources, {})


FRAMES, CLIPS, VIDEOS = 8, 20, 50


def caption(video, clip):
    return f'clip "{clip}",\nof film {video}'


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """50 videos of 20 seconds with a caption for each second: in a table with a row for each, and beside the videos."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    (folder / "films").mkdir()
    rows = [["path", "first", "last", "caption"]]
    for video in range(VIDEOS):
        frames = rng.integers(0, 256, (CLIPS * FRAMES, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        path = folder / "films" / f"{video:02d}.mp4"
        write(path, frames, options={"g": "12", "bf": "2", "preset": "veryfast", "threads": "1"})
        said = [[FRAMES * clip, caption(video, clip)] for clip in range(CLIPS)]
        path.with_suffix(".json").write_text(json.dumps({"captions": [said]}))
        for clip in range(CLIPS):
            rows.append([path.name, clip, f"0:00:{clip + 1:02d}.000", caption(video, clip)])
    write_csv(folder / "clips.csv", rows, quoting=csv.QUOTE_ALL)
    return folder


def clips_of(output):
    """(name of the video, caption) -> (bytes of the frames, split)."""
    found = {}
    for split in ("train", "validation"):
        for item in read(output, split):
            key = item["source"].decode().partition("[")[0], caption_of(item)
            found[key] = item["strips"].tobytes(), split
    return found


@pytest.mark.slow
def test_a_table_of_a_thousand_rows_gives_the_clips_of_a_folder(films, tmp_path):
    """The videos of the folder are split into clips as long as the rows, and have the same captions over time."""
    options = dict(size=16, frames=FRAMES, workers=2)
    run(**options, input=films / "films", output=tmp_path / "folder")
    flags = dict(path_column="path", start_column="first", end_column="last")
    flags |= dict(video_folder=films / "films", input=films / "clips.csv")
    report = run(**options, **flags, output=tmp_path / "table")
    assert report["skipped"] == [] and sum(report["clips"].values()) == VIDEOS * CLIPS
    expected, found = clips_of(tmp_path / "folder"), clips_of(tmp_path / "table")
    assert found == expected and len(found) == VIDEOS * CLIPS  # in the splits of the folder, too
    assert len({strips for strips, _ in found.values()}) == VIDEOS * CLIPS
    assert run(**options, **flags, output=tmp_path / "table")["finished_before"]


@pytest.mark.slow
def test_parts_and_buckets_hold_the_seconds_of_rows(films, tmp_path):
    """Of two machines, into buckets of 4 frames: each row of 8 frames gives two clips, of its seconds alone."""
    lines = (films / "clips.csv").read_bytes().split(b'"\r\n')
    (films / "some.csv").write_bytes(b'"\r\n'.join(lines[:61]) + b'"\r\n"gone.mp4","0","1","x"\r\n')
    options = dict(buckets="4x16x16", workers=1, validation_fraction=0.3, clips_per_shard=16)
    options |= dict(path_column="path", start_column="first", end_column="last")
    options |= dict(input=films / "some.csv", video_folder=films / "films")
    whole = run(**options, output=tmp_path / "whole")
    run(**options, output=tmp_path / "set", shard="1/2")
    with pytest.raises(ValueError, match="part 0 of 2 is missing: call python .*--input=") as info:
        merge_parts.merge(tmp_path / "set")
    command = shlex.split(str(info.value).partition(": call python -m videogen_jax.pack ")[2])
    flag_names = {word.partition("=")[0] for word in command}
    assert {"--video_folder", "--path_column", "--start_column", "--end_column"} <= flag_names
    run(**options, output=tmp_path / "set", shard="0/2")
    report = merge_parts.merge(tmp_path / "set")
    for found in (whole, report):
        assert found["skipped"] == [{"file": "gone.mp4", "reason": tables.MISSING}]
        assert found["clips"]["train"] + found["clips"]["validation"] == 120
    clips = []
    for name in ("whole", "set"):
        found = collections.defaultdict(list)
        for split in ("train", "validation"):
            for item in read(tmp_path / name / "4x16x16", split):
                key = item["source"].decode(), caption_of(item), split
                found[key].append(item["strips"].tobytes())
        clips.append({key: sorted(strips) for key, strips in found.items()})
    assert clips[0] == clips[1] and len(clips[0]) == 60
    assert {len(set(strips)) for strips in clips[0].values()} == {2}
    assert len({strip for strips in clips[0].values() for strip in strips}) == 120


def test_lists_of_the_report_are_bounded(monkeypatch):
    monkeypatch.setattr(metadata, "MAX_LISTED", 2)
    report = {"skipped": [1, 2, 3], "frames_cut_off": {"a": 1, "b": 2, "c": 3, "d": 4}}
    report |= {"long_captions": ["x"], "captions_without_words": []}
    first = metadata.bound_lists(report)
    assert first == report | {
        "skipped": [1, 2],
        "frames_cut_off": {"a": 1, "b": 2},
        "not_listed": {"skipped": 1, "frames_cut_off": 2},
    }
    joined = metadata.bound_lists(report, [first, {}])
    assert joined["not_listed"] == {"skipped": 2, "frames_cut_off": 4}
    assert (
        metadata.bound_lists(report | {"skipped": [], "frames_cut_off": {}}).keys() == report.keys()
    )
