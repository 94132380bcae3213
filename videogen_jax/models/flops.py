"""Floating-point operations of the model, counted from its shape.

One clip, one forward pass; a multiply and an add count as two. D width, r mlp_ratio, M = T N video tokens, L text
tokens of E numbers each, S keys that a query sees in the mean:

| part                            | operations             | times                                    |
| ------------------------------- | ---------------------- | ---------------------------------------- |
| patch embedding, last layer     | 2 M D (p_in + p_out)   | 1                                        |
| queries, keys, values, out      | 8 M D^2                | every block                              |
| scores, and their mix of values | 4 M S D                | every block                              |
| MLP                             | 4 r M D^2              | every block                              |
| cross-attention: query, out     | 4 M D^2                | every block; pixart: all but temporal    |
| cross-attention: key, value     | 4 L D^2                | as above                                 |
| cross-attention: scores, mix    | 4 M L D                | as above                                 |
| caption encoder                 | (24 D + 4 L) L D       | text_depth layers                        |
| caption projection              | 2 L (E + D) D          | 1, where cross-attention reads another   |
|                                 |                        | encoder's tokens                         |

S is N in spatial blocks, T in temporal ones, T N in joint ones; with `causal` (T + 1) / 2 frames in place of T. A
picture (T = 1) skips the temporal blocks. The number of heads changes nothing.

Left out: what is elementwise (norms, softmax, GELU, rotations), and layers on a single vector of a clip (time, pooled
text, micro-conditions and the modulation made of them), each below one percent from some hundred tokens on.

A train step is three times the forward pass: the backward pass multiplies twice for each product. Activations that are
computed anew (remat, flash attention) are no work of the model and are not counted.

Source: the accounting of PaLM, arXiv:2204.02311, appendix B.
"""

from videogen_jax.models.blocks import KINDS

TRAIN_FACTOR = 3  # forward and backward passes over the forward pass alone


def count_flops(
    grid: tuple[int, int, int],
    *,
    width: int,
    depth: int,
    mlp_ratio: int,
    attention: str,
    causal: bool,
    cross_attention: str,
    patch_in: int,
    patch_out: int,
    text_tokens: int,
    text_depth: int = 0,
    text_width: int = 0,
) -> int:
    """Counts the operations of one forward pass over one clip, by the table above.

    Args:
      grid: (T, H, W), tokens, as of `patches.patch_grid`.
      width: D.
      depth: blocks, spatial and temporal ones together.
      mlp_ratio: hidden width of the MLP over D.
      attention: factorized, joint.
      causal: whether frames see only themselves and those before them.
      cross_attention: none, gated, pixart.
      patch_in: numbers in a patch of the input, pt ph pw C.
      patch_out: of the output.
      text_tokens: L.
      text_depth: layers of the caption encoder.
      text_width: E, numbers per token of another text encoder; 0 where the captions are the model's own words.
    Returns:
      Operations; `TRAIN_FACTOR` times as many in a train step.
    """
    frames, places = grid[0], grid[1] * grid[2]
    tokens = frames * places
    seen_frames = (frames + 1) / 2 if causal else frames
    keys = {"spatial": places, "temporal": seen_frames, "joint": seen_frames * places}

    total = 2 * tokens * width * (patch_in + patch_out)
    kinds = [kind for kind in KINDS[attention] if kind != "temporal" or frames > 1]
    for kind in kinds:
        block = (8 + 4 * mlp_ratio) * tokens * width**2 + 4 * tokens * keys[kind] * width
        if cross_attention == "gated" or (cross_attention == "pixart" and kind != "temporal"):
            block += 4 * (tokens + text_tokens) * width**2 + 4 * tokens * text_tokens * width
        total += depth // len(KINDS[attention]) * block

    total += text_depth * (24 * width + 4 * text_tokens) * text_tokens * width
    if text_width and cross_attention != "none":
        total += 2 * text_tokens * (text_width + width) * width
    return round(total)
