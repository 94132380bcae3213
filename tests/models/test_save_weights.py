"""Parameters as tensors: what is written is read back by the code that reads published weights, and by Hugging Face."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open

from videogen_jax.models import save_weights, weights
from videogen_jax.models.weight_layouts import Source


def params():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {
        "blocks": {
            "spatial": {"qkv": {"kernel": normal(3, 6, 3, 2, 4), "bias": normal(3, 3, 2, 4)}}
        },
        "patch_embed": {"kernel": normal(2 * 2 * 5, 6)},
        "scale": normal(7),
    }


def test_own_names_have_a_tensor_for_each_block_and_come_back():
    given = params()
    sources = save_weights.name_parameters(given)
    tensors = save_weights.extract_tensors(given, sources)
    assert set(tensors) == {
        *(f"blocks.{i}.spatial.qkv.{leaf}" for i in range(3) for leaf in ("kernel", "bias")),
        *("patch_embed.kernel", "scale"),
    }
    kernel = given["blocks"]["spatial"]["qkv"]["kernel"]
    np.testing.assert_array_equal(tensors["blocks.2.spatial.qkv.kernel"], kernel[2])
    got = weights.place_tensors(tensors, sources, given, what="", remedy="")
    jax.tree.map(np.testing.assert_array_equal, got, given)


def test_a_table_is_inverted():
    """By hand: heads are split and joined, a patch's axes are ordered anew, one tensor becomes three."""
    given = params()
    sources = {
        "blocks/spatial/qkv/kernel": Source(
            tuple(f"b.{{i}}.to_{part}.weight" for part in "qkv"), "(c k h) d -> d c k h"
        ),
        "blocks/spatial/qkv/bias": Source(
            tuple(f"b.{{i}}.to_{part}.bias" for part in "qkv"), "(c k h) -> c k h"
        ),
        "patch_embed/kernel": Source(("proj.weight",), "d c p q -> (p q c) d"),
        "scale": Source(("scale",), "d -> d"),
    }
    tensors = save_weights.extract_tensors(given, sources, patch=(2, 2))
    block, patch = given["blocks"]["spatial"]["qkv"], given["patch_embed"]["kernel"]
    for c, part in enumerate("qkv"):
        for i in range(3):
            expected = block["kernel"][i, :, c].reshape(6, 8).T
            np.testing.assert_array_equal(tensors[f"b.{i}.to_{part}.weight"], expected)
            expected = block["bias"][i, c].reshape(8)
            np.testing.assert_array_equal(tensors[f"b.{i}.to_{part}.bias"], expected)
    for p, q, c in np.ndindex(2, 2, 5):
        row = patch[(p * 2 + q) * 5 + c]
        np.testing.assert_array_equal(tensors["proj.weight"][:, c, p, q], row)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (200, 4)])
def test_files_and_their_index_are_those_of_hugging_face(tmp_path, limit, files):
    tensors = {f"layer.{i}": np.full((5, 5), i, np.float32) for i in range(8)}  # 100 bytes each
    names = save_weights.write_tensors(tmp_path, "model", tensors, shard_bytes=limit)
    (tmp_path / "plain").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", *names)}
    assert len(modes) == 1  # by the umask, and not for the owner alone
    assert len(names) == files
    index = tmp_path / "model.safetensors.index.json"
    if files == 1:
        assert names == ["model.safetensors"] and not index.exists()
    else:
        assert names[0] == "model-00001-of-00004.safetensors"
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == 800 and set(content["weight_map"]) == set(
            tensors
        )
    with safe_open(tmp_path / names[0], "np") as opened:
        assert opened.metadata() == {"format": "pt"}
    read = weights.read_tensors(tmp_path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
    hub = pytest.importorskip("huggingface_hub", reason="their loader")
    torch = pytest.importorskip("torch", reason="their loader returns its tensors")
    module = torch.nn.Module()
    module.layer = torch.nn.ParameterList([torch.zeros(5, 5) for _ in range(8)])
    hub.load_torch_model(module, tmp_path)
    assert [int(layer[0, 0]) for layer in module.layer] == list(range(8))
