"""Published parameter layouts: the mapping of tensors to parameters, and the model fields for which it is exact.

| layout | tensor names                         | parameters                                          | fields         |
| ------ | ------------------------------------ | --------------------------------------------------- | -------------- |
| dit    | facebookresearch/DiT                 | patches, time, classes, spatial blocks, unembedding | `dit_fields`   |
| latte  | diffusers' `LatteTransformer3DModel` | all but pooled text and micro-conditions            | `latte_fields` |

Positions, causality and the number of heads do not follow from the tensors: use the functions in the last column.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

SIZES = {  # of DiT: hidden size, depth, heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
DIT_PATCHES = (2, 4, 8)
DIT_CHANNELS = 4  # latent channels
DIT_DOWNSAMPLING = 8  # pixels per latent

EXACT_FIELDS = {  # for both layouts
    "mlp_ratio": 4,
    "attention": "factorized",
    "causal": False,
    "qk_norm": False,
    "micro_conditions": (),
    "conditioning": "none",
    "time_cycle": 0,
    "detailer_width": 0,
    "text_depth": 0,
}


class Source(NamedTuple):
    """Source of a parameter: tensors concatenated along their first axis, then rearranged."""

    names: tuple[str, ...]  # {i} is replaced by the block index
    pattern: str  # einops pattern


class Layout(NamedTuple):
    """A published layout."""

    sources: dict[str, Source]  # by parameter path; blocks without the stacked axis
    optional: str  # regular expression of parameter paths without tensors
    ignored: tuple[str, ...]  # tensors that are computed here
    patch_layer: str  # prefix of the patch embedding's tensors
    output_layer: str  # prefix of the output layer's tensors, with or without variances
    fields_function: str  # function of this module


def _linear(
    leaf: str, *names: str, kernel: str = "o i -> i o", bias: str = "o -> o"
) -> dict[str, Source]:
    return {
        f"{leaf}/kernel": Source(tuple(f"{name}.weight" for name in names), kernel),
        f"{leaf}/bias": Source(tuple(f"{name}.bias" for name in names), bias),
    }


def _into_heads(leaf: str, *names: str, parts: str = "c k h") -> dict[str, Source]:
    kernel, bias = f"({parts}) d -> d {parts}", f"({parts}) -> {parts}"
    return _linear(leaf, *names, kernel=kernel, bias=bias)


def _out_of_heads(leaf: str, name: str) -> dict[str, Source]:
    return _linear(leaf, name, kernel="d (k h) -> k h d")


def _patches(leaf: str, name: str) -> dict[str, Source]:
    return _linear(leaf, name, kernel="d c p q -> (p q c) d")


def _latte_block(ours: str, theirs: str) -> dict[str, Source]:
    return {
        **_into_heads(f"{ours}/attention/qkv", *(f"{theirs}.attn1.to_{part}" for part in "qkv")),
        **_out_of_heads(f"{ours}/attention/out", f"{theirs}.attn1.to_out.0"),
        **_linear(f"{ours}/mlp/up", f"{theirs}.ff.net.0.proj"),
        **_linear(f"{ours}/mlp/down", f"{theirs}.ff.net.2"),
        f"{ours}/scale_shift_table": Source((f"{theirs}.scale_shift_table",), "p d -> p d"),
    }


def _latte_text(ours: str, theirs: str) -> dict[str, Source]:
    return {
        **_into_heads(f"{ours}/query", f"{theirs}.to_q", parts="k h"),
        **_into_heads(f"{ours}/key_value", f"{theirs}.to_k", f"{theirs}.to_v"),
        **_out_of_heads(f"{ours}/out", f"{theirs}.to_out.0"),
    }


LAYOUTS = {
    "dit": Layout(
        sources={
            **_patches("patch_embed", "x_embedder.proj"),
            **_linear("time_embed/hidden", "t_embedder.mlp.0"),
            **_linear("time_embed/out", "t_embedder.mlp.2"),
            "label_embed/embedding": Source(("y_embedder.embedding_table.weight",), "v d -> v d"),
            **_linear("modulation", "final_layer.adaLN_modulation.1"),
            **_linear("unembed", "final_layer.linear"),
            **_into_heads("blocks/spatial/attention/qkv", "blocks.{i}.attn.qkv"),
            **_out_of_heads("blocks/spatial/attention/out", "blocks.{i}.attn.proj"),
            **_linear("blocks/spatial/mlp/up", "blocks.{i}.mlp.fc1"),
            **_linear("blocks/spatial/mlp/down", "blocks.{i}.mlp.fc2"),
            **_linear("blocks/spatial/modulation", "blocks.{i}.adaLN_modulation.1"),
        },
        optional=r"blocks/temporal/|blocks/\w+/text_|caption_encoder/|\w+_embed/",
        ignored=("pos_embed",),
        patch_layer="x_embedder.proj",
        output_layer="final_layer.linear",
        fields_function="dit_fields",
    ),
    "latte": Layout(
        sources={
            **_patches("patch_embed", "pos_embed.proj"),
            **_linear("time_embed/hidden", "adaln_single.emb.timestep_embedder.linear_1"),
            **_linear("time_embed/out", "adaln_single.emb.timestep_embedder.linear_2"),
            **_linear("shared_modulation", "adaln_single.linear"),
            **_linear("caption_encoder/hidden", "caption_projection.linear_1"),
            **_linear("caption_encoder/out", "caption_projection.linear_2"),
            "scale_shift_table": Source(("scale_shift_table",), "p d -> p d"),
            **_linear("unembed", "proj_out"),
            **_latte_block("blocks/spatial", "transformer_blocks.{i}"),
            **_latte_text("blocks/spatial/text_attention", "transformer_blocks.{i}.attn2"),
            **_latte_block("blocks/temporal", "temporal_transformer_blocks.{i}"),
        },
        optional=r"\w+_embed/",
        ignored=("pos_embed.pos_embed", "temp_pos_embed"),
        patch_layer="pos_embed.proj",
        output_layer="proj_out",
        fields_function="latte_fields",
    ),
}


def dit_fields(
    size: str, patch: int, image_size: int = 256, num_classes: int = 1000
) -> dict[str, Any]:
    """Fields of `VideoDiT` with which DiT weights reproduce DiT's outputs, including learned variances.

    Args:
      size: one of SIZES.
      patch: patch size in latents, one of DIT_PATCHES.
      image_size: training resolution in pixels.
      num_classes: without the class for dropped labels.
    Returns:
      All fields except `remat` and `dtype`.
    Raises:
      ValueError: DiT has no such size or patch.
    Source: DiT, arXiv:2212.09748, table 1.
    """
    if size not in SIZES or patch not in DIT_PATCHES:
        raise ValueError(
            f"There is no DiT-{size}/{patch}: choose a size of {', '.join(SIZES)} "
            f"and a patch of {', '.join(map(str, DIT_PATCHES))}."
        )
    width, depth, num_heads = SIZES[size]
    side = image_size // DIT_DOWNSAMPLING // patch
    return EXACT_FIELDS | {
        "patch_size": (1, patch, patch),
        "width": width,
        "depth": 2 * depth,
        "num_heads": num_heads,
        "positions": "dit",
        "modulation": "adaln_zero",
        "cross_attention": "none",
        "pooled_text": True,
        "text_encoder": "class",
        "vocabulary_size": num_classes + 1,
        "out_channels": 2 * DIT_CHANNELS,
        "position_grid": (side, side),
    }


def latte_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `VideoDiT` with which Latte weights reproduce Latte's outputs.

    Args:
      config: content of the config.json beside the weights.
    Returns:
      All fields except `remat` and `dtype`.
    Raises:
      ValueError: the config does not describe text-to-video Latte.
    Source: Latte, arXiv:2401.03048; diffusers' `LatteTransformer3DModel`.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    exact = {
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "cross_attention_dim": width,
    }
    for name, value in exact.items():
        if config.get(name) != value:
            raise ValueError(
                f"This Latte config has {name}={config.get(name)!r}, but only {value!r} is supported: "
                "use weights with the architecture of maxin-cn/Latte-1."
            )
    patch, sample_size = config["patch_size"], config["sample_size"]
    # diffusers interpolates the positions of large frames into the range of 64 latents.
    side = sample_size // patch / max(sample_size // 64, 1)
    return EXACT_FIELDS | {
        "patch_size": (1, patch, patch),
        "width": width,
        "depth": 2 * config["num_layers"],
        "num_heads": config["num_attention_heads"],
        "positions": "latte",
        "modulation": "adaln_single",
        "cross_attention": "pixart",
        "pooled_text": False,
        "text_encoder": "embeddings",
        "vocabulary_size": 0,
        "out_channels": config["out_channels"],
        "position_grid": (side, side),
    }
