"""Programs of a plan: for host devices against what XLA says of them, and what stays beside them in training."""

import jax
import numpy as np
import pytest

from tests.planning.plans import CPU, small_config
from tests.tiny import make_run
from videogen_jax.parallel import device_specs
from videogen_jax.planning import programs
from videogen_jax.train import run_kinds, training_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain():
    return programs.make_plan(small_config(), CPU, jax.devices("cpu")[:2])


def plan_step(**changes):
    """The train step alone."""
    return programs.plan_train(make_run(small_config(**changes)), CPU)


def test_the_peak_is_that_of_the_step_that_training_compiles(plain):
    compiled = training_run.compile_step(make_run(small_config()))
    sizes = compiled.memory_analysis()
    got = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    assert plain["train"].peak == got + sizes.temp_size_in_bytes
    assert sum(plain["train"].memory.values()) == plain["train"].peak


def test_the_run_is_that_of_training():
    for config in (small_config(), small_config(**{"memory.offload_ema": True})):
        mesh = jax.sharding.Mesh(
            np.array(jax.devices()[:2]).reshape(1, 1, 2, 1), ("data", "fsdp", "seq", "tensor")
        )
        ours, theirs = (
            programs.make_run(config, mesh),
            run_kinds.find_kind(config).make_run(config, mesh),
        )
        assert (
            ours.abstract == theirs.abstract
            and ours.model.abstract_params == theirs.model.abstract_params
        )


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


def test_more_is_computed_than_the_model_where_it_is_computed_again(plain):
    again = plan_step(**{"memory.remat": "block"})
    assert again.flops == plain["train"].flops == again.flops
    # One more forward pass of three, but for what is outside the blocks.
    assert 1.2 < again.executed / plain["train"].executed < 4 / 3 + 0.05


def leaf_bytes(state, *fields):
    """Bytes of fields of a train state on the device that has most of them."""
    held = {}
    for field in fields:
        for leaf in jax.tree.leaves(getattr(state, field)):
            for shard in leaf.addressable_shards:
                held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def test_what_stays_beside_a_program_is_what_training_holds():
    """Against the bytes of a state that was made: the sampler's parameters are the average, the decoder's are not."""
    config = small_config(
        **{
            "vae.name": "taef2",
            "data.height": 128,
            "data.width": 128,
            "model.patch_size": (1, 4, 4),
        }
    )
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    whole = leaf_bytes(state, "params", "opt_state", "ema", "frozen")
    batch = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(training_run.place_batch(run))
    )
    found = programs.count_resident(run, CPU)
    autoencoder = run.model.latent_space.describe().abstract_params
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(autoencoder))
    assert found.state == whole
    assert found.observers == weights + 3 * batch  # two in the queue, one with the thread
    assert found.sampling == whole - leaf_bytes(state, "ema") + weights + 3 * batch
    assert found.decoding == whole + 3 * batch
    config.sample.every = config.evaluation.fvd_every = 0  # nothing is decoded
    assert programs.count_resident(make_run(config), CPU).observers == 3 * batch


def test_an_average_on_the_host_is_copied_to_sample():
    """So it is on the device then, but not while the step runs."""
    run = make_run(small_config(**{"memory.offload_ema": True}))
    away, here = (programs.count_resident(run, card) for card in (device_specs.CARDS["a40"], CPU))
    assert here.state - away.state == programs.plan_train(run, CPU).memory["EMA"]
    assert (away.sampling, away.decoding) == (here.sampling, here.decoding)


def jobs_of(**changes):
    run = make_run(small_config(**changes))
    return list(programs.list_jobs(run, CPU, jax.devices()[:2]))


def test_training_samples_on_its_own_mesh():
    assert jobs_of() == ["train", "sample"]  # one clip on two devices: the verb has the same mesh
    assert jobs_of(**{"sample.batch_size": 2}) == ["train", "sample", "in training"]
    assert jobs_of(**{"sample.batch_size": 2, "sample.every": 0}) == ["train", "sample"]


def test_weights_of_text_encoders_count_while_prompts_are_embedded():
    config = small_config(**{"text.encoder": "clip", "text.path": "openai/clip-vit-large-patch14"})
    program = programs.plan_prompts(config, CPU, jax.devices()[:2], 5)
    # CLIP ViT-L/14's text model has 123,060,480 parameters, and its projection 768 x 768.
    assert program.peak == 4 * (123_060_480 + 768 * 768)
    assert program.total == program.peak + 5 and program.traffic == 0


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


def test_a_failure_of_xla_is_a_sentence(monkeypatch):
    def fail(run, card, resident):
        raise jax.errors.JaxRuntimeError("INTERNAL: no cuDNN engine.\n\nLong trace")

    monkeypatch.setattr(programs, "plan_train", fail)
    with pytest.raises(
        ValueError, match=r"for cpu \(INTERNAL: no cuDNN engine\): take XLA's attention by"
    ):
        programs.make_plan(small_config(), CPU, jax.devices()[:2], ["train"])
    assert programs.describe_failure("no memory", CPU).endswith("or other sizes of the model.")
