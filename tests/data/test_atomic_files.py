"""Small files are written whole, in UTF-8, and folders are tried without a trace."""

import json

import pytest

from videogen_jax.data import atomic_files


def test_json_of_undecodable_names_is_utf8(tmp_path):
    content = {"file": "caf\udce9.mp4", "caption": "猫"}  # a name in Latin-1, as Python decodes it
    atomic_files.write_json(tmp_path / "report.json", content)
    assert json.loads((tmp_path / "report.json").read_bytes()) == content


def test_a_folder_is_tried_without_a_trace(tmp_path):
    atomic_files.check_writable(tmp_path / "a" / "b")
    atomic_files.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(OSError, match=f"Nothing can be written to {folder} .Not a directory"):
            atomic_files.check_writable(folder)
