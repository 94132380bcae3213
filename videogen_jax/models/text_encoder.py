"""The pretrained text encoders by name, `text.encoder`: CLIP, T5 v1.1 and umT5, Qwen3."""

from videogen_jax.models import clip_text, qwen3_text, t5_text
from videogen_jax.models.text_common import TextEncoder

PRETRAINED = ("clip", "t5", "qwen3")


def make_text_encoder(
    encoder: str, path: str, layer: int = -1, *, dtype: str = "float32", fetch: bool = True
) -> TextEncoder:
    """Makes a text encoder; its weights are read when `load` is called.

    Args:
      encoder: one of PRETRAINED.
      path: its weights; see the module of the encoder, as for dtype and fetch.
      layer: of Qwen3's hidden states; the others have -1 only, the last layer after the final norm.
      dtype: compute type.
      fetch: if False, shapes are known offline.
    Raises:
      ValueError: the encoder or dtype is unknown, or there is no such layer.
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: config.json describes another network, or is missing and needed.
    """
    if encoder == "qwen3":
        return qwen3_text.make_text_encoder(path, layer, dtype=dtype, fetch=fetch)
    if encoder not in PRETRAINED:
        raise ValueError(
            f"Unknown text.encoder {encoder!r}: choose one of words, {', '.join(PRETRAINED)}."
        )
    if layer != -1:
        raise ValueError(
            f"text.layer is {layer}, which {encoder} does not have: set --config.text.layer=-1."
        )
    module = clip_text if encoder == "clip" else t5_text
    return module.make_text_encoder(path, dtype=dtype, fetch=fetch)
