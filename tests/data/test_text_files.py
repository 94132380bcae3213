"""Tests of the rule for text files."""

import os

import pytest

from videogen_jax.data import text_files


def _write(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_utf8_is_read_with_and_without_a_byte_order_mark(tmp_path, start):
    path = _write(tmp_path, start + "日本\r\na dog\r\n".encode())
    assert text_files.read_text(path) == "日本\r\na dog\r\n"
    assert text_files.read_lines(path) == ["日本", "a dog"]


def test_only_newlines_end_a_line(tmp_path):
    line = "a\x85b\u2028c\x0bd\x0ce\x1cf\rg"
    assert text_files.read_lines(_write(tmp_path, f"{line}\r\nlast\n\n".encode())) == [
        line,
        "last",
        "",
    ]
    assert text_files.read_lines(_write(tmp_path, b"first\nlast")) == ["first", "last"]
    assert text_files.read_lines(_write(tmp_path, b"")) == []


@pytest.mark.parametrize(
    "content, reason",
    [
        ("a dog".encode("utf-16"), "is UTF-16 text: save it as UTF-8."),
        ("a dog".encode("utf-16-be"), "has NUL bytes (byte 0), as UTF-16 has: save it as UTF-8."),
        ("a dog".encode("utf-16-le"), "has NUL bytes (byte 1), as UTF-16 has: save it as UTF-8."),
        ("a dog".encode("utf-32"), "is UTF-16 text: save it as UTF-8."),
        (
            "caf\xe9".encode("latin-1"),
            "is not UTF-8 text (byte 3 is 0xe9; Latin-1?): save it as UTF-8.",
        ),
        (b"a\0", "has NUL bytes (byte 1), as UTF-16 has: save it as UTF-8."),
    ],
)
def test_other_encodings_are_refused_with_the_name(tmp_path, content, reason):
    path = _write(tmp_path, content)
    with pytest.raises(text_files.TextError) as error:
        text_files.read_text(path)
    assert str(error.value) == f"{path} {reason}"


def test_size_is_bounded(tmp_path):
    path = _write(tmp_path, b"12345")
    assert text_files.read_text(path, max_bytes=5) == "12345"
    with pytest.raises(text_files.TextError, match="prompts.txt is larger than 4 bytes"):
        text_files.read_text(path, max_bytes=4)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "prompts.txt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(text_files.TextError, match="prompts.txt is not a regular file"):
        text_files.read_text(path)
