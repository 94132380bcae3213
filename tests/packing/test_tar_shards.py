"""Clips in tar archives: packed by position they equal the unpacked folder; damage and odd members are listed."""

import io
import json
import pathlib
import tarfile
import tracemalloc

import numpy as np
import pytest

from tests.packing.test_pack import grey_video, run, shard_bytes
from tests.packing.test_tables import listing, texts
from videogen_jax.data.video_writer import write_video
from videogen_jax.packing import extraction, media_files, pack_folder, tar_shards
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.tables import Columns


def write_tar(path, members, mode="w", **options):
    """Writes {name: content}, or (TarInfo, content)."""
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def member(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_captions_are_beside_the_videos_in_text_or_json(tmp_path, form):
    long = "d" * 120 + "/" + "é" * 40 + ".mp4"
    members = {
        "a.mp4": b"video",
        "a.txt": "\ufeff a dog \n",
        "./sub/b.MP4": b"video b",
        "sub/b.json": json.dumps({"caption": "b", "key": 1}),
        "c.d.webm": b"v",
        "c.d.json": json.dumps({"captions": ["c", [[0, "x"], [3, "y"]]], "episode": ""}),
        "e.mp4": b"v",
        "e.json": json.dumps({"text": ["e", "f"], "fps": 3}),
        "g.mp4": b"v",
        "g.txt": "text wins",
        "g.json": json.dumps({"caption": "metadata"}),
        long: b"long",
        f"{long[:-4]}.txt": "long",
        "notes.md": "x",
        ".hidden.mp4": b"v",
        "__key__": "x",
    }
    write_tar(tmp_path / "s.tar", members, format=form)
    contents = {name.removeprefix("./"): content for name, content in members.items()}
    found = listing(tmp_path / "s.tar")
    assert texts(found) == {
        "a.mp4": ["a dog"],
        "sub/b.MP4": ["b"],
        "c.d.webm": ["c", "x", "y"],
        "e.mp4": ["e", "f"],
        "g.mp4": ["text wins"],
        long: ["long"],
    }
    assert found.skipped == {}
    for source in found.sources:
        (name, offset, size), *rest = source.members
        assert name == source.name.rpartition("/")[2] and not rest
        with tar_shards.copy_members(
            str(found.folder / source.file), source.members, str(tmp_path / "copies")
        ) as path:
            with open(path, "rb") as file:
                assert file.read() == contents[source.name]
        assert not (tmp_path / "copies").exists()
    chosen = listing(tmp_path / "s.tar", Columns(captions=("caption",)))
    assert texts(chosen)["g.mp4"] == ["metadata"] and "e.mp4" not in texts(chosen)
    assert chosen.skipped["s.tar/e.mp4"] == "the caption e.json has no field caption"


def test_members_that_are_not_packed_are_listed_with_the_reason(tmp_path):
    good = [("a.mp4", b"v"), ("a.txt", "a")]
    members = [
        *good,
        ("a.mp4", b"other"),
        ("../up.mp4", b"v"),
        ("/abs.mp4", b"v"),
        ("x/../../up.mp4", b"v"),
        (member("link.mp4", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (member("hard.mp4", tarfile.LNKTYPE, linkname="a.mp4"), b""),
        (member("device.mp4", tarfile.CHRTYPE), b""),
        (member("fifo.mp4", tarfile.FIFOTYPE), b""),
        (member("folder.mp4", tarfile.DIRTYPE), b""),
        ("mute.mp4", b"v"),
        ("both.mp4", b"v"),
        ("both.txt", "x"),
        ("both.json", '{"captions": ["x"]}'),
        ("latin.mp4", b"v"),
        ("latin.txt", b"caf\xe9"),
        ("odd.mp4", b"v"),
        ("odd.json", '{"label": 3}'),
        ("broken.mp4", b"v"),
        ("broken.json", "{"),
        ("n" * 256 + ".mp4", b"v"),
        ("a.png", b"v"),
        (b"\xe9.mp4".decode("utf-8", "surrogateescape"), b"v"),
    ]
    write_tar(tmp_path / "s.tar", members)
    found = listing(tmp_path / "s.tar")
    assert texts(found) == {"a.mp4": ["a"]} and found.sources[0].num_bytes == 1
    outside, irregular = "its path leads out of the archive", "it is no regular file, but a link, a"
    expected = {
        "a.mp4": "the archive has it twice: the first is packed",
        "../up.mp4": outside,
        "/abs.mp4": outside,
        "x/../../up.mp4": outside,
        "link.mp4": irregular,
        "hard.mp4": irregular,
        "device.mp4": irregular,
        "fifo.mp4": irregular,
        "mute.mp4": "no caption: mute.txt is missing in the archive",
        "both.mp4": "both both.txt and both.json hold its captions: remove one of them",
        "latin.mp4": "the caption latin.txt is not UTF-8 text (byte 3 is 0xe9",
        "odd.mp4": "the caption odd.json has no field captions or caption",
        "broken.mp4": "the caption broken.json is damaged (Expecting",
        "n" * 255: "its name is longer than 255 bytes",
        "a.png": media_files.UNWANTED_IMAGE,
        "\\xe9.mp4": "no caption: \\xe9.txt is missing",
    }
    assert found.skipped.keys() == {f"s.tar/{name}" for name in expected}
    for name, reason in expected.items():
        assert reason.partition(" or ")[0] in found.skipped[f"s.tar/{name}"]


def test_damaged_archives_are_packed_up_to_the_damage(tmp_path):
    members = {f"{i}.{s}": f"{i}" * 700 for i in range(4) for s in ("mp4", "txt")}
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        places = {info.name: info for info in tar}
    spoilt = bytearray(whole)
    spoilt[places["2.mp4"].offset + 20] ^= 1  # a header
    cut = places["2.mp4"].offset_data + 100
    negative = bytearray(whole)
    place = places["2.mp4"].offset
    negative[place + 124 : place + 136] = b"\xff" * 12
    checksum = tarfile.calc_chksums(bytes(negative[place : place + 512]))[0]
    negative[place + 148 : place + 156] = b"%06o\0 " % checksum
    contents = {"header": spoilt, "cut": whole[:cut], "negative": negative}
    contents["within a header"] = whole[: places["2.mp4"].offset + 100]
    for name, content in contents.items():
        (tmp_path / "s.tar").write_bytes(content)
        found = listing(tmp_path / "s.tar")
        assert sorted(texts(found)) == ["0.mp4", "1.mp4"], name
        assert found.skipped == {
            "s.tar": "it is damaged or breaks off after 4 files, which are packed: copy it again"
        }, name
    # Whole files without the mark at the end are an archive all the same.
    (tmp_path / "s.tar").write_bytes(whole[: places["2.mp4"].offset])
    assert listing(tmp_path / "s.tar").skipped == {}


def test_headers_that_claim_gigabytes_are_damage(tmp_path):
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=tar_shards.MAX_HEADER_BYTES + 1)
    path = write_tar(tmp_path / "s.tar", {"a.mp4": b"v", "a.txt": "a"})
    with open(path, "r+b") as file:
        file.truncate(2048)
        file.seek(2048)
        file.write(name.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**25)
    tracemalloc.start()
    found = listing(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
    assert list(texts(found)) == ["a.mp4"] and "breaks off after 2 files" in found.skipped["s.tar"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no tar archive, or damaged: copy it again"),
        (b"<html>not found</html>" * 100, "it is no tar archive, or damaged: copy it again"),
        ("gz", "it is compressed .gzip., so its files have no positions: decompress it"),
        ("xz", "it is compressed .xz., so its files have no positions: decompress it"),
    ],
)
def test_what_is_no_archive_is_said(tmp_path, content, reason):
    path = tmp_path / "s.tar"
    if isinstance(content, str):
        write_tar(path, {"a.mp4": b"v"}, f"w:{content}")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"no clip of .*s.tar can be packed .s.tar: {reason}"):
        listing(path)


def test_names_that_several_archives_have_get_the_archive_in_front(tmp_path):
    for shard in range(3):
        write_tar(
            tmp_path / f"{shard}.tar",
            {"a.mp4": b"v" * (shard + 1), "a.txt": f"{shard}", f"b{shard}.mp4": b"v", f"b{shard}.txt": "b"},
        )  # fmt: skip
    found = listing(tmp_path)
    assert texts(found) == {
        **{f"{shard}.tar/a.mp4": [f"{shard}"] for shard in range(3)},
        **{f"b{shard}.mp4": ["b"] for shard in range(3)},
    }
    (tmp_path / "1.tar").unlink()
    kept, _ = found.without_vanished(found.sources, found.skipped | {"1.tar/x.mp4": "no caption"})
    assert len(kept) == 4
    assert found.without_vanished(kept, {"1.tar/x.mp4": "", "0.tar": "", "0.tar/y.mp4": ""})[1] == {
        "0.tar": "",
        "0.tar/y.mp4": "",
    }


def test_an_archive_that_became_shorter_is_a_reason(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.txt": "a", "a.mp4": b"v" * 5000})
    (source,) = listing(path).sources
    path.write_bytes(path.read_bytes()[:3000])
    settings = Settings((16, 16), 8.0, 4, 4, 0.0, 8)
    spill = str(tmp_path / "0.clips")
    shorter = "its archive has become shorter since it was listed"
    assert extraction.extract_clips(
        str(path), spill, settings, captions=source.captions, members=source.members
    ) == (shorter, 0, {})
    assert list(tmp_path.iterdir()) == [path]


def test_copies_of_members_are_not_listed(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.mp4": b"123456789", "a.txt": "a"})
    listed = listing(tmp_path)
    (source,) = listed.sources
    work = tmp_path / "data" / "unfinished"
    work.mkdir(parents=True)
    copies = tar_shards.copies_folder(work, "0.clips")
    with tar_shards.copy_members(str(path), source.members, copies) as copy:
        assert pathlib.Path(copy).read_bytes() == b"123456789"
        assert listing(tmp_path).sources == listed.sources
        pack_folder.remove_leftovers(tmp_path / "data")
        assert list(work.iterdir()) == []


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of videos, one with numbers per frame and one damaged, and the set packed of it."""
    folder = tmp_path_factory.mktemp("tars")
    (folder / "videos").mkdir()
    for index in range(9):
        video = folder / "videos" / f"{index:03d}.mp4"
        write_video(video, grey_video(20 * index + 5 * np.arange(8)), 8)
        video.with_suffix(".txt").write_text(f"number {index}")
    (folder / "videos" / "003.txt").unlink()
    said = {"captions": ["number 3", [[0, "dark"], [4, "light"]]], "numbers": {"n": [*range(8)]}}
    (folder / "videos" / "003.json").write_text(json.dumps(said))
    whole = (folder / "videos" / "005.mp4").read_bytes()
    (folder / "videos" / "005.mp4").write_bytes(whole[: len(whole) // 2])
    options = dict(size=32, frames=4, workers=2, validation_fraction=0.3, clips_per_shard=4)
    report = run(**options, input=folder / "videos", output=folder / "folder")
    files = sorted((folder / "videos").iterdir())
    for shard in range(3):
        members = {p.name: p.read_bytes() for p in files if int(p.stem) % 3 == shard}
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return folder, options, report


def test_three_shards_give_the_bytes_of_the_folder(packed, tmp_path):
    folder, options, expected = packed
    pattern = folder / "train-{000..002}.tar"
    report = run(**options, input=pattern, output=tmp_path / "set")
    assert shard_bytes(tmp_path / "set") == shard_bytes(folder / "folder")
    assert report["skipped"] == expected["skipped"] != []
    assert report["input"] == str(pattern) and not (tmp_path / "set" / "unfinished").exists()
    assert run(**options, input=folder / "train-*.tar", output=tmp_path / "set")["finished_before"]
    # A set is that of its clips, wherever they are.
    assert run(**options, input=folder / "videos", output=tmp_path / "set")["finished_before"]


@pytest.mark.slow
def test_shards_go_to_buckets_and_parts_as_the_folder_does(packed, tmp_path):
    folder, _, _ = packed
    options = dict(buckets="4x32x32", workers=1, validation_fraction=0.3)
    run(**options, input=folder / "videos", output=tmp_path / "folder")
    run(**options, input=folder / "train-*.tar", output=tmp_path / "set")
    names = ("folder", "set")
    one, other = (shard_bytes(tmp_path / name / "4x32x32") for name in names)
    assert one == other and len(one) == 2
