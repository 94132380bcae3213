"""Plans: for host devices against what XLA says of them, and for GPUs where their compiler is at hand."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from tests.conftest import ROOT
from tests.tiny import make_run, tiny_config
from videogen_jax import plan
from videogen_jax.parallel import device_specs, memory
from videogen_jax.train import training_run

pytestmark = pytest.mark.slow

CPU = device_specs.CARDS["cpu"]
CUDA = any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs the wheels of jax[cuda12]")


def small_config(**changes):
    """Two devices on each clip, and activations that outweigh the parameters."""
    config = tiny_config()
    config.data.update({"frames": 16, "height": 32, "width": 32})
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 2, "tensor": 1})
    config.model.update({"depth": 8, "cross_attention": "gated"})
    config.sample.batch_size = 1
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def plain():
    return plan.make_plan(small_config(), CPU, jax.devices("cpu")[:2])


def plan_step(**changes):
    """The train step alone."""
    return plan.plan_train(make_run(small_config(**changes)), CPU)


def test_the_peak_is_that_of_the_step_that_training_compiles(plain):
    compiled = training_run.compile_step(make_run(small_config()))
    sizes = compiled.memory_analysis()
    got = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    assert plain["train"].peak == got + sizes.temp_size_in_bytes
    assert sum(plain["train"].memory.values()) == plain["train"].peak


def test_parameters_moments_and_average_are_counted_by_their_share(plain):
    run = make_run(small_config())
    shares = 0
    for leaf in jax.tree.leaves(run.abstract.params):
        halved = any(entry and "seq" in entry for entry in leaf.sharding.spec)
        shares += leaf.size * 4 // (2 if halved else 1)
    parts = plain["train"].memory
    assert parts["parameters"] == parts["EMA"] == shares
    assert 2 * shares <= parts["optimizer"] < 2 * shares + 100  # two moments, and counters
    assert plain["sample"].memory["parameters"] == shares


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"memory.remat": "block"}, "activations and workspace"),
        ({"memory.remat": "block", "memory.pieces": 8}, "activations and workspace"),
        ({"optimizer.mu_dtype": "bfloat16"}, "optimizer"),
        ({"train.accumulation": 4, "memory.remat": "block"}, "activations and workspace"),
    ],
)
def test_a_lever_does_what_it_says(changes, part, plain):
    with_it = plan_step(**changes)
    assert with_it.memory[part] < 0.8 * plain["train"].memory[part]


def test_a_cpu_has_no_host_beside_it(plain):
    with_it = plan_step(**{"memory.offload_ema": True, "memory.offload_optimizer": True})
    assert with_it.memory["EMA"] == plain["train"].memory["EMA"]
    assert with_it.host == 0


def test_levers_are_pulled_until_it_fits(plain):
    """A card that lacks a little: the first lever is enough. One that lacks much: all of them are tried."""
    config, devices = small_config(), jax.devices("cpu")[:2]
    little = CPU._replace(memory=plain["train"].peak - 1 + int(memory.RESERVE))
    assert not plan.fits(plain, little)
    overrides, better = plan.try_levers(config, little, devices)
    assert overrides == {"memory.remat": "block"}
    assert plan.fits(better, little)
    verdict = plan.to_verdict(little, plain, overrides, better)
    assert "train would not. It does with --config.memory.remat='block'" in verdict
    assert plan.to_json(plain, little, overrides, better)["fits_with_overrides"] is True


def test_a_config_beyond_all_levers_says_so(plain):
    few = {"batch_size": 2, "model.depth": 2, "model.cross_attention": "none"}  # each is compiled
    config, devices = small_config(**few), jax.devices("cpu")[:2]
    none = CPU._replace(memory=1)
    overrides, better = plan.try_levers(config, none, devices)
    assert list(overrides)[-1] == "train.accumulation" and overrides["memory.pieces"] == 8
    assert "Nor does it with" in plan.to_verdict(none, plain, overrides, better)


def run_plan(*arguments):
    command = [sys.executable, "-m", "videogen_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_verb_prints_one_json_object():
    done = run_plan("--config=configs/quickstart.py", "--target=cpux2", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["mesh"] == {"data": 2, "fsdp": 1, "seq": 1, "tensor": 1}
    assert content["fits"] is True and content["train"]["peak_gib"] > 0
    assert content["sample"]["peak_gib"] > 0 and content["overrides"] == {}


@pytest.mark.parametrize(
    ("mesh", "batch_size", "count", "wanted"),
    [
        ({"seq": 2}, 4, 1, {}),  # one card
        ({"seq": 2}, 1, 4, {"seq": 4}),  # the axis of the config
        ({"data": 2}, 4, 4, {"data": 4}),
        ({"data": 2}, 3, 3, {"data": 3}),
        ({}, 4, 2, {"fsdp": 2}),
        ({}, 1, 2, {"seq": 2}),  # one clip does not divide
        ({"fsdp": 2}, 4, 2, {"fsdp": 2}),  # already as many
        ({"data": 2, "seq": 2}, 1, 2, {"seq": 2}),
    ],
)
def test_the_mesh_follows_the_target(mesh, batch_size, count, wanted, monkeypatch):
    ones = dict.fromkeys(("data", "fsdp", "seq", "tensor"), 1)
    config = tiny_config()
    config.batch_size = batch_size
    config.mesh.update(ones | mesh)
    monkeypatch.setattr(plan, "make_plan", lambda config, card, devices: {})
    found, _ = plan.plan_on_target(config, CPU, [None] * count)
    assert found.mesh.to_dict() == ones | wanted


def test_another_mesh_is_said_with_its_options():
    given = {"data": 1, "fsdp": 1, "seq": 2, "tensor": 1}
    assert plan.describe_mesh(given, given, 2) == ""
    assert plan.describe_mesh(given, given | {"seq": 1}, 1) == (
        "The mesh follows the target: seq=1 for one device, instead of seq=2; train with --config.mesh.seq=1."
    )


def test_a_batch_that_divides_over_no_axis_is_refused(monkeypatch):
    config = tiny_config()
    config.mesh.fsdp = 2

    def refuse(config, card, devices):
        raise ValueError("the tokens do not divide")

    monkeypatch.setattr(plan, "make_plan", refuse)
    with pytest.raises(ValueError, match="batch_size of 4 does not divide into 3 parts"):
        plan.plan_on_target(config, CPU, [None] * 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target=rtx5090x2"], "Unknown target 'rtx5090x2': choose rtx3090"),
        (["--target=cpux3", "--config.mesh.data=3"], "batch_size of 32 does not divide into 3"),
    ],
)
def test_wrong_targets_end_in_one_sentence(arguments, sentence):
    done = run_plan("--config=configs/quickstart.py", *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(CUDA, reason="the wheels of jax[cuda12] are there")
def test_without_the_cuda_wheels_the_install_line_is_given():
    done = run_plan("--config=configs/quickstart.py", "--target=rtx3090x2")
    assert done.returncode == 2 and "pip install 'jax[cuda12]==" in done.stderr


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
    # Frames are decoded while the sampler's parameters are still there.
    decoding = content["decode"]["peak_gib"] + content["sample"]["memory_gib"]["parameters"]
    assert max(content["sample"]["peak_gib"], decoding) <= sample_gib
    train = content["train"]
    assert sum(train["wire_bytes"].values()) <= 1.15 * train["least_wire_bytes"]
