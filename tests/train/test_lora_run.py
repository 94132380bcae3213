"""Runs by LoRA and runs with frozen parameters: what they train, save, resume and hand on."""

import shutil

import jax
import numpy as np
import pytest
from absl import flags

from tests.data.packed import random_clips, write_records
from tests.models.randomise import randomise
from tests.saved_runs import CAPTIONS, COUNTS, write_run
from tests.tiny import make_run, tiny_config, tiny_vae_config
from tests.train.test_init_params import begin, output, plain_config, read_average, starting
from tests.train.test_step import make_batch
from videogen_jax import config as configs
from videogen_jax import export
from videogen_jax.data import pipeline
from videogen_jax.data.vocabulary import Vocabulary
from videogen_jax.generate import from_checkpoint
from videogen_jax.models.lora import is_adapter
from videogen_jax.models.parameter_paths import combine, list_paths
from videogen_jax.parallel import device_specs
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.sharding import path_name
from videogen_jax.planning import programs
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.run.merged_lora import without_lora
from videogen_jax.train import diffusion_run, init_params, loop, resume_checks, training_run
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = pytest.mark.slow

RANK, ALPHA = 2, 3.0
QKV = "blocks/temporal/attention/qkv"
WORDS = "caption_encoder/words/embedding"


def lora_config(**changes):
    """The tiny config with LoRA of rank 2 in attention and MLPs, on one device."""
    config = tiny_config()
    config.mesh.fsdp = 1
    config.init.update({"path": "no run", "layout": "run"})
    config.train.lora.update({"rank": RANK, "alpha": ALPHA, "layers": (".*attention/.*", "mlp/up")})
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = random_clips((4, 8, 8), 4)
    return write_records(tmp_path_factory.mktemp("data") / "data", clips, 4, 2, CAPTIONS * 2)


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    """A model of random parameters, none of them zero."""
    return write_run(tmp_path_factory.mktemp("base") / "run", plain_config("no data"))


def tuned_config(data, base_run):
    config = starting(lora_config(), data, base_run)
    config.train.steps = 4
    config.ema.update({"widths": (0.05, 0.1), "snapshot_every": 1})
    return config


