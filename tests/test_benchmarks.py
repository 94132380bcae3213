"""The side-by-side runs at a tiny size: they end, and their table has a row for each side."""

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import ROOT

REFERENCES = all(map(importlib.util.find_spec, ("torch", "diffusers")))


@pytest.mark.parametrize("name", ["train_step", "sampler"])
def test_a_benchmark_prints_a_row_for_each_side(name):
    command = [sys.executable, f"benchmarks/{name}.py", "--preset=tiny", "--rounds=1"]
    done = subprocess.run(
        [*command, "--skip_compile"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split("|")[1].strip(): line.split("|") for line in done.stdout.splitlines()[3:]}
    assert float(rows["ours"][3]) > 0
    assert ("unmeasured" in rows["eager"][2]) != REFERENCES
    assert "unmeasured" in rows["compiled"][2]
