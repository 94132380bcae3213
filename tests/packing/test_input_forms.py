"""What `--input` is taken for, and what is refused because it could mean two things."""

import pytest
from absl import flags

from tests.data.test_table_files import write_csv
from tests.packing.test_tables import add, listing, texts
from tests.packing.test_tar_shards import write_tar
from videogen_jax import pack
from videogen_jax.packing.tables import Columns

ROWS = [["file_name", "text"], ["a.mp4", "from the table"]]


@pytest.fixture
def folder(tmp_path):
    add(tmp_path / "clips", "a.mp4")
    return tmp_path / "clips"


def with_caption(folder):
    (folder / "a.txt").write_text("from the file")
    return folder


def with_metadata(folder):
    write_csv(folder / "metadata.csv", ROWS)
    return folder


def with_archive(folder):
    write_tar(folder / "s.tar", {"t.mp4": b"v", "t.txt": "from the archive"})
    return folder


def test_each_form_is_told_by_what_is_there(folder, tmp_path):
    assert texts(listing(with_caption(folder))) == {"a.mp4": ["from the file"]}
    with_archive(folder)  # beside loose videos, as before there were other forms
    assert texts(listing(folder)) == {"a.mp4": ["from the file"]}
    assert texts(listing(folder / "s.tar")) == {"t.mp4": ["from the archive"]}
    (folder / "a.txt").unlink()
    with_metadata(folder)
    assert texts(listing(folder)) == {"a.mp4": ["from the table"]}
    assert texts(listing(folder / "metadata.csv")) == {"a.mp4": ["from the table"]}
    (folder / "a.mp4").rename(tmp_path / "a.mp4")
    assert texts(listing(folder)) == {"t.mp4": ["from the archive"]}
    found = listing(folder / "metadata.csv", video_folder=str(tmp_path))
    assert texts(found) == {"a.mp4": ["from the table"]} and found.folder == tmp_path


def test_captions_in_two_forms_are_refused(folder):
    with_caption(with_metadata(folder))
    with pytest.raises(ValueError, match="has metadata.csv and a caption file beside a.mp4: move"):
        listing(folder)
    (folder / "a.txt").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    with pytest.raises(ValueError, match="has metadata.csv and metadata.jsonl: keep one"):
        listing(folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gone", {}, "there is no folder .*gone: set --input to the folder of your videos"),
        ("gone.csv", {}, "there is no table .*gone.csv"),
        ("gone.tar", {}, "there is no archive .*gone.tar"),
        ("s-*.tar", {}, "there is no archive .*s-"),
        ("s-{0..2}.tar", {}, "there is no archive .*s-0.tar, which --input=.* stands for"),
        ("s-{0..99999999}.tgz", {}, "stands for more than 100000 files"),
        ("a.mp4", {}, "a.mp4 is neither a folder, a table"),
        ("", {"columns": Columns(path="x")}, "--path_column is for tables, but --input is"),
        ("", {"columns": Columns(captions=("x",))}, "--caption_column is for tables"),
        ("", {"video_folder": "x"}, "--video_folder is for tables"),
        ("s.tar", {"columns": Columns(start="x")}, "--start_column is for tables"),
        ("s.tar", {"video_folder": "x"}, "--video_folder is for tables"),
        ("t.csv", {"video_folder": "gone"}, "there is no folder gone: set --video_folder"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(folder, name, options, message):
    with_archive(with_caption(folder))
    write_csv(folder / "t.csv", ROWS)
    with pytest.raises(ValueError, match=message):
        listing(folder / name if name else folder, **options)
    with_metadata(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match="--video_folder is for a table, but .*metadata.csv"):
        listing(folder, video_folder="x")


def test_nothing_usable_is_an_error_with_a_reason(folder):
    write_csv(folder / "t.csv", [["file_name", "text"], ["b.mp4", "x"]])
    with pytest.raises(ValueError, match="no clip of .*t.csv can be packed .b.mp4: there is no"):
        listing(folder / "t.csv")


def test_patterns_stand_for_archives_in_order(folder, tmp_path):
    for name in ("train/s-08", "train/s-09", "train/s-10", "val/s-08"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        key = name.replace("/", "_")
        write_tar(tmp_path / f"{name}.tar", {f"{key}.mp4": b"v", f"{key}.txt": "x"})

    def archives(pattern):
        found = listing(tmp_path / pattern)
        return found.folder.name, sorted(source.file for source in found.sources)

    assert archives("train/s-{08..09}.tar") == ("train", ["s-08.tar", "s-09.tar"])
    assert archives("train/s-{9..10}.tar".replace("9", "09")) == ("train", ["s-09.tar", "s-10.tar"])
    assert archives("{train,val}/s-*8.tar")[1] == ["train/s-08.tar", "val/s-08.tar"]
    assert archives("train/s-?8.tar") == ("train", ["s-08.tar"])
    assert archives("train") == ("train", ["s-08.tar", "s-09.tar", "s-10.tar"])
    (tmp_path / "[odd] {x}").mkdir()
    write_tar(tmp_path / "[odd] {x}" / "{1}.tar", {"o.mp4": b"v", "o.txt": "x"})
    assert archives("[odd] {x}/{1}.tar") == ("[odd] {x}", ["{1}.tar"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=a.tar", "--input=b.tar"], "--input is given 2 times: put a pattern in quotes"),
        (["--synthetic=moving_shapes", "--path_column=x"], "mutually exclusive: remove --path_c"),
        (["--input=a.csv", "--times_column=x", "--end_column=y"], "--times_column has both ends"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message):
    values = flags.FlagValues()
    pack.define_flags(values)
    values(["pack", "--output=x", *arguments])
    with pytest.raises(ValueError, match=message):
        pack.run(values)