@pytest.fixture(scope="module")
def tuned_run(data, base_run, tmp_path_factory):
    """Four steps of LoRA, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    loop.train(tuned_config(data, base_run), folder)
    return folder


def read_state(workdir):
    run = make_run(saved_config.read_config(workdir))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return checkpoint.restore(manager, run.abstract)


def leaves_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {path_name(path): leaf for path, leaf in leaves}


def assert_same(tree, other):
    tree, other = leaves_of(tree), leaves_of(other)
    assert tree.keys() == other.keys()
    for path, leaf in tree.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_the_first_output_is_the_base_models_to_the_bit(data, base_run):
    other, average = read_average(base_run)
    config = starting(lora_config(), data, base_run)
    run, params = begin(config, data)
    assert any(map(is_adapter, list_paths(params)))
    np.testing.assert_array_equal(output(run, params), output(other, average))


def test_only_the_updates_are_trained_saved_and_averaged(base_run, tuned_run):
    _, average = read_average(base_run)
    state = read_state(tuned_run)
    assert int(state.step) == 4
    assert_same(state.frozen, average)
    trained = list_paths(state.params)
    # Two factors of queries, keys and values, of out, and of up, in two blocks.
    assert len(trained) == 12 and all(map(is_adapter, trained))
    for name, tree in state.ema.items():
        assert list_paths(tree) == trained, name
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * size
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.params))
    text = (tuned_run / "parameters.txt").read_text()
    assert "lora_a" in text and "patch_embed/kernel" in text


def test_a_run_that_was_stopped_resumes_to_the_same_bits(data, base_run, tuned_run, tmp_path):
    shutil.copytree(tuned_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    config = tuned_config(data, base_run)
    config.init.path = str(tmp_path / "gone")  # a run needs the base no more
    loop.train(config, tmp_path / "run")
    assert_same(
        read_state(tmp_path / "run").replace(rng=None), read_state(tuned_run).replace(rng=None)
    )


def test_the_model_that_is_loaded_has_the_updates_in_its_kernels(tuned_run):
    state, model = read_state(tuned_run), from_checkpoint.load(tuned_run)
    base, ema = leaves_of(state.frozen), leaves_of(state.ema["decay_0.9"])
    found = leaves_of(model.params)
    assert found.keys() == base.keys()
    for path, leaf in found.items():
        expected = np.float64(base[path])
        layer = path.removesuffix("kernel")
        if f"{layer}lora_a" in ema:
            a, b = (np.float64(ema[layer + name][0]) for name in ("lora_a", "lora_b"))
            update = ALPHA / RANK * np.tensordot(a, b, axes=1)
            assert np.abs(update).max() > 0
            np.testing.assert_allclose(leaf[0], expected[0] + update, atol=1e-6, err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, base[path], err_msg=path)
    # Beside the kernels, as the run trains and validates them, they give the same.
    run = make_run(saved_config.read_config(tuned_run))
    whole = combine(state.ema["decay_0.9"], state.frozen)
    expected = output(run, whole)
    merged = output(make_run(without_lora(run.config)), jax.device_get(model.params))
    np.testing.assert_allclose(merged, expected, atol=1e-5 * np.abs(expected).max())


def test_an_average_of_another_width_has_them_too(tuned_run):
    base = leaves_of(read_state(tuned_run).frozen)
    found = leaves_of(from_checkpoint.load(tuned_run, ema_width=0.08).params)
    assert found.keys() == base.keys()
    np.testing.assert_array_equal(found["unembed/kernel"], base["unembed/kernel"])
    assert np.abs(found[f"{QKV}/kernel"] - base[f"{QKV}/kernel"]).max() > 0


def test_a_run_starts_from_one_that_was_tuned(data, tuned_run):
    _, params = begin(starting(plain_config(data), data, tuned_run), data)
    assert_same(params, from_checkpoint.load(tuned_run).params)


def test_new_words_that_are_frozen_are_warned_of(base_run, tmp_path, caplog):
    words = write_records(tmp_path / "data", random_clips((4, 8, 8), 4), 4, 2, ["a cat"] * 4)
    sentence = f"{WORDS}: new in this run, and frozen"
    config = starting(lora_config(), words, base_run)
    begin(config, words)
    assert sentence in caplog.text
    caplog.clear()
    config.train.lora.full = ("words/embedding",)
    run, _ = begin(config, words)
    assert sentence not in caplog.text
    assert WORDS in list_paths(run.abstract.params) and WORDS not in list_paths(run.abstract.frozen)


@pytest.mark.parametrize("layout", ["run", "export"])
def test_longer_patches_beside_lora_and_from_it(data, layout, tmp_path, caplog):
    """The first output on frames that are alike is the other's; what was inflated is frozen, which is warned of."""
    config = lora_config(**{"train.lora.layers": ("out",)})
    other = write_run(tmp_path / "other", config)
    if layout == "export":
        values = flags.FlagValues()
        export.define_flags(values)
        values(["export", f"--workdir={other}", f"--output={tmp_path / 'export'}"])
        export.write_export(values, tmp_path / "export")
    whole, average = read_average(other)
    changes = {"model.patch_size": (2, 4, 4)}
    config = starting(
        lora_config(**changes), data, other if layout == "run" else tmp_path / "export"
    )
    config.init.layout = layout
    run, params = begin(config, data)
    assert "patch_embed/kernel" in caplog.text and "unembed/bias" in caplog.text
    assert "new in this run, and frozen" in caplog.text and "blocks/" not in caplog.text
    caplog.clear()
    config.train.lora.full = ("patch_embed/kernel", "unembed/.*")
    begin(config, data)
    assert "frozen" not in caplog.text

    picture = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 3)).astype(np.float32)
    text = {"text": np.full((2, config.text.length), 4, np.int32)}

    def predict(model, params, frames):
        x_t = np.repeat(picture, frames, axis=1)
        return np.asarray(jax.jit(model.apply)(params, x_t, np.array([300, 700]), text))

    expected = predict(whole.model, average, 1)  # with the updates beside the kernels
    assert np.abs(expected).max() > 1e-2
    found = predict(run.model, params, 2)
    np.testing.assert_allclose(found, np.repeat(expected, 2, axis=1), atol=1e-5)


