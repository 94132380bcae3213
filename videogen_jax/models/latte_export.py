"""Models whose architecture is Latte's, in the layout of diffusers' `LatteTransformer3DModel`.

A model is Latte's where its fields are those of `weight_layouts.latte_fields`; the same tables convert its weights both
ways. No run fits diffusers' `DiTTransformer2DModel`, which reads class labels: here captions condition every model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from videogen_jax.models.save_weights import extract_tensors
from videogen_jax.models.weight_layouts import LAYOUTS, latte_fields

LAYOUT = "latte"  # of weight_layouts.LAYOUTS
FOLDER = "transformer"  # of a pipeline in diffusers' layout
STEM = "diffusion_pytorch_model"  # of its weights' files
UNUSED = ("vocabulary_size",)  # by a model that reads caption embeddings


def describe(
    fields: Mapping[str, Any], grid: tuple[int, int, int], channels: int, text_width: int
) -> dict[str, Any]:
    """config.json of the `LatteTransformer3DModel` that computes what the model does.

    Args:
      fields: of the model: the options of config.model, and text_encoder.
      grid: (T, H, W) of the tokens of its videos.
      channels: C of its videos.
      text_width: E of its caption embeddings.
    Returns:
      The fields of diffusers' class.
    Raises:
      ValueError: the architecture is another; the sentence lists each option that differs.
    """
    patch, heads = fields["patch_size"], fields["num_heads"]
    positions = tuple(fields["position_grid"] or grid[1:])
    fields = dict(fields) | {"out_channels": channels, "position_grid": positions}
    config = {
        "_class_name": "LatteTransformer3DModel",
        "num_attention_heads": heads,
        "attention_head_dim": fields["width"] // heads,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": fields["depth"] // 2,
        "cross_attention_dim": fields["width"],
        "attention_bias": True,
        "sample_size": positions[0] * patch[1],
        "patch_size": patch[1],
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": text_width,
        "video_length": grid[0],
    }
    wanted = {name: value for name, value in latte_fields(config).items() if name not in UNUSED}
    wanted["position_grid"] = tuple(map(int, wanted["position_grid"]))
    differences = [
        f"model.{name} is {fields[name]!r} and not {value!r}"
        for name, value in wanted.items()
        if name != "text_encoder" and fields[name] != value
    ]
    if fields["text_encoder"] != wanted["text_encoder"]:
        differences.append("text.encoder is 'words' and not one of pretrained embeddings")
    if differences:
        raise ValueError(
            f"This model's architecture is not Latte's, the only one that --layout=diffusers exports: "
            f"{'; '.join(differences)}; export it with --layout=native, or train one with these options."
        )
    return config


def to_tensors(params: Any, patch: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Parameters under diffusers' names and in its shapes: what `weights.convert_tensors` reads as "latte"."""
    return extract_tensors(params, LAYOUTS[LAYOUT].sources, patch[1:])
