"""Floating-point operations (FLOPs) of the model, computed from its sizes.

Counts one forward pass over one clip; a multiply and an add are two FLOPs. D hidden size, r mlp_ratio, M = T N video
tokens, L text tokens of size E, S mean number of keys that a query attends to:

| part                            | operations             | times                                    |
| ------------------------------- | ---------------------- | ---------------------------------------- |
| patch embedding, last layer     | 2 M D (p_in + p_out)   | 1                                        |
| queries, keys, values, out      | 8 M D^2                | every block                              |
| scores, weighted sum of values  | 4 M S D                | every block                              |
| MLP                             | 4 r M D^2              | every block                              |
| cross-attention: query, out     | 4 M D^2                | every block; pixart: all but temporal    |
| cross-attention: key, value     | 4 L D^2                | as above                                 |
| cross-attention: scores, values | 4 M L D                | as above                                 |
| caption encoder                 | (24 D + 4 L) L D       | text_depth layers                        |
| caption projection              | 2 L (E + D) D          | 1, if cross-attention reads the tokens   |
|                                 |                        | of a pretrained encoder                  |
| detailer: context, enter, leave | 2 P D' (D + p_in'      | 1; P places of all patches, p_in' and    |
|                                 |   + p_out')            | p_out' of a place: without ph pw         |
| detailer: 3x3 and 1x1           | 20 P D'^2              | detailer_blocks                          |

S is N in spatial blocks, T in temporal ones, T N in joint ones; with `causal`, (T + 1) / 2 replaces T. An image (T = 1)
skips the temporal blocks. The number of heads does not matter.

Not counted: elementwise operations (norms, softmax, GELU, rotary embedding), and layers on one vector per clip (time,
pooled text, micro-conditions and modulation), each below one percent from a few hundred tokens on.

A train step is three times the forward pass, since the backward pass has two products for each forward one.
Recomputation (remat, flash attention) is not counted, as usual for model FLOPs.

Source: the accounting of PaLM, arXiv:2204.02311, appendix B.
"""

from videogen_jax.models.blocks import KINDS

TRAIN_FACTOR = 3  # forward and backward pass, relative to the forward pass


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
    patch_places: int = 1,
    detailer_width: int = 0,
    detailer_blocks: int = 0,
) -> int:
    """FLOPs of one forward pass over one clip, by the table at the top of this file.

    Args:
      grid: (T, H, W) in tokens, from `patches.patch_grid`.
      width: D.
      depth: number of blocks, spatial and temporal ones together.
      mlp_ratio: hidden size of the MLP over D.
      attention: factorized, joint.
      causal: whether attention over frames is causal.
      cross_attention: none, gated, pixart.
      patch_in: elements of an input patch, pt ph pw C.
      patch_out: elements of an output patch.
      text_tokens: L.
      text_depth: layers of the caption encoder.
      text_width: E of a pretrained text encoder; 0 for the encoder "words".
      patch_places: ph pw.
      detailer_width: D', channels of the patch detailer head.
      detailer_blocks: its residual blocks.
    Returns:
      FLOPs; a train step takes `TRAIN_FACTOR` times as many.
    """
    frames, spatial = grid[0], grid[1] * grid[2]
    tokens = frames * spatial
    mean_frames = (frames + 1) / 2 if causal else frames
    keys = {"spatial": spatial, "temporal": mean_frames, "joint": mean_frames * spatial}

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

    places = tokens * patch_places
    # The head sees x_t alone, so that both sides have as many numbers as the output.
    ends = width + 2 * patch_out / patch_places
    total += places * detailer_width * (2 * ends + 20 * detailer_blocks * detailer_width)
    return round(total)
