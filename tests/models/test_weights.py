"""Published weights: outputs and gradients against PyTorch, and errors for weights that do not fit."""

import functools
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from videogen_jax.models import weight_layouts, weights
from videogen_jax.models.dit import VideoDiT

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

FRAMES, CHANNELS = 4, 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scramble(module, scale=0.15):
    """Random parameters, also where the initialization is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def state(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def torch_output_and_norm(module, *args):
    """Output, and the norm of the gradient of its mean square with respect to all parameters."""
    out = module(*args)
    out.square().mean().backward()
    squares = [p.grad.double().square().sum() for p in module.parameters() if p.grad is not None]
    return out.detach().numpy(), float(torch.stack(squares).sum().sqrt())


def shapes(model, *args):
    return jax.eval_shape(model.init, jax.random.key(0), *args)["params"]


def apply(model, params, *args):
    return np.asarray(
        jax.jit(lambda params, *args: model.apply({"params": params}, *args))(params, *args)
    )


def output_and_norm(model, params, *args):
    def loss(params):
        out = model.apply({"params": params}, *args)
        return jnp.mean(jnp.square(out)), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    squares = [np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(grads)]
    return np.asarray(out), np.sqrt(sum(squares))


def to_frames(video):
    """(B, T, H, W, C) to PyTorch's (B, C, T, H, W)."""
    return torch.from_numpy(np.moveaxis(video, -1, 1).copy())


# ---------------------------------------------------------------------------------------- Latte

LATTE = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": CHANNELS,
    "out_channels": 2 * CHANNELS,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 12,
    "video_length": FRAMES,
}


@functools.cache
def latte(**changes):
    with warnings.catch_warnings():  # of libraries that diffusers imports
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
    return scramble(diffusers.LatteTransformer3DModel(**LATTE | changes))


def latte_model(config=LATTE, **changes):
    return VideoDiT(
        **weight_layouts.latte_fields(config) | {"remat": "none", "dtype": jnp.float32} | changes
    )


def latte_inputs(frames=FRAMES, side=8, masked=False):
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5]) if masked else np.ones((2, 5), bool)
    text = {"tokens": normal(2, 5, 12, seed=1), "mask": mask}
    return normal(2, frames, side, side, CHANNELS), np.array([7.0, 801.0], np.float32), text


def run_latte(module, x, t, text):
    # Its attention takes an additive mask per frame.
    bias = (torch.from_numpy(text["mask"]).float() - 1) * 10_000
    bias = bias.repeat_interleave(x.shape[1], 0)[:, None]

    def call(video, t, tokens):
        # Images skip the temporal blocks by an option.
        temporal = x.shape[1] > 1
        options = {"enable_temporal_attentions": temporal, "return_dict": False}
        return module(video, t, tokens, bias, **options)[0].movedim(1, -1)

    call.parameters = module.parameters
    module.zero_grad()
    return call, (to_frames(x), torch.from_numpy(t), torch.from_numpy(text["tokens"]))


@pytest.mark.parametrize("masked", [False, True])
def test_latte_agrees_with_diffusers_in_outputs_and_gradients(masked):
    module, args = latte(), latte_inputs(masked=masked)
    call, torch_args = run_latte(module, *args)
    model = latte_model()
    params = weights.convert_tensors(state(module), "latte", shapes(model, *args))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    expected, expected_norm = torch_output_and_norm(call, *torch_args)
    out, norm = output_and_norm(model, params, *args)
    assert np.std(expected) > 0.5 and expected_norm > 0.1
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert norm == pytest.approx(expected_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("frames", "side", "sample_size"), [(1, 8, 8), (FRAMES, 12, 8), (FRAMES, 8, 128)]
)
def test_latte_agrees_with_diffusers_for_images_and_other_sizes(frames, side, sample_size):
    """Other sizes interpolate the positions."""
    changes = {"sample_size": sample_size}
    module, args = latte(**changes), latte_inputs(frames, side)
    call, torch_args = run_latte(module, *args)
    with torch.no_grad():
        expected = call(*torch_args).numpy()
    model = latte_model(LATTE | changes)
    params = weights.convert_tensors(state(module), "latte", shapes(model, *latte_inputs()))
    out = apply(model, params, *args)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_latte_without_its_variances_keeps_the_first_channels():
    args, module = latte_inputs(), latte()
    whole = latte_model()
    mean = latte_model(out_channels=None)
    outs = []
    for model in (whole, mean):
        params = weights.convert_tensors(state(module), "latte", shapes(model, *args))
        outs.append(apply(model, params, *args))
    np.testing.assert_allclose(outs[1], outs[0][..., :CHANNELS], atol=1e-4)


