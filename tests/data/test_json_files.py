"""Fields of JSON files have the types of their table, or the message names file and field."""

from typing import NamedTuple

import pytest

from videogen_jax.data import json_files
from videogen_jax.data.json_files import FieldError, Optional


class Info(NamedTuple):
    name: str
    shape: list[int]
    path: str | None
    scale: float = 1.0


TABLE = {
    "count": int,
    "scores": [float],
    "words": {str: int},
    "note": Optional(str),
    "info": Optional(Info),
}
GOOD = {"count": 3, "scores": [1, 2.5], "words": {"a": 1}, "more": None}


def test_right_types_are_returned_with_whole_numbers_as_floats():
    found = json_files.check(GOOD, TABLE)
    assert found == GOOD and type(found["scores"][0]) is float
    info = {"name": "sd", "shape": [1, 2], "path": None}
    expected = Info("sd", [1, 2], None, 1.0)
    assert json_files.check(GOOD | {"note": None, "info": info}, TABLE)["info"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 3.0}, "count should be a whole number, but is 3.0"),
        ({"count": True}, "count should be a whole number, but is true"),
        ({"count": None}, "count should be a whole number, but is null"),
        ({"scores": [1, "2"]}, r"scores\[1\] should be a number, but is \"2\""),
        ({"scores": [float("nan")]}, r"scores\[0\] should be a number, but is NaN"),
        ({"scores": {}}, "scores should be a list, but is {}"),
        ({"words": ["a"]}, r"words should be a mapping, but is \[\"a\"\]"),
        ({"words": {"a": "b"}}, "words.a should be a whole number"),
        ({"note": 3}, "note should be text, but is 3"),
        ({"info": {"name": "sd", "shape": [1]}}, "the field info.path is missing"),
        ({"info": {"name": "sd", "shape": [[]], "path": ""}}, r"info.shape\[0\] should be a whole"),
        ({"info": {"nam": 1}}, "the field info.nam is not known to this version"),
        ({"count": "x" * 99}, 'but is "' + "x" * 39 + r"\.\.\."),
    ],
)
def test_wrong_types_are_refused_by_name(change, message):
    with pytest.raises(FieldError, match=message):
        json_files.check(GOOD | change, TABLE)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_damaged_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(FieldError, match=r"report.json is damaged \(.+\): pack again."):
        json_files.read(path, TABLE, "pack again.")


def test_a_flipped_bit_in_checked_fields_is_noticed(tmp_path):
    path = tmp_path / "entry.json"
    text = json_files.dump_checked({"count": 3, "mean": [0.5, 1e-9]})
    fields = {"count": int, "mean": [float]}
    assert json_files.parse(path, text, fields) == {"count": 3, "mean": [0.5, 1e-9]}
    assert json_files.parse(path, '{"count": 3, "mean": []}', fields) == {"count": 3, "mean": []}
    for change in (text.replace("3", "2", 1), text.replace("0.5", "0.7")):
        with pytest.raises(FieldError, match="entry.json is damaged .its fields do not match"):
            json_files.parse(path, change, fields)
