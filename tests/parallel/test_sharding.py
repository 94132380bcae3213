"""The two sharding tables, their errors, and that results do not depend on the sharding."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.models.dit import VideoDiT
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.train import diffusion_run

pytestmark = pytest.mark.slow

MESH_AXES = {"wide": "fsdp", "long": "fsdp", "small": None, "unknown": "nowhere"}
TREE = {"layer": {"kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32)}}


def shard(rules, tree=TREE, mesh_axes=MESH_AXES):
    return sharding.make_shardings(meshes.make_mesh(fsdp=2), tree, rules, mesh_axes)


def test_a_leaf_is_sharded_by_the_two_tables():
    for axes, expected in (
        (("small", "wide"), (None, "fsdp")),
        (("wide", "small"), ("fsdp", None)),
    ):
        assert shard({"layer/kernel": axes})["layer"]["kernel"].spec == PartitionSpec(*expected)


def test_stacked_leaves_get_a_leading_layer_axis():
    tree = {"blocks": {"kernel": jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)}}
    axes = MESH_AXES | {"layers": None}
    spec = shard({"kernel": ("wide", "small")}, tree, axes)["blocks"]["kernel"].spec
    assert spec == PartitionSpec(None, "fsdp", None)


def test_the_factors_of_lora_follow_their_kernel_but_for_the_hidden_size():
    layer = {"kernel": (3, 4, 3, 2, 6), "lora_a": (3, 4, 5), "lora_b": (3, 5, 3, 2, 6)}
    out = {"kernel": (3, 2, 6, 4), "lora_a": (3, 2, 6, 5), "lora_b": (3, 5, 4)}
    tree = {"blocks": {"attention": {"qkv": layer, "out": out}}}
    tree = jax.tree.map(jnp.zeros, tree, is_leaf=lambda node: isinstance(node, tuple))
    rules = {"qkv/kernel": ("embed", "qkv", "heads", "head")}
    rules |= {"attention/out/kernel": ("heads", "head", "embed")}
    mesh = meshes.make_mesh(fsdp=2, tensor=2)
    found = sharding.make_shardings(mesh, tree, rules)["blocks"]["attention"]
    embed = ("fsdp", "seq")
    assert found["qkv"]["kernel"].spec == PartitionSpec(None, embed, None, "tensor", None)
    assert found["qkv"]["lora_a"].spec == PartitionSpec(None, None, None)
    assert found["qkv"]["lora_b"].spec == PartitionSpec(None, None, None, "tensor", None)
    assert found["out"]["kernel"].spec == PartitionSpec(None, "tensor", None, embed)
    assert found["out"]["lora_a"].spec == PartitionSpec(None, "tensor", None, None)
    assert found["out"]["lora_b"].spec == PartitionSpec(None, None, None)


@pytest.mark.parametrize("clips", [(), (2,)], ids=["one matrix", "a matrix per clip"])
def test_gathered_weights_are_sharded_over_heads_and_clips_alone(clips):
    up = {"kernel": (4, 6), "bias": (6,), "lora_a": (4, 2), "lora_b": (2, 6)}
    down = {"kernel": (6, 4), "bias": (4,)}
    shapes = {"mlp": {"up": up, "down": down}}
    weights = jax.tree.map(
        lambda shape: jnp.zeros((*clips, *shape)), shapes, is_leaf=lambda node: type(node) is tuple
    )
    found = sharding.gathered_shardings(meshes.make_mesh(fsdp=2, tensor=2), weights)["mlp"]
    first = [("data", "fsdp")] * len(clips)
    assert found["up"]["kernel"].spec == PartitionSpec(*first, None, "tensor")
    assert found["up"]["bias"].spec == PartitionSpec(*first, "tensor")
    assert found["up"]["lora_a"].spec == PartitionSpec(*first, None, None)
    assert found["up"]["lora_b"].spec == PartitionSpec(*first, None, "tensor")
    assert found["down"]["kernel"].spec == PartitionSpec(*first, "tensor", None)
    assert found["down"]["bias"].spec == PartitionSpec(*first, None)


def test_scalars_keys_and_leaves_of_other_shapes_are_replicated():
    tree = TREE | {
        "step": jnp.int32(0),
        "rng": jax.random.key(0),
        "muon": {"ns_coeffs": jnp.zeros((5, 3))},
        "v_row": {"layer": {"kernel": jnp.zeros(4)}},  # of Adafactor, as the next two
        "v_col": {"layer": {"kernel": jnp.zeros(6)}},
        "v": {"layer": {"kernel": jnp.zeros(1)}},
    }
    shardings = shard({"kernel": ("wide", "small")}, tree)
    assert shardings.pop("layer")["kernel"].spec == PartitionSpec("fsdp", None)
    for path, sharding_ in jax.tree_util.tree_leaves_with_path(shardings):
        assert sharding_.spec == PartitionSpec(), path


def test_a_rule_for_a_leaf_with_one_element_is_not_dead():
    tree = TREE | {"unembed": {"bias": jnp.zeros(1)}}
    rules = {"kernel": ("wide", "small"), "bias": ("wide",)}
    assert shard(rules, tree)["unembed"]["bias"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"bias": ("small",)}, "layer/kernel matches no sharding rule"),
        (
            {"kernel": ("wide", "small"), "layer/kernel": ("wide", "small")},
            r"layer/kernel matches 2 sharding rules \(kernel, layer/kernel\)",
        ),
        ({"kernel": ("wide",)}, r"layer/kernel names 1 axes .*shape is \(4, 6\)"),
        ({"kernel": ("wide", "huge")}, "'huge' of layer/kernel is not in MESH_AXES"),
        (
            {"kernel": ("small", "unknown")},
            "'unknown' maps to the mesh axis 'nowhere', but .* data, fsdp",
        ),
        ({"kernel": ("wide", "long")}, r"layer/kernel .*'fsdp' twice"),
        (
            {"kernel": ("wide", "small"), "old/kernel": ("wide",), "older": ()},
            "rules 'old/kernel', 'older' match no parameter",
        ),
    ],
)
def test_the_error_for_a_rule_that_does_not_fit_names_it(rules, message):
    with pytest.raises(ValueError, match=message):
        shard(rules)


def test_a_size_that_the_mesh_does_not_divide_is_rejected():
    tree = {"layer": {"kernel": jax.ShapeDtypeStruct((3, 6), jnp.float32)}}
    message = r"layer/kernel of shape \(3, 6\) .* mesh\.fsdp=2 along its axis 'wide' of 3"
    with pytest.raises(ValueError, match=message):
        shard({"kernel": ("wide", "small")}, tree)


def test_the_error_for_an_indivisible_config_names_the_leaf():
    config = tiny_config()
    config.model.width, config.mesh.fsdp = 14, 4
    with pytest.raises(
        ValueError, match=r"/kernel of shape .* does not divide by mesh\.fsdp x mesh\.seq=4"
    ):
        make_run(config)


@pytest.mark.parametrize("cross_attention", ["none", "gated"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_parameter_its_ema_and_its_moments_have_the_same_sharding(
    cross_attention, optimizer, precision
):
    config = tiny_config()
    config.model.cross_attention, config.optimizer.name = cross_attention, optimizer
    config.model.text_depth, config.train.precision = 1, precision
    run = make_run(config)
    specs = {
        sharding.path_name(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.shardings.params)
    }
    found = dict.fromkeys(specs, 0)
    shardings = jax.tree.leaves(run.shardings)
    leaves = jax.tree_util.tree_leaves_with_path(run.abstract)
    for (path, leaf), leaf_sharding in zip(leaves, shardings, strict=True):
        assert leaf.sharding == leaf_sharding
        name = sharding.path_name(path)
        match = re.fullmatch(r"(?:params|ema/[^/]+|opt_state/.*(?:mu|nu))/(.*)", name)
        if match and match[1] in specs:
            assert leaf_sharding.spec == specs[match[1]]
            found[match[1]] += 1
        else:
            assert leaf_sharding.spec == PartitionSpec(), name
    # Parameter, EMA and at least one moment; two moments with Adam.
    assert set(found.values()) == ({4} if optimizer == "adamw" else {3, 4})
    for name, spec in specs.items():  # every matrix is sharded
        assert (("fsdp", "seq") in spec) == name.endswith(("kernel", "embedding")), name


def test_the_moments_of_adafactor_have_shardings():
    """Factored moments are replicated, full matrices sharded as their parameter."""
    config = tiny_config()
    config.model.width, config.optimizer.name = 256, "adafactor"  # it factors sizes from 128 on
    run = make_run(config)
    seen = set()
    shardings = jax.tree.leaves(run.shardings.opt_state)
    leaves = jax.tree_util.tree_leaves_with_path(run.abstract.opt_state)
    for (path, leaf), leaf_sharding in zip(leaves, shardings, strict=True):
        name = sharding.path_name(path)
        factored = re.search("/(v_row|v_col)/", name)
        seen |= {factored[1]} if factored and leaf.size > 1 else set()
        shared = leaf.size > 1 and not factored and name.endswith(("kernel", "embedding"))
        assert (("fsdp", "seq") in leaf_sharding.spec) == shared, name
    assert seen == {"v_row", "v_col"}


ENCODED = {
    "words": np.zeros((1, 3), np.int32),
    "class": np.zeros(1, np.int32),
    "embeddings": {
        "tokens": np.zeros((1, 3, 5), np.float32),
        "mask": np.ones((1, 3), bool),
        "pooled": np.zeros((1, 7), np.float32),
    },
}


@pytest.mark.parametrize("attention", ["factorized", "joint"])
@pytest.mark.parametrize("text_encoder", ENCODED)
def test_every_model_has_a_rule_for_each_leaf_and_no_dead_rule(attention, text_encoder):
    choices = {
        "modulation": ("adaln_zero", "adaln_single"),
        "qk_norm": (False, True),
        "cross_attention": ("none",) if text_encoder == "class" else ("none", "gated", "pixart"),
    }
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True)) | {"text_encoder": text_encoder}
        for pooled_text in {
            True,
            options["cross_attention"] == "none",
        }:  # also without, where allowed
            model = VideoDiT(
                **options,
                patch_size=(1, 4, 4),
                width=12,
                depth=2,
                num_heads=2,
                mlp_ratio=2,
                attention=attention,
                causal=False,
                positions="sincos",
                pooled_text=pooled_text,
                micro_conditions=("fps",) if pooled_text else (),
                conditioning="none",
                time_cycle=0,
                text_depth=int(text_encoder == "words"),
                remat="none",
                vocabulary_size=16,
                dtype=jnp.float32,
            )
            micro = {name: np.zeros(1, np.float32) for name in model.micro_conditions}
            inputs = (np.zeros((1, 2, 4, 4, 3), np.float32), np.zeros(1), ENCODED[text_encoder])
            params = jax.eval_shape(model.init, jax.random.key(0), *inputs, micro)["params"]
            rules = sharding.parameter_rules(**options, detailer=False)
            shardings = sharding.make_shardings(meshes.make_mesh(fsdp=2), params, rules)
            for path, leaf_sharding in jax.tree_util.tree_leaves_with_path(shardings):
                matrix = path[-1].key in ("kernel", "embedding")
                assert (("fsdp", "seq") in leaf_sharding.spec) == matrix, (path, options)


def test_a_patch_detailer_is_replicated():
    config = tiny_config()
    config.model.update({"detailer_width": 6, "detailer_blocks": 1, "qk_norm": False})
    run = make_run(config)
    found = run.model.param_shardings["detailer"]
    assert set(found) == {"enter", "context", "leave", "block_0"}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found))


def test_the_importance_of_words_is_replicated():
    config = tiny_config()
    config.model.text_pooling = "weighted"
    found = make_run(config).model.param_shardings["caption_encoder"]
    assert set(found) == {"words", "norm", "importance"}
    assert found["importance"].is_fully_replicated


def test_two_devices_hold_half_of_every_matrix_each():
    run = make_run(tiny_config())
    state = jax.jit(run.init, out_shardings=run.shardings)()
    parts = jax.tree.leaves(state.opt_state, is_leaf=lambda part: hasattr(part, "mu"))
    (adam,) = [part for part in parts if hasattr(part, "mu")]
    for tree in (state.params, *state.ema.values(), adam.mu, adam.nu):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shards = [shard.data for shard in leaf.addressable_shards]
            assert len(shards) == 2
            matrix = path[-1].key in ("kernel", "embedding")
            for shard in shards:
                assert shard.size == (leaf.size // 2 if matrix else leaf.size)


@functools.cache
def loss_and_gradients(data, fsdp):
    config = tiny_config()
    config.model.cross_attention = "gated"
    run = make_run(config, meshes.make_mesh(data=data, fsdp=fsdp))
    params = jax.device_put(randomise(run.abstract.params, 0.3), run.shardings.params)
    loss = diffusion_run.make_run_loss(run.model)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (4, *run.model.video_shape), np.uint8),
        "text": rng.integers(3, 20, (4, config.text.length)).astype(np.int32),
    }
    call = jax.jit(jax.value_and_grad(loss), out_shardings=(None, run.shardings.params))
    value, grads = call(params, meshes.put_batch(run.mesh, batch), jax.random.key(1))
    return float(value), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 2), (2, 2)])
def test_loss_and_gradients_agree_with_one_device_up_to_rounding(data, fsdp):
    """The noise is the same too: random numbers do not depend on the mesh."""
    expected, expected_grads = loss_and_gradients(1, 1)
    value, grads = loss_and_gradients(data, fsdp)
    assert value == pytest.approx(expected, rel=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, got), want in zip(leaves, jax.tree.leaves(expected_grads), strict=True):
        size = np.abs(want).max()
        assert size > 0, path
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * size)