def test_models_other_than_text_to_video_latte_are_rejected():
    for name, value in (("norm_type", "layer_norm"), ("attention_bias", False), ("norm_eps", 1e-5)):
        with pytest.raises(ValueError, match=f"config has {name}={value!r}, but only"):
            weight_layouts.latte_fields(LATTE | {name: value})


# ------------------------------------------------------------------------------------------ DiT

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 16, 2, 2, 2, 3, 5


@functools.cache
def dit():
    from tests.models import torch_dit

    return scramble(
        torch_dit.DiT(WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES, CHANNELS, 2 * CHANNELS)
    )


def dit_model(**changes):
    """Fields of a small DiT."""
    small = {"width": WIDTH, "depth": 2 * DEPTH, "num_heads": HEADS, "vocabulary_size": CLASSES + 1}
    small |= {"out_channels": 2 * CHANNELS, "position_grid": (SIDE, SIDE)}
    fields = weight_layouts.dit_fields("S", PATCH) | small | {"remat": "none", "dtype": jnp.float32}
    return VideoDiT(**fields | changes)


def dit_inputs(frames):
    side = SIDE * PATCH
    x = normal(2, frames, side, side, CHANNELS)
    return x, np.array([20.0, 930.0], np.float32), np.array([1, CLASSES])


def fresh(model, *args):
    """Parameters at initialization."""
    return jax.jit(model.init)(jax.random.key(0), *args)["params"]


