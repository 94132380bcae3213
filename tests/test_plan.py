"""The verb `plan` as a command: what it prints, and its exit codes. GPUs where their compiler is at hand."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.described_gpu import CUDA, needs_cuda
from videogen_jax import plan
from videogen_jax.parallel import device_specs
from videogen_jax.parallel.gpu_pools import GIB

pytestmark = pytest.mark.slow


def run_plan(*arguments, **variables):
    command = [sys.executable, "-m", "videogen_jax.plan", *arguments]
    environment = os.environ | variables
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
    )


def test_the_verb_prints_one_json_object():
    done = run_plan("--config=configs/quickstart.py", "--target=cpux2", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["mesh"] == {"data": 2, "fsdp": 1, "seq": 1, "tensor": 1}
    assert content["fits"] is True and content["train"]["peak_gib"] > 0
    assert content["sample"]["peak_gib"] > 0 and content["overrides"] == {}
    assert content["train"]["executed_flops"] > content["train"]["flops"] > 0
    assert content["data"]["clips"] == 10_000 and content["notes"] == []


def test_the_verb_prints_a_table_and_a_report():
    """On three devices, one of which is idle."""
    done = run_plan("--config=quickstart", "--target=cpux3", "--report", "--clips=7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1 of the 3 devices stays idle, for no mesh of 3 suits the config")
    assert lines[1] == "3 x cpu"
    assert "7 clips (--clips) take about" in done.stdout and "It fits." in lines
    assert "\n## train\n" in done.stdout and "| kind " in done.stdout


def test_a_row_is_printed_for_the_docs():
    done = run_plan("--config=quickstart", "--target=cpux2", "--markdown")
    assert done.stdout.startswith("| 2 x cpu | quickstart | 32 x 8 x 24x24 |"), done.stdout
    assert done.stdout.count("\n") == 1


def test_a_machine_is_known_by_its_gpus(monkeypatch):
    assert plan.find_host_memory(2.5, 2) == 2.5 * GIB
    gpus = ["nvidia0", "nvidia1"]
    monkeypatch.setattr(plan.Path, "glob", lambda path, pattern: iter(gpus))
    monkeypatch.setattr(plan.gpu_pools, "machine_memory", lambda: 64 * GIB)
    assert plan.find_host_memory(None, 2) == 64 * GIB
    assert plan.find_host_memory(None, 8) is None  # of another machine


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target=rtx5090x2"], "Unknown target 'rtx5090x2': choose rtx3090"),
        (["--target=cpux3", "--config.mesh.data=3"], "batch_size of 32 does not divide into 3"),
        (["--target=cpu", "--config.model.width=none"], "model.width"),
        (["--target=cpu", "--pcie=x3"], "pcie"),
        ([], "--target"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence_with_a_code_of_its_own(arguments, sentence):
    done = run_plan("--config=configs/quickstart.py", *arguments)
    assert done.returncode == plan.CANNOT_PLAN == 3
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(CUDA, reason="the wheels of jax[cuda12] are there")
def test_without_the_cuda_wheels_the_install_line_is_given():
    done = run_plan("--config=configs/quickstart.py", "--target=rtx3090x2")
    assert done.returncode == 3 and "pip install 'jax[cuda12]==" in done.stderr


@needs_cuda
def test_a_description_that_xla_refuses_is_a_sentence(tmp_path):
    path = tmp_path / "card.txt"
    path.write_text(device_specs.CARDS["rtx3090"].description + "colour: 3")
    done = run_plan("--config=quickstart", f"--target={path}")
    assert done.returncode == 3 and "XLA cannot make devices from the description" in done.stderr


@needs_cuda
def test_a_smaller_pool_and_fewer_lanes_change_the_plan():
    options = ["--config=quickstart", "--target=rtx3090x2", "--json", "--nolevers"]
    options += ["--config.memory.remat=block", "--config.memory.offload_activations=True"]
    whole = run_plan(*options)
    none = run_plan(*options, "--pcie=x4", "--host_memory=0.001", XLA_CLIENT_MEM_FRACTION="0.001")
    assert (whole.returncode, none.returncode) == (0, 1), whole.stderr + none.stderr
    whole, none = json.loads(whole.stdout), json.loads(none.stdout)
    assert whole["pool_gib"] == pytest.approx(950 * none["pool_gib"], rel=1e-6)
    assert none["train"]["expected_seconds"] > whole["train"]["expected_seconds"]
    assert not none["fits"] and none["train"]["peak_gib"] == whole["train"]["peak_gib"]


@needs_cuda
@pytest.mark.parametrize("lever", ["offload_ema", "offload_optimizer", "offload_activations"])
def test_what_waits_on_the_host_leaves_the_gpus(lever):
    """In a process of its own, as the tests' JAX has no compiler for CUDA at work."""
    options = ["--config=configs/quickstart.py", "--target=rtx3090x2", "--json"]
    options += ["--config.memory.remat=block", "--config.train.precision=bfloat16"]
    plain = json.loads(run_plan(*options).stdout)["train"]
    with_it = json.loads(run_plan(*options, f"--config.memory.{lever}=True").stdout)["train"]
    assert with_it["host_gib"] > plain["host_gib"] == 0
    assert with_it["peak_gib"] < plain["peak_gib"]


@needs_cuda
@pytest.mark.parametrize(
    ("name", "train_gib", "sample_gib"), [("dit_512", 14, 12), ("dit_xl_512", 22.5, 22.5)]
)
def test_the_promised_configs_fit_two_cards_of_24_gb(name, train_gib, sample_gib):
    done = run_plan(f"--config=configs/{name}.py", "--target=rtx3090x2", "--json")
    content = json.loads(done.stdout)
    assert done.returncode == 0 and content["fits"]
    assert content["train"]["peak_gib"] <= train_gib
    resident = {
        name: content[name]["peak_gib"] + content[name]["resident_gib"]
        for name in ("sample", "decode")
    }
    assert max(resident.values()) <= sample_gib  # beside the train state
    train = content["train"]
    assert sum(train["wire_bytes"].values()) <= 1.15 * train["least_wire_bytes"]
