"""Latte's architecture in diffusers' layout: there and back, the same outputs, and refusals that list what differs."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from videogen_jax.models import latte_export, weight_layouts, weights
from videogen_jax.models.dit import VideoDiT

pytestmark = pytest.mark.slow

FRAMES, CHANNELS, TEXT_WIDTH, WIDTH = 4, 3, 12, 16
# The options of config.model of a small Latte.
OPTIONS = {
    "patch_size": (1, 2, 2),
    "width": WIDTH,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 4,
    "attention": "factorized",
    "causal": False,
    "positions": "latte",
    "position_grid": (),
    "modulation": "adaln_single",
    "qk_norm": False,
    "cross_attention": "pixart",
    "pooled_text": False,
    "micro_conditions": (),
    "conditioning": "none",
    "time_cycle": 0,
    "detailer_width": 0,
    "detailer_blocks": 2,
    "residual_dtype": "compute",
    "text_depth": 0,
}
FIELDS = OPTIONS | {"text_encoder": "embeddings"}


def describe(grid=(FRAMES, 4, 4), **changes):
    return latte_export.describe(FIELDS | changes, grid, CHANNELS, TEXT_WIDTH)


def latte_class():
    pytest.importorskip("torch", reason="diffusers' classes are of PyTorch")
    with warnings.catch_warnings():  # of libraries that diffusers imports
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers", reason="the reference").LatteTransformer3DModel


def make(position_grid, side, seed=0):
    """A model with random parameters, and inputs."""
    rng = np.random.default_rng(seed)
    changes = {"position_grid": position_grid, "remat": "none", "dtype": jnp.float32}
    model = VideoDiT(**FIELDS | changes, vocabulary_size=0)
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    text = {"tokens": rng.standard_normal((2, 5, TEXT_WIDTH)).astype(np.float32), "mask": mask}
    x = rng.standard_normal((2, FRAMES, *side, CHANNELS)).astype(np.float32)
    inputs = (x, np.array([7.0, 801.0], np.float32), text)
    params = randomise(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"], 0.15)
    return model, params, inputs


@pytest.mark.parametrize(
    ("position_grid", "side"), [(None, (8, 8)), ((4, 4), (8, 8)), ((3, 3), (8, 12))]
)
def test_diffusers_loads_it_with_the_same_outputs(tmp_path, position_grid, side):
    """Also for frames that are not square, whose positions are scaled to a square."""
    latte = latte_class()
    import torch

    from videogen_jax.models.save_weights import write_tensors

    model, params, (x, t, text) = make(position_grid, side)
    grid = (FRAMES, side[0] // 2, side[1] // 2)
    config = describe(grid, position_grid=position_grid or ())
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tensors(tmp_path, latte_export.STEM, latte_export.to_tensors(params, (1, 2, 2)))
    module, report = latte.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    bias = (torch.from_numpy(text["mask"]).float() - 1) * 10_000
    bias = bias.repeat_interleave(FRAMES, 0)[:, None]
    video = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    with torch.no_grad():
        tokens = torch.from_numpy(text["tokens"])
        expected = module(video, torch.from_numpy(t), tokens, bias, return_dict=False)[0]
    got = jax.jit(model.apply)({"params": params}, x, t, text)
    assert expected.std() > 0.3
    np.testing.assert_allclose(got, expected.movedim(1, -1).numpy(), atol=1e-4)


def test_there_and_back_is_the_same_to_the_bit():
    _, params, _ = make(None, (8, 8))
    tensors = latte_export.to_tensors(params, (1, 2, 2))
    back = weights.convert_tensors(tensors, "latte", jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_what_diffusers_wrote_comes_back_as_it_was(tmp_path):
    latte = latte_class()
    module = latte(**{name: value for name, value in describe().items() if name[0] != "_"})
    module.save_pretrained(tmp_path)
    given = weights.read_tensors(tmp_path)
    _, shapes, _ = make(None, (8, 8))
    params = weights.convert_tensors(given, "latte", shapes)
    tensors = latte_export.to_tensors(params, (1, 2, 2))
    assert set(tensors) == set(given)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, given[name], err_msg=name)
    # And its config.json is read as the fields of the same model.
    theirs = weight_layouts.latte_fields(json.loads((tmp_path / "config.json").read_text()))
    assert theirs == weight_layouts.latte_fields(describe())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"qk_norm": True}, r"model\.qk_norm is True and not False"),
        ({"modulation": "adaln_zero"}, "modulation is 'adaln_zero' and not 'adaln_single'"),
        ({"text_encoder": "words"}, r"text\.encoder is 'words' and not one of pretrained"),
        ({"patch_size": (2, 2, 2)}, r"patch_size is \(2, 2, 2\) and not \(1, 2, 2\)"),
        ({"patch_size": (1, 2, 4)}, r"patch_size is \(1, 2, 4\) and not \(1, 2, 2\)"),
        ({"position_grid": (4, 5)}, r"position_grid is \(4, 5\) and not \(4, 4\)"),
        ({"position_grid": (80, 80)}, r"position_grid is \(80, 80\) and not \(40, 40\)"),
        ({"causal": True, "time_cycle": 4}, r"causal is True and not False; .*time_cycle is 4"),
        ({"detailer_width": 6}, "detailer_width is 6 and not 0"),
        ({"pooled_text": True, "micro_conditions": ("fps",)}, "micro_conditions is .*; .*pooled"),
    ],
)
def test_other_architectures_are_refused_by_the_options_that_differ(changes, sentence):
    describe()
    with pytest.raises(ValueError, match=sentence + ".*--layout=native") as error:
        describe(**changes)
    assert "\n" not in str(error.value)


def test_frames_that_are_not_square_need_positions_of_a_square():
    with pytest.raises(ValueError, match=r"position_grid is \(4, 6\) and not \(4, 4\)"):
        describe(grid=(FRAMES, 4, 6))
    assert describe(grid=(FRAMES, 4, 6), position_grid=(3, 3))["sample_size"] == 6
