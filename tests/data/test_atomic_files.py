"""Small files are written whole, in UTF-8."""

import json

from videogen_jax.data import atomic_files


def test_json_of_undecodable_names_is_utf8(tmp_path):
    content = {"file": "caf\udce9.mp4", "caption": "猫"}  # a name in Latin-1, as Python decodes it
    atomic_files.write_json(tmp_path / "report.json", content)
    assert json.loads((tmp_path / "report.json").read_bytes()) == content