def test_weighted_captions_are_carried_beside_lora(tmp_path):
    """By the word, embedding and importance, into a vocabulary of another size."""
    pooling = {"model.text_pooling": "weighted", "model.pooled_text": True}
    config = plain_config("no data")
    config.update_from_flattened_dict(pooling)
    other = write_run(tmp_path / "run", config)
    captions = ["a cat moving moving left"] * 4
    words = write_records(tmp_path / "data", random_clips((4, 8, 8), 4), 4, 2, captions)
    config = starting(lora_config(**pooling, **{"text.vocabulary_size": 9}), words, other)
    config.train.lora.full = ("caption_encoder/.*",)
    run, params = begin(config, words)
    before = Vocabulary.from_counts(COUNTS, 32).to_list()
    after = DIFFUSION.open_texts(config, pipeline.open_data(str(words))).metadata["vocabulary"]
    assert sorted(after) == ["a", "cat", "left", "moving"] != after
    old, new = (tree["caption_encoder"] for tree in (read_average(other)[1], params))
    for table, was in (
        (new["words"]["embedding"], old["words"]["embedding"]),
        (new["importance"], old["importance"]),
    ):
        assert len(table) == 9
        for word in ("a", "left", "moving"):
            row = table[after.index(word) + 3]
            np.testing.assert_array_equal(row, was[before.index(word) + 3], err_msg=word)
    assert {"caption_encoder/importance", WORDS} <= set(list_paths(run.abstract.params))


def test_what_published_weights_lack_is_warned_of_if_frozen(data, monkeypatch, caplog):
    """Here all but one leaf, which the layout has."""

    def load(path, layout, params):
        return params | {"patch_embed": jax.tree.map(np.asarray, params["patch_embed"])}

    monkeypatch.setattr(init_params.weights, "load_weights", load)
    config = starting(lora_config(), data, "weights.safetensors")
    config.init.layout = "dit"
    begin(config, data)
    assert "blocks/spatial/attention/key_norm/scale, blocks/" in caplog.text
    assert "more: new in this run, and frozen" in caplog.text and "patch_embed" not in caplog.text


def run_steps(config, params, count):
    """The state after some steps from given parameters, and the losses."""
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)(
        jax.device_put(params, run.model.param_shardings)
    )
    train_step, losses = training_run.compile_step(run), []
    for i in range(count):
        state, values = train_step(state, meshes.put_batch(run.mesh, make_batch(config, i)))
        losses.append(float(values["loss"]))
    return state, losses


def test_several_devices_train_as_one():
    params = randomise(make_run(lora_config()).model.abstract_params, 0.3)
    expected, losses = run_steps(
        lora_config(), params, 2
    )  # of the same parameters: a warm-up from zero
    meshes_of = ({"fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "seq": 2})
    for sizes in meshes_of:
        changes = {f"mesh.{name}": size for name, size in sizes.items()}
        state, found = run_steps(lora_config(**changes, **{"memory.pieces": 2}), params, 2)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        assert_same(state.frozen, expected.frozen)
        # Adam's moments are sums of gradients and of their squares; its updates would magnify their rounding.
        moments = leaves_of(expected.opt_state)
        for path, leaf in leaves_of(state.opt_state).items():
            limit = 1e-5 * np.abs(moments[path]).max()
            np.testing.assert_allclose(leaf, moments[path], rtol=0, atol=limit, err_msg=path)


def test_frozen_parameters_stay_and_the_others_move_as_without_them():
    """The same update as in a run that trains all: with Adam, a leaf's does not depend on the other leaves."""
    patterns = ("blocks/spatial/.*", "embedding", "time_embed/.*")
    config = tiny_config()
    config.mesh.fsdp = 1
    config.optimizer.clip_norm = 1e6
    params = randomise(make_run(config).model.abstract_params, 0.3)
    whole, _ = run_steps(config, params, 2)  # the learning rate of the first is zero
    config.train.frozen = patterns
    state, _ = run_steps(config, params, 2)
    frozen, before = leaves_of(state.frozen), leaves_of(params)
    assert set(frozen) == {path for path in before if "spatial" in path or "time_embed" in path} | {
        WORDS
    }
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    whole = leaves_of(whole.params)
    for path, leaf in leaves_of(state.params).items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-5, atol=1e-5, err_msg=path)
        assert np.abs(leaf - before[path]).max() > 0, path
    assert len(jax.tree.leaves(state.ema)) == len(jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.name": "muon"},
        {"optimizer.name": "lion", "memory.offload_optimizer": True, "memory.offload_ema": True},
        {"optimizer.name": "adafactor", "train.accumulation": 2, "mesh.fsdp": 2},
        {"optimizer.name": "schedule_free", "learning_rate.final_fraction": 1.0},
        {"train.precision": "float16", "memory.remat": "block"},
    ],
    ids=lambda changes: "_".join(str(value) for value in changes.values()),
)
def test_every_optimizer_and_lever_takes_the_updates_alone(changes):
    config = configs.validate(lora_config(**changes))
    training_run.trace_step(make_run(config))


