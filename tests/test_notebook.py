"""The notebook of examples/ runs from its first cell to its last, on a run that nobody trained."""

from pathlib import Path

import pytest

from tests.saved_runs import write_run
from tests.tiny import tiny_config

NOTEBOOK = Path(__file__).parent.parent / "examples" / "sample.ipynb"


def test_the_notebook_loads_samples_and_shows(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="make test installs nbclient")
    nbclient = pytest.importorskip("nbclient", reason="make test installs nbclient")
    pytest.importorskip("ipykernel", reason="make test installs ipykernel")
    config = tiny_config()
    config.mesh.fsdp = 1
    monkeypatch.setenv("VIDEOGEN_RUN", str(write_run(tmp_path / "run", config)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.resources = resources
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert "(2, 4, 8, 8, 3)" in outputs[1][0]["data"]["text/plain"]
    assert outputs[2][0]["data"]["image/gif"] and outputs[4][0]["data"]["image/gif"]
    assert outputs[5][0]["data"]["text/plain"] == "8"
