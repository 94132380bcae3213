"""Tables of four formats give the rows that Python's own writers, JSON and Arrow wrote."""

import csv
import json
import sys
import tracemalloc

import pytest

from videogen_jax.data import table_files, text_files
from videogen_jax.data.table_files import TableError, read_columns, read_rows

ROWS = [
    ["a.mp4", 'a "red" dog,\nthen a cat', "1.5"],
    ["b c.mp4", "Кошка 猫\tü", ""],
    ["d.mp4", "\r\nline ends\r\n", "0:00:57.115"],
    ["e.mp4", "-", "x" * 200_000],  # longer than csv's usual limit
]
COLUMNS = ["file_name", "text", "start"]


def write_csv(path, rows, delimiter=",", encoding="utf-8", **options):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter, **options).writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_parquet(path, rows):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def values_of(path, columns=COLUMNS):
    return [values for _, values in read_rows(path, columns)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.TSV", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_holds_what_was_written(tmp_path, name, delimiter, encoding, end):
    rows = [COLUMNS, *ROWS]
    path = write_csv(tmp_path / name, rows, delimiter, encoding, lineterminator=end)
    assert read_columns(path) == COLUMNS
    assert values_of(path) == ROWS
    assert values_of(path, ["start", "file_name"]) == [[row[2], row[0]] for row in ROWS]
    assert csv.field_size_limit() == 131072  # that of other users of the module


def test_places_are_the_lines_at_which_rows_begin(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('file_name,text\na.mp4,"one\ntwo\nthree"\n\nb.mp4,x\nc.mp4,x,y\nd.mp4,x\n')
    found = list(read_rows(path, ["file_name"]))
    assert found == [
        ("line 2", ["a.mp4"]),
        ("line 6", ["b.mp4"]),
        ("line 7", "it has 3 fields, but the header has 2"),
        ("line 8", ["d.mp4"]),
    ]


def test_json_lines_hold_any_values(tmp_path):
    rows = [{"file_name": "a.mp4", "text": ["x", "y"], "start": 1}, {"file_name": "b\n.mp4"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \n")
    assert read_columns(path) == COLUMNS
    assert values_of(path) == [["a.mp4", ["x", "y"], 1], ["b\n.mp4", None, None]]


def test_parquet_is_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "PARQUET_ROWS", 3)
    rows = [{"file_name": f"{i}.mp4", "text": ["x"] * (i % 3), "start": i / 4} for i in range(10)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    assert read_columns(path) == COLUMNS
    assert values_of(path) == [list(row.values()) for row in rows]
    assert [place for place, _ in read_rows(path, ["text"])][-1] == "row 10"


def spoil(tmp_path, name):
    path = tmp_path / ("a.parquet" if "parquet" in name else "a.csv")
    header = b"file_name,text\n"
    content = {
        "empty": b"",
        "utf16": "file_name,text\na,b\n".encode("utf-16"),
        "latin": header + b"a,caf\xe9\n",
        "nul": header + b"a,b\0\n",
        "unclosed": header + b'a,"b\n' + b"c,d\n" * 3,
        "stray": header + b'a,"b"c\n',
        "twice": b"text,text\n",
        "long": header + b"x" * (text_files.MAX_LINE_BYTES + 1),
        "damaged parquet": b"PAR1 and so on PAR1",
        "empty parquet": b"",
    }
    if name == "json":
        path = tmp_path / "a.jsonl"
        content[name] = b'{"file_name": "a.mp4"}\n{"file_name": "b.mp4"\n'
    if name == "json list":
        path = tmp_path / "a.jsonl"
        content[name] = b'["a.mp4", "text"]\n'
    path.write_bytes(content[name])
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "a.csv has no column: is it a table"),
        ("utf16", "a.csv, line 1, is UTF-16 text: save it as UTF-8"),
        ("latin", r"a.csv, line 2, is not UTF-8 text .byte 5 is 0xe9"),
        ("nul", "a.csv, line 2, has NUL bytes"),
        ("unclosed", "a.csv is damaged from line 2 on .a quote opens there that none closes"),
        ("stray", "a.csv is damaged from line 2 on .*write fields with quotes or line ends"),
        ("twice", "a.csv has the column 'text' twice"),
        ("long", "a.csv, line 2, is longer than 16777216 bytes"),
        ("json", "a.jsonl, line 2, is damaged .Expecting"),
        ("json list", "a.jsonl, line 1, is damaged .its content should be a mapping"),
        ("damaged parquet", "a.parquet is damaged or no Parquet file"),
        ("empty parquet", "a.parquet is damaged or no Parquet file"),
    ],
)
def test_damaged_tables_are_one_sentence(tmp_path, name, message):
    if "parquet" in name:
        pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    path = spoil(tmp_path, name)
    with pytest.raises(TableError, match=message) as info:
        list(read_rows(path, read_columns(path)))
    assert "\n" not in str(info.value)


def test_parquet_without_pyarrow_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TableError, match="pip install 'pyarrow>=15'"):
        read_columns(tmp_path / "a.parquet")


def test_memory_does_not_grow_with_the_table(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["file_name", "text"]] + [["a.mp4", "x" * 400]] * 20_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path, ["text"])) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size