def test_the_plan_has_no_moments_nor_averages_of_what_is_frozen():
    wide = {"model.width": 48, "batch_size": 1}
    config = lora_config(**wide)
    tuned, run = programs.plan_train(make_run(config), device_specs.CARDS["cpu"]), make_run(config)
    config.train.lora.update({"rank": 0, "alpha": None})
    whole = programs.plan_train(make_run(config), device_specs.CARDS["cpu"])
    assert tuned.memory["parameters"] > whole.memory["parameters"]
    adapters = sum(leaf.size for leaf in jax.tree.leaves(run.abstract.params))
    assert tuned.memory["EMA"] == 4 * adapters < 0.1 * whole.memory["EMA"]
    assert tuned.memory["optimizer"] < 0.1 * whole.memory["optimizer"]
    assert whole.peak - tuned.peak > 3 * (whole.memory["parameters"] - 4 * adapters)
    # Forward and backward pass, but no products for the gradients of kernels.
    forward = diffusion_run.forward_flops(run.model)
    assert tuned.flops == 2 * forward and whole.flops == 3 * forward
    assert (
        programs.plan_sample(
            programs.make_sampling_model(run.model, jax.devices()[:1]), device_specs.CARDS["cpu"]
        ).memory["parameters"]
        == whole.memory["parameters"]
    )


def test_an_autoencoder_trains_its_decoder_alone(tmp_path):
    config = tiny_vae_config()
    config.train.frozen = ("encoder/.*",)
    run = make_run(configs.validate(config))
    assert {path.split("/")[0] for path in list_paths(run.abstract.params)} == {"decoder"}
    params = randomise(run.model.abstract_params)
    state = jax.jit(run.init)(params)
    with checkpoint.open_checkpoints(tmp_path, 1) as manager:
        checkpoint.save(manager, state, {"config": config.to_dict()})
        manager.wait_until_finished()
        found, _ = checkpoint.restore_ema(manager, run.model.abstract_params, run.ema_name)
    assert_same(found, params)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.frozen": ("blocks/spacial/.*",)}, "'blocks/spacial/.*', which matches none of"),
        ({"train.frozen": (".*",)}, r"which matches all \d+ parameters"),
        ({"train.lora.layers": ("qkv", "mpl/.*")}, "train.lora.layers has 'mpl/.*', which matches"),
        ({"train.lora.layers": ("query_norm",)}, "none of blocks/spatial/attention/out, .*/qkv"),
        ({"train.lora.full": ("word/embedding",)}, "train.lora.full has 'word/embedding', which"),
        ({"train.lora.rank": 12}, r"rank is 12, but the matrix of blocks/.* is 12 x 36: choose"),
    ],
)
def test_patterns_and_ranks_that_do_not_fit_the_model_are_refused(changes, sentence):
    config = lora_config(**changes)
    if config.train.frozen:
        config.train.lora.update({"rank": 0, "alpha": None})
    with pytest.raises(ValueError, match=sentence):
        make_run(configs.validate(config))


def test_lora_cannot_change_on_the_way(tmp_path):
    saved = configs.validate(lora_config())
    for name, value in (("rank", 4), ("alpha", 1.0), ("layers", ("qkv",)), ("full", ("bias",))):
        config = configs.validate(lora_config(**{f"train.lora.{name}": value}))
        with pytest.raises(ValueError, match=f"cannot be resumed .*train.lora.{name} was "):
            resume_checks.check_options(saved, config, tmp_path)
    saved = configs.validate(tiny_config())
    config = tiny_config()
    config.train.frozen = ("bias",)
    with pytest.raises(ValueError, match="cannot be resumed .*train.frozen was "):
        resume_checks.check_options(saved, configs.validate(config), tmp_path)
