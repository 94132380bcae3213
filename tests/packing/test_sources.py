"""What is listed of a folder: captions by one rule, links only where they are wanted, and no special files."""

import os
import socket

import pytest

from videogen_jax.packing import media_files, saved_sources, sidecars, sources
from videogen_jax.packing import settings as pack_settings


def add(folder, name, caption="a dog", video=b"video"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video)
    if caption is not None:
        content = caption if isinstance(caption, bytes) else caption.encode()
        path.with_suffix(".txt").write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path):
    add(tmp_path / "clips", "good.mp4")
    return tmp_path / "clips"


def listing(folder, **options):
    found, skipped = sources.list_sources(folder, **options)
    return sorted(source.name for source in found), skipped


def test_captions_are_utf8_and_the_reason_names_the_file_otherwise(folder):
    add(folder, "bom.mp4", b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    add(folder, "utf16.mp4", "a dog".encode("utf-16"))
    add(folder, "utf16le.mp4", "a dog".encode("utf-16-le"))
    add(folder, "latin.mp4", b"caf\xe9")
    add(folder, "long.mp4", b"x" * 101)
    found, skipped = sources.list_sources(folder, max_caption_bytes=100)
    assert {s.name: s.texts[0] for s in found} == {"good.mp4": "a dog", "bom.mp4": "café"}
    assert skipped == {
        "utf16.mp4": "the caption utf16.txt is UTF-16 text: save it as UTF-8",
        "utf16le.mp4": "the caption utf16le.txt has NUL bytes (byte 1), as UTF-16 has: save it as UTF-8",
        "latin.mp4": "the caption latin.txt is not UTF-8 text (byte 3 is 0xe9; Latin-1?): save it as UTF-8",
        "long.mp4": "the caption long.txt is larger than 100 bytes: is it a text file?",
    }


@pytest.mark.parametrize("follow", [False, True])
def test_links_that_lead_out_are_read_only_when_they_are_followed(folder, tmp_path, follow):
    add(tmp_path / "other", "out.mp4", "outside")
    (folder / "out.mp4").symlink_to(tmp_path / "other" / "out.mp4")
    (folder / "out.txt").write_text("its caption is inside")
    add(folder, "caption.mp4", None)
    (folder / "caption.txt").symlink_to(tmp_path / "other" / "out.txt")
    (folder / "inside.mp4").symlink_to("good.mp4")
    (folder / "inside.txt").symlink_to(folder / "good.txt")
    names, skipped = listing(folder, follow_links=follow)
    if follow:
        assert (names, skipped) == (["caption.mp4", "good.mp4", "inside.mp4", "out.mp4"], {})
        return
    assert names == ["good.mp4", "inside.mp4"]
    leads = "is a link that leads out of the folder: use --follow_links to read it"
    assert skipped == {
        "out.mp4": f"it {leads}",
        "caption.mp4": f"the caption caption.txt {leads}",
    }


def test_linked_folders_are_reported_or_followed_without_going_in_circles(folder, tmp_path):
    add(tmp_path / "other", "sub/far.mp4")
    (folder / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(folder)
    (tmp_path / "other" / "sub" / "up").symlink_to("..")
    (folder / "again").symlink_to(tmp_path / "other" / "sub")
    (folder / "self").symlink_to(".")
    add(folder, "real/near.mp4")
    names, skipped = listing(folder)
    assert names == ["good.mp4", "real/near.mp4"]
    assert skipped == {"again/": media_files.LINKED_FOLDER, "linked/": media_files.LINKED_FOLDER}
    # Each file once: a copy could come to be in the other split.
    names, skipped = listing(folder, follow_links=True)
    assert names == ["again/far.mp4", "good.mp4", "real/near.mp4"]
    assert skipped == {}


def test_linked_folders_that_are_not_followed_do_not_change_the_fingerprint(folder, tmp_path):
    before = sources.fingerprint(*sources.list_sources(folder))
    (folder / "linked").symlink_to(tmp_path)
    assert sources.fingerprint(*sources.list_sources(folder)) == before


@pytest.mark.parametrize("follow", [False, True])
def test_special_files_are_skipped(folder, follow, monkeypatch):
    monkeypatch.chdir(folder)  # the path of a socket has at most 107 bytes
    os.mkfifo("fifo.mp4")
    os.mkfifo("caption.txt")
    (folder / "caption.mp4").write_bytes(b"video")
    (folder / "zero.mp4").write_bytes(b"video")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "device.gif").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mov")
        names, skipped = listing(folder, follow_links=follow)
    assert names == ["good.mp4"]
    irregular = "the caption {} is not a regular file: save the text in one"
    assert skipped == {
        "fifo.mp4": "it is not a regular file",
        "socket.mov": "it is not a regular file",
        "device.gif": "it is not a regular file",
        "caption.mp4": irregular.format("caption.txt"),
        "zero.mp4": irregular.format("zero.txt")
        if follow
        else f"the caption zero.txt {sidecars.OUTSIDE_LINK}",
    }


def test_folders_that_may_not_be_read_are_listed_with_the_reason(folder, monkeypatch):
    add(folder, "locked/a.mp4")
    scandir = os.scandir

    def scan(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    names, skipped = listing(folder)
    assert names == ["good.mp4"]
    assert skipped == {"locked/": "the folder cannot be read (Permission denied)"}


def test_names_are_utf8_whatever_the_locale_says(folder, monkeypatch):
    add(folder, "日本.mp4")
    expected = sources.list_sources(folder)
    # As Python decodes names in a locale of ASCII.
    monkeypatch.setattr(
        os, "fsencode", lambda name: os.fspath(name).encode("ascii", "surrogateescape")
    )
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    ascii_name = "日本.mp4".encode().decode("ascii", "surrogateescape")
    assert media_files.shown(sources.pathlib.Path(ascii_name)) == "日本.mp4"
    assert media_files.locate("clips", "日本.mp4") == f"clips/{ascii_name}"
    assert expected[1] == {}


def resume(output, folder):
    listed, skipped = sources.list_sources(folder)
    saved = {"videos": sources.fingerprint(listed, skipped)}
    return saved_sources.resume(output, saved, listed, listed, skipped)


def test_an_unfinished_set_keeps_its_list_when_files_vanish(folder, tmp_path):
    add(folder, "a.mp4")
    add(folder, "b.mp4", None)
    first = resume(tmp_path / "set", folder)
    for name in ("a.mp4", "a.txt", "b.mp4"):
        (folder / name).unlink()
    assert resume(tmp_path / "set", folder) == first
    (folder / "good.txt").unlink()  # a caption too: the list has its text
    add(folder, "a.mp4")
    assert resume(tmp_path / "set", folder) == first


@pytest.mark.parametrize("change", ["new", "caption", "size", "uncaptioned"])
def test_an_unfinished_set_is_not_continued_with_changed_files(folder, tmp_path, change):
    add(folder, "a.mp4")
    resume(tmp_path / "set", folder)
    if change == "new":
        add(folder, "c.mp4")
        (folder / "a.mp4").unlink()
    elif change == "uncaptioned":
        add(folder, "c.mp4", None)
    else:
        add(folder, "a.mp4", *{"caption": ["a cat"], "size": ["a dog", b"longer video"]}[change])
    with pytest.raises(ValueError, match="the videos or their captions changed .*choose another"):
        resume(tmp_path / "set", folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is damaged"),
        ("[]", "its content should be a mapping, but is \\[\\]"),
        ('{"videos": 3}', "videos should be a mapping, but is 3"),
        (
            '{"videos": {"count": true, "digest": ""}}',
            "videos.count should be a whole number, but is true",
        ),
        ('{"videos": {"count": 1}}', "the field videos.digest is missing"),
    ],
)
def test_damaged_settings_are_refused_with_file_and_field(tmp_path, content, reason):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "settings.json").write_text(content)
    with pytest.raises(
        ValueError, match=f"settings.json is damaged .*{reason}|settings.json {reason}"
    ):
        pack_settings.claim_output(tmp_path, {"videos": {"count": 1, "digest": "0"}})


def test_files_are_listed_whether_or_not_they_have_captions(folder, tmp_path):
    add(folder, "sub/new.webm", None)
    add(folder, "picture.png", None)
    add(folder, ".hidden.mp4", None)
    add(folder, "note.md", None)
    add(tmp_path, "out.mp4", None)
    (folder / "out.mp4").symlink_to(tmp_path / "out.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    names, skipped = media_files.list_files(folder)
    assert names == ["good.mp4", "picture.png", "sub/new.webm"]
    assert sorted(skipped) == ["gone.mp4", "out.mp4"]
    assert "out.mp4" in media_files.list_files(folder, follow_links=True)[0]