@pytest.mark.parametrize("attention", ["factorized", "joint"])
def test_dit_agrees_with_the_paper_in_outputs_and_gradients(attention):
    depth = DEPTH * (2 if attention == "factorized" else 1)
    module, args, model = dit(), dit_inputs(1), dit_model(attention=attention, depth=depth)
    params = weights.convert_tensors(state(module), "dit", shapes(model, *args))
    module.zero_grad()
    x, t, labels = args
    image = to_frames(x)[:, :, 0]
    expected, expected_norm = torch_output_and_norm(
        module, image, torch.from_numpy(t), torch.from_numpy(labels)
    )
    out, norm = output_and_norm(model, params, *args)
    assert np.std(expected) > 0.5 and expected_norm > 0.1
    got = np.moveaxis(out[:, 0], -1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert norm == pytest.approx(expected_norm, rel=1e-3)


def test_a_video_model_from_dit_equals_dit_per_frame_at_initialization():
    """With new temporal blocks, cross-attention and fps condition."""
    module, args = dit(), dit_inputs(FRAMES)
    x, t, labels = args
    model = dit_model(out_channels=None)
    params = weights.convert_tensors(state(module), "dit", fresh(model, *args))
    video = apply(model, params, *args)
    with torch.no_grad():
        for frame in range(FRAMES):
            image = to_frames(x)[:, :, frame]
            expected = module(image, torch.from_numpy(t), torch.from_numpy(labels))
            expected = expected[:, :CHANNELS].movedim(1, -1).numpy()
            np.testing.assert_allclose(video[:, frame], expected, atol=1e-4)
            image = apply(model, params, x[:, frame : frame + 1], t, labels)
            np.testing.assert_allclose(image[:, 0], video[:, frame], atol=2e-5)


def test_dit_initializes_a_model_of_captions():
    """Temporal blocks, words, gates and micro-conditions keep their values; spatial blocks are DiT's."""
    x, t, _ = dit_inputs(FRAMES)
    changes = {"text_encoder": "words", "vocabulary_size": 16, "cross_attention": "gated"}
    changes |= {"text_depth": 1, "micro_conditions": ("fps",), "out_channels": None}
    model = dit_model(**changes)
    args = (x, t, np.array([[3, 4, 0], [5, 0, 0]]), {"fps": np.array([8.0, 24.0], np.float32)})
    given = fresh(model, *args)
    params = weights.convert_tensors(state(dit()), "dit", given)
    loaded = {"patch_embed", "time_embed", "modulation", "unembed"}
    for name in set(given) - loaded - {"blocks"}:
        jax.tree.map(np.testing.assert_array_equal, params[name], given[name])
    blocks, old = params["blocks"], given["blocks"]
    jax.tree.map(np.testing.assert_array_equal, blocks["temporal"], old["temporal"])
    for name in ("text_attention", "text_norm", "text_gate"):
        jax.tree.map(np.testing.assert_array_equal, blocks["spatial"][name], old["spatial"][name])
    kernel = state(dit())["blocks.1.mlp.fc1.weight"]
    np.testing.assert_array_equal(blocks["spatial"]["mlp"]["up"]["kernel"][1], kernel.T)
    # The video equals the same model's images.
    video = apply(model, params, *args)
    assert np.std(video) > 0.5
    for frame in range(FRAMES):
        image = apply(model, params, x[:, frame : frame + 1], *args[1:])
        np.testing.assert_allclose(image[:, 0], video[:, frame], atol=2e-5)


@pytest.mark.parametrize(("size", "parameters"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_dit_has_the_sizes_of_the_paper(size, parameters):
    """Millions, from table 1 of arXiv:2212.09748, with patch 2 and learned variances."""
    model = VideoDiT(**weight_layouts.dit_fields(size, 2), remat="none", dtype=jnp.float32)
    args = (jnp.zeros((1, 1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes(model, *args)))
    assert count / 1e6 == pytest.approx(parameters, abs=0.6)


def test_unknown_sizes_of_dit_are_rejected():
    for size, patch in (("M", 2), ("XL", 3)):
        with pytest.raises(ValueError, match=f"no DiT-{size}/{patch}: .* S, B, L, XL .* 2, 4, 8"):
            weight_layouts.dit_fields(size, patch)
    assert weight_layouts.dit_fields("XL", 4, image_size=512)["position_grid"] == (16, 16)


# ------------------------------------------------------------------------------------ errors


def convert_dit(tensors, **changes):
    model = dit_model(**changes)
    text = dit_inputs(1)[2]
    if changes.get("text_encoder") == "words":
        text = np.array([[3], [4]])
    x, t, _ = dit_inputs(2)
    return weights.convert_tensors(tensors, "dit", shapes(model, x, t, text))


def test_the_error_for_weights_that_do_not_fit_lists_them_and_the_remedy():
    tensors = state(dit())
    del tensors["x_embedder.proj.bias"]
    tensors["head.weight"] = normal(2, 2)
    tensors["blocks.1.mlp.fc1.weight"] = normal(60, WIDTH)
    with pytest.raises(weights.WeightsError) as caught:
        convert_dit(tensors)
    message = str(caught.value)
    assert "1 missing (x_embedder.proj.bias)" in message
    assert "1 unexpected (head.weight)" in message
    assert (
        "1 misshapen (blocks.1.mlp.fc1.weight (60, 16) for blocks/spatial/mlp/up/kernel (16, 64))"
        in message
    )
    assert "dit_fields" in message and "dit, latte" in message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, r"10 unexpected \(blocks\.1\.adaLN_modulation\.1\.bias, "),
        ({"depth": 6}, r"10 missing \(blocks\.2\.attn\.proj\.bias"),
        ({"qk_norm": True}, r"2 missing \(blocks/spatial/attention/key_norm/scale \(not in this"),
        ({"modulation": "adaln_single"}, r"missing \(.*scale_shift_table \(not .*unexpected \(blo"),
        ({"width": 32}, r"misshapen .*, and \d+ more\)"),
        ({"mlp_ratio": 2}, r"6 misshapen \(blocks\.0\.mlp\.fc2\.weight \(16, 64\) for"),
        (
            {"vocabulary_size": 9},
            r"1 misshapen \(y_embedder\.embedding_table\.weight \(6, 16\) for",
        ),
        ({"out_channels": 4}, r"2 misshapen \(final_layer\.linear\.bias \(24,\) for unembed/bias"),
        (
            {"patch_size": (1, 3, 3)},
            r"x_embedder\.proj\.weight \(16, 3, 2, 2\) for patch_embed/ker",
        ),
        (
            {"patch_size": (2, 2, 2)},
            r"x_embedder\.proj\.weight \(16, 3, 2, 2\) for patch_embed/ker",
        ),
    ],
)
def test_dit_weights_for_another_model_are_rejected(changes, message):
    with pytest.raises(weights.WeightsError, match=message):
        convert_dit(state(dit()), **changes)


def test_classes_are_dropped_if_the_model_has_none_and_positions_are_checked():
    changes = {"text_encoder": "words", "cross_attention": "none"}
    convert_dit(state(dit()), **changes)
    tensors = state(dit())
    table = tensors["pos_embed"]
    tensors["pos_embed"] = table + 0.003  # rounding
    convert_dit(tensors)
    for other in (table[:, ::-1], table[:, :-1]):  # another table, and not a square
        with pytest.raises(weights.WeightsError, match="pos_embed is not DiT's table"):
            convert_dit(tensors | {"pos_embed": other})


def test_weights_of_the_other_layout_are_rejected():
    args, model = latte_inputs(), latte_model()
    with pytest.raises(weights.WeightsError, match=r"missing .*, and \d+ more.*unexpected"):
        weights.convert_tensors(state(dit()), "latte", shapes(model, *args))
    with pytest.raises(ValueError, match=r"init\.layout 'pixart': choose one of dit, latte"):
        weights.convert_tensors({}, "pixart", {})


def test_latte_weights_for_a_model_of_words_are_rejected():
    x, t, _ = latte_inputs()
    model = latte_model(text_encoder="words", vocabulary_size=16)
    with pytest.raises(weights.WeightsError, match=r"caption_encoder/words/embedding \(not in"):
        weights.convert_tensors(
            state(latte()), "latte", shapes(model, x, t, np.zeros((2, 5), np.int32))
        )


# ------------------------------------------------------------------------------------- reading


@pytest.fixture
def tensors():
    return {"a.weight": normal(3, 2), "b.weight": normal(4), "c": np.float16(normal(2))}


def check(read, tensors):
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)


