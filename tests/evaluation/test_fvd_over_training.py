"""The table of FVD over training: its checkpoints, what is made and what is read, with a stand-in for `evaluate`."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import tiny_config
from videogen_jax.run import saved_config


@pytest.fixture
def benchmark(monkeypatch):
    path = ROOT / "benchmarks" / "fvd_over_training.py"
    spec = importlib.util.spec_from_file_location("fvd_over_training", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []

    def run(command, **_):
        """Writes a report whose FVD is 1000 less ten times the step."""
        flags = dict(
            part[2:].split("=", 1) for part in command if part.startswith("--") and "=" in part
        )
        module.calls.append([part for part in command[3:] if not part.startswith("--workdir")])
        step = int(flags["step"])
        value = 1000.0 - 10 * step
        score = {"value": value, "low": value - 50, "high": value + 50}
        score |= {"floor": 100.0, "ceiling": 1100.0, "share": (1100 - value) / 1000}
        file = Path(flags.get("output", Path(flags["workdir"]) / "evaluation.json"))
        protocol = {"step": step, "num_generated": 8, "num_reference": 8}
        protocol["seed"] = flags.get("seed", "0")
        scores = [{"name": name, **score} for name in ("FVD", "KVD")]
        file.write_text(json.dumps({"scores": scores, "protocol": protocol}))

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


@pytest.fixture
def workdir(tmp_path):
    config = tiny_config()
    config.train.steps = 50
    saved_config.write_config(tmp_path, config)
    for step in (5, 15, 20, 50):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    return tmp_path


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fvd_over_training.py", *map(str, arguments)])
    module.calls.clear()
    module.main()
    return module.calls


def test_each_checkpoint_is_evaluated_once_with_the_bounds_of_the_last(
    benchmark, workdir, monkeypatch, capsys
):
    arguments = [f"--workdir={workdir}", "--last_only=--baselines", "--num_clips=8"]
    calls = call(benchmark, monkeypatch, *arguments)
    rest = [f"--bounds_from={workdir}/evaluation.json"]
    assert calls == [
        ["--step=50", "--num_clips=8", "--bounds", "--baselines"],
        ["--step=15", "--num_clips=8", f"--output={workdir}/evaluation_15.json", *rest],
        ["--step=5", "--num_clips=8", f"--output={workdir}/evaluation_5.json", *rest],
    ]
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[2][:5] == ["10 %", "5", "950", "900 to 1000", "15.0%"]
    assert cells[4][:5] == ["100 %", "50", "500", "450 to 550", "60.0%"]
    assert cells[5][:3] == ["floor", "", "100"] and cells[6][0] == "ceiling" and len(cells) == 7
    assert len({len(row) for row in cells}) == 1
    assert call(benchmark, monkeypatch, *arguments) == []  # all are there
    (workdir / "evaluation_15.json").unlink()
    assert len(call(benchmark, monkeypatch, *arguments)) == 1
    (workdir / "evaluation_15.json").unlink()
    with pytest.raises(SystemExit, match="steps 50 and 15 differ in seed, 0 and 4: delete"):
        call(benchmark, monkeypatch, f"--workdir={workdir}", "--seed=4")


def test_without_bounds_a_report_needs_no_floor(benchmark, workdir, monkeypatch, capsys):
    arguments = [f"--workdir={workdir}", "--shares=30,100", "--no-bounds"]
    calls = call(benchmark, monkeypatch, *arguments)
    assert calls == [["--step=50"], ["--step=15", f"--output={workdir}/evaluation_15.json"]]
    report = json.loads((workdir / "evaluation.json").read_text())
    for score in report["scores"]:
        for name in ("floor", "ceiling", "share"):
            del score[name]
    (workdir / "evaluation.json").write_text(json.dumps(report))
    assert call(benchmark, monkeypatch, *arguments) == []
    assert "| 100 % | 50 | 500 | 450 to 550 | - |" in capsys.readouterr().out
    assert call(benchmark, monkeypatch, *arguments[:2]) == [["--step=50", "--bounds"]]


def test_a_missing_checkpoint_is_named_with_the_options_that_keep_it(benchmark, workdir):
    assert benchmark.choose_steps(workdir, [11.0, 40.0]) == {5: 10.0, 20: 40.0}
    message = "no checkpoint near step 35, 70 % of 50 .*5, 15, 20, 50.*every=5 .*keep=10"
    with pytest.raises(SystemExit, match=message):
        benchmark.choose_steps(workdir, [70.0])
