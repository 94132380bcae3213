"""Folders are tried without a trace, and the error names the flag."""

import pytest

from videogen_jax.data import output_folder


def test_a_folder_is_tried_without_a_trace(tmp_path):
    output_folder.check_output_folder(tmp_path / "a" / "b", "--output")
    output_folder.check_output_folder(tmp_path, "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        text = f"{folder} cannot be written to .Not a directory.: name another place with --output"
        with pytest.raises(OSError, match=text):
            output_folder.check_output_folder(folder, "--output")
    assert output_folder.make_output_folder(tmp_path / "c" / "d", "--output").is_dir()