def test_a_file_and_a_folder_are_read(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    check(weights.read_tensors(tmp_path / "model.safetensors"), tensors)
    check(weights.read_tensors(str(tmp_path)), tensors)


@pytest.mark.parametrize("index", [False, True])
def test_sharded_weights_are_read_with_and_without_an_index(tmp_path, tensors, index):
    names = {name: f"model-{i}-of-3.safetensors" for i, name in enumerate(tensors)}
    for name, file in names.items():
        save_file({name: tensors[name]}, tmp_path / file)
    if index:
        save_file({"c": normal(9)}, tmp_path / "old.safetensors")  # not in the index
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    check(weights.read_tensors(tmp_path), tensors)
    (tmp_path / names["b.weight"]).unlink()
    if index:
        with pytest.raises(
            FileNotFoundError, match="model-1-of-3.safetensors: give .* all files of the model"
        ):
            weights.read_tensors(tmp_path)


def test_opened_tensors_are_read_when_they_are_asked_for(tmp_path):
    """In any order, each from its own file, so that only one need be in memory."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({name: np.full(3, value, np.float32)}, tmp_path / f"{name}.safetensors")
    opened = weights.open_tensors(tmp_path)
    assert list(opened) == ["a", "b"] and len(opened) == 2 and "c" not in opened
    save_file({"b": np.full(3, 5.0, np.float32)}, tmp_path / "b.safetensors")
    assert opened["b"].tolist() == [5.0] * 3 and opened["a"].tolist() == [1.0] * 3
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    with pytest.raises(weights.WeightsError, match="a.safetensors is not a valid safetensors"):
        opened["a"]
    assert "a" in opened  # which reads nothing


def test_bfloat16_is_read(tmp_path):
    from safetensors.torch import save_file as save_torch

    tensor = torch.from_numpy(normal(3, 2)).bfloat16()
    save_torch({"a": tensor}, tmp_path / "model.safetensors")
    read = weights.read_tensors(tmp_path)["a"]
    np.testing.assert_array_equal(np.float32(read), tensor.float().numpy())


def test_weights_load_from_a_file_and_errors_name_it(tmp_path):
    x, t, labels = dit_inputs(1)
    half = {name: torch.from_numpy(array).bfloat16() for name, array in state(dit()).items()}
    from safetensors.torch import save_file as save_torch

    save_torch(half, tmp_path / "model.safetensors")
    given = shapes(dit_model(), x, t, labels)
    params = weights.load_weights(tmp_path, "dit", given)
    for (path, leaf), old in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(given), strict=True
    ):
        assert leaf.shape == old.shape and leaf.dtype == np.float32, path
    exact = apply(dit_model(), convert_dit_image(), x, t, labels)
    rough = apply(dit_model(), params, x, t, labels)
    assert 0 < np.std(rough - exact) < 0.05 * np.std(exact)
    with pytest.raises(weights.WeightsError, match=f"^{re.escape(str(tmp_path))}: .* do not fit"):
        weights.load_weights(tmp_path, "latte", given)


def convert_dit_image():
    return weights.convert_tensors(state(dit()), "dit", shapes(dit_model(), *dit_inputs(1)))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("folder", [False, True])
def test_pickles_are_not_read(tmp_path, suffix, folder):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = r"is a pickle, .*save_file\(torch\.load\('model\.\w+', weights_only=True\)"
    with pytest.raises(weights.WeightsError, match=message):
        weights.read_tensors(tmp_path if folder else path)


def test_errors_name_files_that_are_missing_or_damaged(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match="There is no .*model.safetensors: give"):
        weights.read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no \*\.safetensors"):
        weights.read_tensors(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"c": normal(9)}, tmp_path / "model.fp16.safetensors")
    with pytest.raises(weights.WeightsError, match=r"contains c twice, .* give the file of one"):
        weights.read_tensors(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for broken in (b"", whole[:4], whole[:-3]):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(weights.WeightsError, match="not a valid safetensors file"):
            weights.read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", ["{not json", "{}", "[1]"])
def test_the_error_for_a_damaged_index_names_it(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(weights.WeightsError, match="model.safetensors.index.json is not an index"):
        weights.read_tensors(tmp_path)


def write_safetensors(path, header, data=b"", length=None):
    """Writes bytes as the format has them; `header` is JSON or its bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def entry(kind, shape, first, end):
    return {"dtype": kind, "shape": shape, "data_offsets": [first, end]}


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64"])
def test_types_that_numpy_lacks_are_named(tmp_path, kind):
    size = {"F4": 4, "F6_E2M3": 6, "C64": 64}.get(kind, 8)
    file = write_safetensors(
        tmp_path / "model.safetensors", {"t": entry(kind, [8], 0, size)}, b"\0" * size
    )
    message = rf"model\.safetensors has the tensor t of type {kind}, which cannot be read: convert"
    with pytest.raises(weights.WeightsError, match=message):
        weights.read_tensors(file)
    with pytest.raises(weights.WeightsError, match=message):
        weights.read_shapes(file)


DAMAGED = [
    {"t": entry("F32", [0, 2**62], 0, 0)},
    {"t": entry("F32", [2**63, 0], 0, 0)},
    {"t": entry("F32", [2**32, 2**32], 0, 0)},
    {"t": entry("F32", [-1], 0, 4)},
    {"t": entry("F32", ["1"], 0, 4)},
    {"t": entry("F32", [1], 0, 400)},
    {"t": entry("F32", [1], 4, 0)},
    {"t": entry("F32", [2], 0, 4)},
    {"t": entry("X", [1], 0, 4)},
    {"t": entry("F32", [1], 0, 4), "u": entry("F32", [1], 0, 4)},  # overlap
    {"t": entry("F32", [1], 0, 4), "u": entry("F32", [1], 2, 6)},
    {"t": {"dtype": "F32"}},
    {"t": 1},
    [1],
    b"\xff\xfe",
    b"[" * 50_000,
]


@pytest.mark.parametrize("header", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_headers_are_one_sentence(tmp_path, header):
    file = write_safetensors(tmp_path / "model.safetensors", header, b"\1" * 4)
    with pytest.raises(weights.WeightsError, match=r"model\.safetensors .*download it again"):
        weights.read_tensors(file)


@pytest.mark.parametrize("length", [3, 1000, 2**40, 2**63, 2**64 - 1])
def test_the_length_of_a_header_is_not_believed(tmp_path, length):
    header = {"t": entry("F32", [1], 0, 4)}
    file = write_safetensors(tmp_path / "model.safetensors", header, b"\1" * 4, length)
    with pytest.raises(weights.WeightsError, match=r"model\.safetensors is not a valid"):
        weights.read_tensors(file)


@pytest.mark.parametrize(
    "names", [{"a": 1}, {"a": None}, {"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {"a": [1]}]
)
def test_an_index_names_files_of_its_folder(tmp_path, names):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(weights.WeightsError, match=r"index\.json .*download it again"):
        weights.read_tensors(tmp_path)


def test_suffixes_of_pickles_are_case_insensitive(tmp_path):
    (tmp_path / "X.PT").write_bytes(b"")
    with pytest.raises(weights.WeightsError, match="X.PT is a pickle"):
        weights.read_tensors(tmp_path / "X.PT")


def test_a_table_of_positions_of_another_rank_is_rejected():
    with pytest.raises(weights.WeightsError, match=r"pos_embed has the shape \(16, 8\)"):
        weights.convert_tensors({"pos_embed": np.zeros((16, 8))}, "dit", {})
